"""ASDiv (arXiv:2106.15772): elementary-school word problems of many kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.evaluation.benchmark import CONVERTED, Benchmark, BenchmarkConfig, Hub, Row, Shots, number_of, text_of


@config
class Config(BenchmarkConfig):
    """ASDiv, 2,305 problems."""


def build(config: Config) -> Benchmark:
    """Return the benchmark; the few-shot prompt is GSM8K's, as in PAL (arXiv:2211.10435)."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="asdiv",
        language="en",
        size=None,
        file="asdiv/test.jsonl",
        row=row,
        hub=Hub("EleutherAI/asdiv", split="validation", revision=CONVERTED),
        few_shot=Shots("CoTGSMPrompt", "The answer is {answer}."),
        program=Shots("PALGSMPrompt", result="solution()"),
        official={"zero_shot": published.last, "few_shot": published.gsm8k_few_shot, "program": published.value},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{body, question, answer: "9 (apples)"}; the unit in brackets is not asked for."""
    answer = re.sub(r"\s*\([^()]*\)", "", text_of(fields, "answer"))
    return Row(f"{text_of(fields, 'body')} {text_of(fields, 'question')}", number_of(answer))
