"""SAT mathematics, 2023: 32 questions with four choices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.data.rows import RowError
from grpo_jax.evaluation.benchmark import CHOICE, Benchmark, BenchmarkConfig, Row, Shots, letter_of, text_of

ENDING = "Final Answer: The final answer is ({answer}). I hope it is correct."


@config
class Config(BenchmarkConfig):
    """SAT, 32 problems: one is worth 3 points, so mind the interval."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="sat",
        language="en",
        size=32,
        file="sat/test.jsonl",
        row=row,
        few_shot=Shots("CoTSATPrompt", ENDING),
        official={"few_shot": published.choice},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{question, options: "A) 4 B) 5 C) 6 D) 7", Answer}."""
    options = text_of(fields, "options")
    if not options.startswith("A"):
        raise RowError(f"the options begin with {options[:20]!r}, not with A)")
    lettered = re.sub(r" ([B-G])\) ", r" (\1) ", f"({options}")
    question = f"{text_of(fields, 'question')}\n{CHOICE}\n{lettered}"
    return Row(question, letter_of(text_of(fields, "Answer", "answer"), "ABCDEFG"))
