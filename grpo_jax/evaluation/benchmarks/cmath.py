"""CMATH (arXiv:2306.16636): Chinese elementary-school word problems with numbers as answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Hub, Row, Shots, number_of, text_of


@config
class Config(BenchmarkConfig):
    """CMATH, 1,098 problems."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="cmath",
        language="zh",
        size=1098,
        file="cmath/test.jsonl",
        row=row,
        hub=Hub("weitianwen/cmath"),
        few_shot=Shots("CoTCMATHPrompt", "所以答案是：{answer}。"),
        official={"zero_shot": published.last, "few_shot": published.cmath_few_shot},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{question, golden}."""
    return Row(text_of(fields, "question"), number_of(text_of(fields, "golden")))
