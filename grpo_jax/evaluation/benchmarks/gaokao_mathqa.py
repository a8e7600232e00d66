"""Gaokao-MathQA of AGIEval (arXiv:2304.06364): choices of Chinese college entrance examinations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.data.rows import RowError
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Row, Shots, text_of


@config
class Config(BenchmarkConfig):
    """Gaokao-MathQA, 351 problems; of 7 several choices are right, and all must be named."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="gaokao_mathqa",
        language="zh",
        size=351,
        file="agieval/gaokao-mathqa.jsonl",
        row=row,
        few_shot=Shots("CoTGaoKaoMathQAPrompt", "答案是 {answer}"),
        official={"few_shot": published.mathqa},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{question, options: ["(A)...", ...], label: "A" or "A C"}."""
    options = fields.get("options")
    if not isinstance(options, list | tuple) or not options:
        raise RowError(f"expected a list of options, found {options!r:.60}")
    question = text_of(fields, "question").rstrip("\\")
    label = "".join(text_of(fields, "label").split())
    if set(label) - set("ABCD"):
        raise RowError(f"the label {label!r} is none of A, B, C, D")
    return Row(f"{question}\n从以下选项中选择:    {' '.join(str(option).strip() for option in options)}", label)
