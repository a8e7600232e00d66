"""A benchmark as a value: where its rows are published, what a row becomes, how its answers are written and compared.

A file of `benchmarks/` has a `Config` and `build(config) -> Benchmark`; no problem of a benchmark is part of this
package. Nothing heavy is imported at the top: `--help` reads the configs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from grpo_jax.config import Positive, config
from grpo_jax.data.rows import RowError

if TYPE_CHECKING:
    from grpo_jax.types import Problem

Style = Literal["as_run", "zero_shot", "few_shot", "tool", "program"]
Language = Literal["en", "zh"]

CONVERTED = "refs/convert/parquet"
CHOICE = "What of the following is the right choice? Explain your answer."  # (sic) of the paper's prompts


@config
class BenchmarkConfig:
    """What all benchmarks have in common."""

    data: str = "hub"
    """A folder with the published file, the file itself, `hub` (Hugging Face, package datasets), or `tfds`."""
    style: Style = "as_run"
    """`as_run`: the prompt of the settings; `zero_shot`: chain of thought, answer in a box; `tool`: the same with
    programs; `few_shot`, `program`: behind the solved examples in `shots`, as text or as programs."""
    shots: str | None = None
    """A JSON file with the few-shot prompts, as DeepSeek-Math's: {name: {format_example, stop_words}}."""
    limit: Positive | None = None
    """Only the first so many problems."""


class Row(NamedTuple):
    """What a published row says: the question as it is asked, the reference answer, and a solution if it has one."""

    question: str
    answer: str
    solution: str | None = None


class Hub(NamedTuple):
    """A data set on the Hugging Face hub; `CONVERTED` is the revision without a loading script."""

    path: str
    name: str | None = None
    split: str = "test"
    revision: str | None = None


class Shots(NamedTuple):
    """A few-shot prompt: its name in the file of prompts, and how its solutions end, with {answer}.

    Where solutions are programs, `result` is the expression that has their answer.
    """

    key: str
    ending: str = ""
    result: str = ""


class Benchmark(NamedTuple):
    """A set of problems and its rules.

    `parts(text, gold)` cuts an answer into what is compared one by one, in order. `official[style]` says whether a
    completion is right by DeepSeek-Math's published rules; styles without an entry have no such rule here.
    """

    name: str
    language: Language
    size: int | None  # problems of the published test set
    file: str  # where DeepSeek-Math's repository has it, below its folder of data sets
    row: Callable[[Mapping[str, Any]], Row]
    hub: Hub | None = None
    tfds: str | None = None
    few_shot: Shots | None = None
    program: Shots | None = None
    parts: Callable[[str, str], list[str]] = lambda text, gold: [text]
    official: Mapping[str, Callable[[str, Problem], bool]] = {}


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that the row has, stripped; raises `RowError` naming what it has instead."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        there = ", ".join(map(repr, row)) or "no fields"
        raise RowError(f"no text in field {' or '.join(map(repr, names))}; the row has {there}")
    return str(value).strip()


def number_of(text: str) -> str:
    """A number without thousands separators and without the .0 of a float: "1,080" and 1080.0 are "1080"."""
    text = text.strip().replace(",", "")
    return text.removesuffix(".0") if re.fullmatch(r"-?[0-9]+\.0", text) else text


def letter_of(answer: Any, letters: str = "ABCD") -> str:
    """The letter of a choice that is given as a letter or as its number from 0; raises `RowError`."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
        return letters[answer]
    if isinstance(answer, str) and answer.strip() in letters and answer.strip():
        return answer.strip()
    raise RowError(f"the answer {answer!r} is none of the choices {', '.join(letters)}")


def with_options(question: str, options: list[Any]) -> str:
    """A question with its options on one line: (A) ..., (B) ...; as the paper asks SAT and MMLU-STEM."""
    lettered = ", ".join(
        f"({letter}) {str(option).strip()}" for letter, option in zip("ABCDEFG", options, strict=False)
    )
    return f"{question}\n{CHOICE}\n{lettered}"
