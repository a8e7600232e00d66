"""MGSM in Chinese (arXiv:2210.03057): 250 problems of GSM8K, translated by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.evaluation.benchmark import CONVERTED, Benchmark, BenchmarkConfig, Hub, Row, number_of, text_of


@config
class Config(BenchmarkConfig):
    """MGSM-zh, 250 problems."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="mgsm_zh",
        language="zh",
        size=250,
        file="mgsm_zh/mgsm_zh.jsonl",
        row=row,
        hub=Hub("juletxara/mgsm", "zh", revision=CONVERTED),
        official={"zero_shot": published.last},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{messages, answer}, or the hub's {question, answer_number}."""
    asked = [message["content"] for message in fields.get("messages") or () if message["role"] == "user"]
    question = asked[0].strip() if asked else text_of(fields, "question")
    return Row(question, number_of(text_of(fields, "answer_number", "answer")))
