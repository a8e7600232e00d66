"""Gold ceilings: each benchmark is fed its own references in the prompt's own format, and must score 100 %."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from grpo_jax.evaluation.benchmark import Benchmark, Style
from grpo_jax.evaluation.judging import Judgement, judge_benchmark
from grpo_jax.evaluation.prompts import demonstrated, demonstrations
from grpo_jax.rewards.workers import Workers
from grpo_jax.types import Problem


class Ceiling(NamedTuple):
    """What a benchmark scores with its own references in one style."""

    benchmark: str
    style: Style
    problems: int
    right: int
    official: int | None  # None: no published rules for this style
    missed: list[tuple[Problem, Judgement]]  # that the strict grader does not call right


def ceilings(benchmark: Benchmark, problems: Sequence[Problem], workers: Workers) -> Iterator[Ceiling]:
    """One ceiling for each style whose answers are text."""
    for style in demonstrations(benchmark):
        texts = [demonstrated(benchmark, style, problem.answer) for problem in problems]
        judged = judge_benchmark(benchmark, style, (), problems, texts, workers)
        missed = [(problem, one) for problem, one in zip(problems, judged, strict=True) if one.grade != "right"]
        known = [one.official for one in judged if one.official is not None]
        yield Ceiling(
            benchmark=benchmark.name,
            style=style,
            problems=len(problems),
            right=len(problems) - len(missed),
            official=sum(known) if known else None,
            missed=missed,
        )
