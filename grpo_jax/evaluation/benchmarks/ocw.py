"""OCWCourses (arXiv:2206.14858): problems of university courses; numbers, formulas, equations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Row, Shots, text_of


@config
class Config(BenchmarkConfig):
    """OCWCourses, 272 problems. DeepSeek-Math's own rule for it evaluates model text, and is not here."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    del config
    return Benchmark(
        name="ocw",
        language="en",
        size=272,
        file="ocw/test.jsonl",
        row=row,
        few_shot=Shots("OCWCoursesPrompt", "Final answer: The final answer is {answer}. I hope it is correct."),
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{problem, solution, answer}; an answer may be written as Python does, np.arcsin(10/13)."""
    solution = text_of(fields, "solution") if fields.get("solution") else None
    return Row(text_of(fields, "problem", "question"), text_of(fields, "answer").replace("np.", ""), solution)
