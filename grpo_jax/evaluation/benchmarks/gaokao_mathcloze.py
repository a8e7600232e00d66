"""Gaokao-MathCloze of AGIEval (arXiv:2304.06364): blanks of Chinese college entrance examinations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from grpo_jax.config import config
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig, Row, Shots, text_of


@config
class Config(BenchmarkConfig):
    """Gaokao-MathCloze, 118 problems; 16 have two blanks, which count in their order."""


def build(config: Config) -> Benchmark:
    """Return the benchmark."""
    from grpo_jax.evaluation import published

    del config
    return Benchmark(
        name="gaokao_mathcloze",
        language="zh",
        size=118,
        file="agieval/gaokao-mathcloze.jsonl",
        row=row,
        few_shot=Shots("CoTGaoKaoMathClozePrompt", "答案是 {answer}"),
        parts=blanks,
        official={"few_shot": published.cloze},
    )


def row(fields: Mapping[str, Any]) -> Row:
    """{question, answer: "$5$;$10$"}."""
    return Row(text_of(fields, "question"), text_of(fields, "answer"))


def blanks(text: str, gold: str) -> list[str]:
    """Cut an answer into the blanks that the reference has: at semicolons, else at commas outside of brackets."""
    wanted = gold.count(";") + 1
    parts = re.split("[;；]", text)
    if wanted > 1 and len(parts) == 1:
        parts = outside_brackets(text)
    return [part.strip() for part in parts] if wanted > 1 else [text]


def outside_brackets(text: str) -> list[str]:
    """Cut at commas that are in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character in ",，、" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
