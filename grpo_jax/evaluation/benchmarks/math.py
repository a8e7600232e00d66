"""MATH (arXiv:2103.03874): competition problems; the answer is what the reference solution boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.data.rows import RowError
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Hub, Row, Shots, text_of

ENDING = "Final Answer: The final answer is ${answer}$. I hope it is correct."


@config
class Config(BenchmarkConfig):
    """MATH, 5,000 problems, from a file only: its publisher has had it taken off the hub."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    del config
    return of_math("math", 5000, "math/test.jsonl", None)


def of_math(name: str, size: int, file: str, hub: Hub | None) -> Benchmark:
    """A set of MATH's problems."""
    from grpo_jax.evaluation import published

    return Benchmark(
        name=name,
        language="en",
        size=size,
        file=file,
        row=row,
        hub=hub,
        few_shot=Shots("MinervaMathPrompt", ENDING),
        program=Shots("PALMathPrompt", result="answer"),
        official={"zero_shot": published.math, "few_shot": published.math_few_shot, "program": published.value},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{problem, solution}, with the answer where it has been taken out already."""
    solution = text_of(fields, "solution") if fields.get("solution") else None
    answer = text_of(fields, "answer") if fields.get("answer") is not None else boxed(solution or "")
    return Row(text_of(fields, "problem", "question"), answer, solution)


def boxed(solution: str) -> str:
    """The boxes of a reference solution, each different one once: several are a list of answers.

    Raises `RowError` if there is none.
    """
    from grpo_jax.rewards.extract import find_boxes
    from grpo_jax.rewards.normal import normalise

    boxes = {normalise(content): content.strip() for _, content in find_boxes(solution) if content.strip()}
    if not boxes:
        raise RowError("the reference solution has no \\boxed{}; give a field 'answer'")
    return ", ".join(boxes.values())
