"""AIME and sets like it: competition problems whose answers are integers from 0 to 999."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.data.rows import RowError
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Hub, Row, text_of


@config
class Config(BenchmarkConfig):
    """Any file of problems with integer answers; on the hub AIME 2024, 30 problems."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="aime",
        language="en",
        size=None,
        file="aime/test.jsonl",
        row=row,
        hub=Hub("HuggingFaceH4/aime_2024", split="train"),
        official={"zero_shot": published.last},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{problem, answer: "033"}; Problem and Answer, and question, are known too."""
    answer = text_of(fields, "answer", "Answer").replace(",", "")
    if not re.fullmatch(r"-?[0-9]+", answer):
        raise RowError(f"the answer {answer!r} is no integer; a set of other answers is read as math500")
    return Row(text_of(fields, "problem", "Problem", "question"), str(int(answer)))
