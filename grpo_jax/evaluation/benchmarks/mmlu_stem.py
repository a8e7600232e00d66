"""MMLU-STEM (arXiv:2009.03300): the 18 subjects of MMLU that are science and technology, four choices each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.data.rows import RowError
from grpo_jax.evaluation.benchmark import (
    Benchmark,
    BenchmarkConfig,
    Hub,
    Row,
    Shots,
    letter_of,
    text_of,
    with_options,
)

ENDING = "Final Answer: The final answer is ({answer}). I hope it is correct."


@config
class Config(BenchmarkConfig):
    """MMLU-STEM, 3,018 problems in the paper's file; the hub's set has other subjects, so that it does not compare."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="mmlu_stem",
        language="en",
        size=3018,
        file="mmlu_stem/test.jsonl",
        row=row,
        hub=Hub("TIGER-Lab/MMLU-STEM"),
        few_shot=Shots("MMLUSTEMPrompt", ENDING),
        official={"few_shot": published.choice},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{question, options, answer: "B"}, or the hub's {question, choices, answer: 1}."""
    options = fields.get("options") or fields.get("choices")
    if not isinstance(options, list | tuple) or len(options) != 4:
        raise RowError(f"expected a list of four options, found {options!r:.60}")
    return Row(with_options(text_of(fields, "question"), list(options)), letter_of(fields.get("answer")))
