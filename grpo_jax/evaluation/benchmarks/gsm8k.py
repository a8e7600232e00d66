"""GSM8K (arXiv:2110.14168): grade-school word problems whose answers are integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.data.rows import gsm8k_answer
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Hub, Row, Shots, number_of, text_of


@config
class Config(BenchmarkConfig):
    """GSM8K, 1,319 problems."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="gsm8k",
        language="en",
        size=1319,
        file="gsm8k/test.jsonl",
        row=row,
        hub=Hub("openai/gsm8k", "main"),
        tfds="gsm8k",
        few_shot=Shots("CoTGSMPrompt", "The answer is {answer}."),
        program=Shots("PALGSMPrompt", result="solution()"),
        official={"zero_shot": published.last, "few_shot": published.gsm8k_few_shot, "program": published.value},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{question, answer: "rationale #### 18"}, or {question, answer: "18", cot}."""
    answer = text_of(fields, "answer")
    split = gsm8k_answer(answer)
    return Row(text_of(fields, "question"), split[1] if split else number_of(answer))
