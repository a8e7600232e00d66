"""The problems of a benchmark, from where its settings say that they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_jax.configure import find
from grpo_jax.data.json_lines import read_rows
from grpo_jax.data.rows import RowError
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig
from grpo_jax.types import Problem

FOLDERS = ("deepseek_math_eval", "datasets", "evaluation/datasets", ".")  # where published files lie below a folder


def open_benchmark(kind: str, config: BenchmarkConfig) -> Benchmark:
    """The benchmark of a kind; raises `ConfigError` listing those there are."""
    return find("evaluation.benchmarks", kind).build(config)


def read_problems(benchmark: Benchmark, config: BenchmarkConfig) -> list[Problem]:
    """The benchmark's problems in the published order, with ids `name/0`, `name/1`, ...

    Raises `RowError` naming the file, the line and what is wrong with it; there is no other place that is tried.
    """
    problems = []
    for number, (place, row) in enumerate(itertools.islice(_rows(benchmark, config), config.limit)):
        try:
            if isinstance(row, RowError):
                raise row
            if not isinstance(row, dict):
                raise RowError(f"expected an object with named fields, found {row!r:.60}")
            question, answer, solution = benchmark.row(row)
        except RowError as error:
            raise RowError(f"benchmark {benchmark.name}: {place}: {error}") from error
        name = f"{benchmark.name}/{number}"
        problems.append(Problem(question=question, answer=answer, source=benchmark.name, id=name, solution=solution))
    if not problems:
        raise RowError(f"benchmark {benchmark.name}: {config.data} has no problems")
    return problems


def published_file(benchmark: Benchmark, data: str) -> Path:
    """The file itself, or the published one below a folder. Raises `RowError` with the places looked at."""
    path = Path(data).expanduser()
    if path.is_file():
        return path
    places = [*(path / folder / benchmark.file for folder in FOLDERS), path / f"{benchmark.name}.jsonl"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        names = ", ".join(str(place.relative_to(path)) for place in places)
        what = f"has none of {names}" if path.is_dir() else "does not exist"
        raise RowError(
            f"benchmark {benchmark.name}: data: {data} {what}; give a folder with one of these files, or the file"
        )
    return found


def _rows(benchmark: Benchmark, config: BenchmarkConfig) -> Iterator[tuple[str, Any]]:
    """(place, row) pairs."""
    if config.data == "hub":
        yield from _of_hub(benchmark)
    elif config.data == "tfds":
        yield from _of_tfds(benchmark)
    else:
        path = published_file(benchmark, config.data)
        yield from ((f"{path}:{line}", row) for line, row in read_rows(path, constants=True))


def _of_hub(benchmark: Benchmark) -> Iterator[tuple[str, Any]]:
    from grpo_jax.data.sources import hf

    if benchmark.hub is None:
        raise RowError(
            f"benchmark {benchmark.name}: is not on the hub in its published form; give the folder of {benchmark.file}"
        )
    path, name, split, revision = benchmark.hub
    rows = hf.load_rows(hf.Config(path=path, name=name, split=split, revision=revision))
    yield from ((f"{path}/{split}:{number}", dict(row)) for number, row in enumerate(rows))


def _of_tfds(benchmark: Benchmark) -> Iterator[tuple[str, Any]]:
    if benchmark.tfds is None:
        raise RowError(f"benchmark {benchmark.name}: TFDS has no such data set; give a folder, or hub")
    from grpo_jax.data.prepared import NotPreparedError, read_split

    try:
        rows = read_split(benchmark.tfds, "test", None, None, False)
    except NotPreparedError as error:
        raise RowError(
            f"benchmark {benchmark.name}: data: tfds: nothing is prepared in {error.place}; give the folder of "
            f"{benchmark.file} or hub, or prepare it there (a source {{kind: tfds, name: {benchmark.tfds}}} does)"
        ) from error
    yield from ((f"tfds {benchmark.tfds}/test:{number}", rows[number]) for number in range(len(rows)))
