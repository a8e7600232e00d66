"""Math-Shepherd's published form (arXiv:2312.08935): the same text twice, with tags and with their labels.

    {"input": "Q Step 1: ... ки\nStep 2: ... ки", "label": "Q Step 1: ... +\nStep 2: ... -", "task": "GSM8K"}

The labels are hard estimates. The last step is complete, so that its label is whether the answer is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpo_jax.config import config
from grpo_jax.data.label_files import LabelFile, read_labels

if TYPE_CHECKING:
    from grpo_jax.data.labelled import Labelled

FIRST = " Step 1: "
MARKS = {"+": 1.0, "-": 0.0}


@config
class Config(LabelFile):
    """The rows of Math-Shepherd, as released."""

    tag: str = "ки"
    """What ends a step in `input`."""


def build(config: Config, seed: int) -> list[Labelled]:
    """Return the solutions of the file; `seed` changes nothing. Raises `RowError` naming the line."""
    from functools import partial

    del seed
    return read_labels(config, partial(_solution, tag=config.tag))


def _solution(row: Any, name: str, *, tag: str) -> Labelled:
    from grpo_jax.data.labelled import Labelled
    from grpo_jax.data.rows import RowError
    from grpo_jax.types import Problem

    question, first, solution = row["input"].partition(FIRST)
    if not first:
        raise RowError(f"{name}: input has no {FIRST!r}, where the solution begins")
    steps = [step.strip() for step in (first + solution).split(tag)]
    if steps.pop() or not steps:
        raise RowError(f"{name}: input does not end with the tag {tag!r}; check labels.tag")
    labels, rest = [], row["label"].removeprefix(question)
    for number, step in enumerate(steps, start=1):
        before, found, rest = rest.partition(step)
        mark, rest = rest.lstrip()[:1], rest.lstrip()[1:]
        if before.strip() or not found or mark not in MARKS:
            raise RowError(f"{name}: label has {mark!r} behind step {number}; + or - should stand there")
        labels.append(MARKS[mark])
    return Labelled(Problem(question, "", source="math_shepherd", id=name), tuple(steps), tuple(labels), labels[-1])
