"""SVAMP (arXiv:2103.07191): arithmetic word problems, varied so that shortcuts fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Hub, Row, Shots, number_of, text_of


@config
class Config(BenchmarkConfig):
    """SVAMP: 1,000 problems in the published file, of which the hub's test split has 300."""


def build(config: Config) -> Benchmark:
    """Return the benchmark; the few-shot prompt is GSM8K's, as in PAL (arXiv:2211.10435)."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="svamp",
        language="en",
        size=None,
        file="svamp/test.jsonl",
        row=row,
        hub=Hub("ChilleD/SVAMP"),
        few_shot=Shots("CoTGSMPrompt", "The answer is {answer}."),
        program=Shots("PALGSMPrompt", result="solution()"),
        official={"zero_shot": published.last, "few_shot": published.gsm8k_few_shot, "program": published.value},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{Body, Question, Answer}; an answer is written as a float."""
    body, question = text_of(fields, "Body", "body"), text_of(fields, "Question", "question")
    joined = f"{body} {question}" if body[-1] in ".?!" else f"{body}, {question}"
    return Row(joined, number_of(text_of(fields, "Answer", "answer")))
