"""The command `evaluate`: tasks, records that a kill does not lose, numbers, a comparison, and a page."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.configure import Command, ConfigError, tree_of
from grpo_jax.data.fingerprint import fingerprint
from grpo_jax.evaluation.estimators import paired_bootstrap, paired_p_value
from grpo_jax.evaluation.evaluate import Graded, Task, by_problem, counts, measures, run_task
from grpo_jax.evaluation.judging import judge_benchmark
from grpo_jax.evaluation.reading import open_benchmark, read_problems
from grpo_jax.evaluation.scripted import PREFIX, generators, read_script
from grpo_jax.reporting.evaluation_page import write_page
from grpo_jax.reporting.evaluation_table import print_results
from grpo_jax.reporting.files import is_primary, write_atomically
from grpo_jax.reporting.progress import Progress
from grpo_jax.rewards.workers import Workers
from grpo_jax.stages.evaluation import prepare
from grpo_jax.stages.evaluation_model import HELD_OUT, Checkpoint, identity, load_policy, open_model
from grpo_jax.stages.evaluation_store import (
    FILES,
    RESULT,
    SETTINGS,
    Store,
    check_settings,
    read_graded,
    read_scores,
)
from grpo_jax.stages.shared_disk import check_shared_disk
from grpo_jax.stages.tooling import open_tools
from grpo_jax.training.interrupt import Interruption
from grpo_jax.training.storage import claimed

# Keys of the settings that change how completions are computed, and not which
HOW = ("batch_prompts", "decode_rows", "k")

Scorer = Callable[[Task, Graded], np.ndarray | None]  # scores [problems, n] of the samples; None: none for this task


class Request(NamedTuple):
    """What to evaluate, and what to compare it with."""

    model: str
    checkpoint: Checkpoint | None
    command: Command
    words: Sequence[str]  # flags of the settings, as they were given
    against: Path | None = None
    scores: Path | None = None


class Suite(NamedTuple):
    """The tasks of an evaluation, and how the policy is loaded when it is first needed."""

    tasks: tuple[Task, ...]
    load: Callable[[], Any]
    settings: Callable[[Task], dict[str, Any]]  # what its records are made with


def evaluate(request: Request, workers: Workers) -> list[dict[str, Any]]:
    """Evaluate a model on each task, go on where an earlier command stopped, and write results and page.

    Raises what reading models and data raises, before device memory is taken, and `Interrupted` on a signal: what has
    been recorded stays.
    """
    c = request.command.config
    out = Path(c.output_dir).absolute()
    notice = "stopping after this batch; a second signal stops at once"
    with Interruption(notice) as interruption, contextlib.ExitStack() as stack:
        if is_primary():
            stack.enter_context(claimed(out))
        check_shared_disk(out)
        scripted = request.model.startswith(PREFIX)
        suite = scripted_suite(request, workers) if scripted else model_suite(request, workers, interruption, stack)
        compared = None if request.against is None else [other_of(request.against, task) for task in suite.tasks]
        for task in suite.tasks:
            check_settings(out / task.name, suite.settings(task))
        scorer = partial(scores_of, request.scores)
        graded = make(suite, c, out, interruption)
        results = [
            result_of(request, task, *both, scorer, compared and compared[number])
            for number, (task, both) in enumerate(zip(suite.tasks, graded, strict=True))
        ]
        if is_primary():
            keep_results(out, suite, results, graded)
            print_results(results)
            print(f"report: {write_page(out)}", flush=True)
    return results


def model_suite(request: Request, workers: Workers, interruption: Interruption, stack: contextlib.ExitStack) -> Suite:
    """The tasks of a model; everything that can be checked without its weights is."""
    tools, told = stack.enter_context(open_tools(request.command.config, ("evaluation",)))
    run = open_model(request.command, request.words, workers, interruption, tools)
    stack.enter_context(jax.set_mesh(run.mesh))
    if told and is_primary():
        write_atomically(run.directory / "tools.json", json.dumps(told, indent=1) + "\n")
    evaluator = prepare(run)
    tasks = tuple(task._replace(name=task.name or HELD_OUT) for task in evaluator.tasks)
    record = identity(request.model, request.checkpoint, run.config)
    return Suite(
        tasks, lambda: load_policy(run, request.checkpoint), lambda task: settings_of(run.config, task, record)
    )


def scripted_suite(request: Request, workers: Workers) -> Suite:
    """The tasks of a script."""
    c, path = request.command.config.evaluation, Path(request.model.removeprefix(PREFIX)).expanduser()
    script, tasks = read_script(path), []
    for config in c.benchmarks:
        benchmark = open_benchmark(config.kind, config)
        problems = read_problems(benchmark, config)
        style = "zero_shot" if config.style == "as_run" else config.style
        greedy, sampled = generators(script, problems, c.num_samples, path)
        judged = partial(judge_benchmark, benchmark, style, c.sampling.stop, workers=workers)
        tasks.append(Task(benchmark.name, problems, np.arange(len(problems)), greedy, sampled, judged))
    record = identity(request.model, None, None)
    return Suite(tuple(tasks), lambda: None, lambda task: settings_of(request.command.config, task, record))


def settings_of(config: Any, task: Task, model: dict[str, Any]) -> dict[str, Any]:
    """What the records of a task are made with."""
    c = tree_of(config.evaluation)
    style = next((b for b in c["benchmarks"] or () if b["kind"] == task.name), {})
    kept = {key: value for key, value in c.items() if key not in (*HOW, "benchmarks", "source", "reward")}
    kept["sampling"] = {key: value for key, value in kept["sampling"].items() if key != "cache_block"}
    return {
        "model": model,
        "seed": config.seed,
        **kept,
        "benchmark": {key: value for key, value in style.items() if key not in ("data", "shots", "limit")},
        "prompt": tree_of(dataclasses.replace(config.prompt, max_prompt_length=1)),
        "problems": len(task.problems),
        "fingerprint": fingerprint(task.problems),
    }


def make(suite: Suite, c: Any, out: Path, interruption: Interruption) -> list[tuple[Graded, Graded]]:
    """Greedy and sampled completions of all tasks: those on the disk, and what is missing, kept as it is made."""
    size, n = c.evaluation.batch_prompts, c.evaluation.num_samples
    total = sum(2 * -(-len(task.usable) // size) for task in suite.tasks)
    policy, found = [], []

    def loaded() -> Any:
        if not policy:
            with progress.phase("load the weights"):
                policy.append(suite.load())
        return policy[0]

    def advance() -> None:
        progress.advance()
        if interruption.requested_anywhere():
            raise interruption.interrupted(
                "stopped after a batch that is recorded; the same command goes on from there"
            )

    with Progress("evaluate", total=total, unit="part") as progress:
        for task in suite.tasks:
            ids, both = [problem.id for problem in task.problems], []
            for mode, generate, count in (("greedy", task.greedy, 1), ("sampled", task.sampled, n)):
                store = Store(out / task.name / FILES[mode], ids)

                def with_policy(_: Any, indices: np.ndarray, generate=generate) -> Any:
                    weights = loaded()
                    with progress.phase("evaluate"):
                        return generate(weights, indices)

                options = {"batch_prompts": size, "known": store.known, "keep": store.keep, "advance": advance}
                both.append(run_task(task, with_policy, None, count, **options))
            found.append((both[0], both[1]))
    return found


def result_of(
    request: Request, task: Task, greedy: Graded, sampled: Graded, scorer: Scorer, other: Any
) -> dict[str, Any]:
    """The numbers of a task."""
    c = request.command.config
    values = by_problem(greedy, sampled, c.evaluation.k, scorer(task, sampled))
    result = {
        "name": task.name,
        "title": title_of(request),
        "num_problems": len(task.problems),
        "num_samples": c.evaluation.num_samples,
        "temperature": c.evaluation.sampling.temperature,
        "mean_length": float(sampled.lengths.mean()),
        "counts": {"greedy": counts(greedy), "sampled": counts(sampled)},
        "metrics": measures(values, seed=c.seed),
    }
    if other is not None:
        result["against"] = {
            "title": other.title,
            "metrics": other.metrics,
            "paired": paired(other.values, values, c.seed),
        }
    return result


def title_of(request: Request) -> str:
    """What a reader calls the model."""
    if request.checkpoint is None:
        return request.model
    return f"{request.checkpoint.root.name} {request.checkpoint.stage} {request.checkpoint.step}"


class Other(NamedTuple):
    """The results of another evaluation of the same problems."""

    title: str
    metrics: dict[str, Any]
    values: dict[str, np.ndarray]


def other_of(folder: Path, task: Task) -> Other:
    """The finished evaluation of the same problems in another --out.

    Raises `ConfigError` if it is not there, not finished, or of other problems.
    """
    place = folder / task.name
    if not (place / RESULT).is_file():
        raise ConfigError(f"--against {folder}: has no finished evaluation of {task.name} ({place / RESULT})")
    settings, result = (json.loads((place / name).read_text("utf-8")) for name in (SETTINGS, RESULT))
    if settings["fingerprint"] != fingerprint(task.problems):
        raise ConfigError(
            f"--against {folder}: {task.name} was of other problems ({settings['problems']} then, "
            f"{len(task.problems)} now); compare runs on the same ones"
        )
    graded = [
        read_graded(place, mode, settings["problems"], n)
        for mode, n in (("greedy", 1), ("sampled", settings["num_samples"]))
    ]
    if any(one is None for one in graded):
        raise ConfigError(f"--against {folder}: the records of {task.name} are not complete; evaluate it again")
    ks = [int(name.partition("@")[2]) for name in result["metrics"] if name.startswith("pass@")]
    return Other(result["title"], result["metrics"], by_problem(*graded, ks))


def paired(before: dict[str, np.ndarray], after: dict[str, np.ndarray], seed: int) -> dict[str, dict[str, float]]:
    """What changed in each metric that both have: the mean difference with its interval, and the p-value of none."""
    found = {}
    for name in (name for name in after if name in before):
        mean, low, high = paired_bootstrap(before[name], after[name], seed=seed)
        p = paired_p_value(before[name], after[name], seed=seed)
        found[name] = {"value": mean, "low": low, "high": high, "p": p}
    return found


def scores_of(path: Path | None, task: Task, sampled: Graded) -> np.ndarray | None:
    """The scores of a file, for this task's samples."""
    if path is None:
        return None
    scores = read_scores(path, task.name, [problem.id for problem in task.problems], sampled.right.shape[1])
    if scores is not None and scores.min() < 0.0 and is_primary():
        print(
            f"--scores {path}: the least score of {task.name} is {scores.min():g}; a vote is worth its score, so "
            "weighted@n is left out; for it give scores from 0, such as probabilities",
            flush=True,
        )
    return scores


def keep_results(
    out: Path, suite: Suite, results: Sequence[dict[str, Any]], graded: Sequence[tuple[Graded, Graded]]
) -> None:
    """Write the numbers of each task, and its problems for the page."""
    for task, result, (_, sampled) in zip(suite.tasks, results, graded, strict=True):
        folder = out / task.name
        problems = [{"id": p.id, "question": p.question, "answer": p.answer} for p in task.problems]
        votes = [[hash_free(vote) for vote in row] for row in sampled.votes]
        write_atomically(
            folder / "problems.json", json.dumps({"problems": problems, "votes": votes}, ensure_ascii=False)
        )
        write_atomically(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def hash_free(vote: str | None) -> str | None:
    """A class's name for reading; that of the right answers is a control character and a word."""
    return None if vote is None else vote.lstrip("\0")
