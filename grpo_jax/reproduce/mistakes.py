"""Which mistakes a policy makes in the arithmetic source: those that its teachers made, or others.

A reward model learns from what the SFT policy writes, where nearly every mistake is a student's: a carry or a borrow
forgotten (`data/arithmetic.py`). What it makes of other mistakes nobody has told it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from grpo_jax.data.arithmetic import without_borrows, without_carries

# The first number, then each sign or verb with its number, in both forms of the source.
_SYMBOLS = re.compile(r"([+-])(\d+)")
_LOSS = re.compile(r"gives|loses|sells|lends")


class Mistakes(NamedTuple):
    """Shares of wrong solutions by their first wrong step."""

    students: float  # a carry or borrow forgotten
    others: float  # any other number, no number, or a step too few or too many


def mistakes(solutions: Iterable[tuple[str, str]]) -> Mistakes | None:
    """Shares over the wrong ones of (question, solution); None where none is wrong."""
    kinds = Counter(kind for question, text in solutions if (kind := first_mistake(question, text)) is not None)
    total = sum(kinds.values())
    return Mistakes(kinds["students"] / total, kinds["others"] / total) if total else None


def first_mistake(question: str, text: str) -> str | None:
    """`students` or `others`, by the first wrong step of a solution; None of a right one."""
    value, steps = read_sum(question)
    lines = [line.strip().rpartition("=")[2] for line in text.split("\n")]
    for i, (operation, number) in enumerate(steps):
        right = value + number if operation == "+" else value - number
        slip = without_carries(value, number) if operation == "+" else without_borrows(value, number)
        said = lines[i] if i < len(lines) else ""
        if said != str(right):
            return "students" if said == str(slip) else "others"
        value = right
    return None if len(lines) == len(steps) else "others"


def read_sum(question: str) -> tuple[int, list[tuple[str, int]]]:
    """The first number and the steps of a question, `47+8-9=` or a short story."""
    first = int(re.search(r"\d+", question)[0])
    if question.endswith("="):
        return first, [(operation, int(number)) for operation, number in _SYMBOLS.findall(question)]
    events = [sentence for sentence in question.split(". ")[1:] if re.search(r"\d", sentence)]
    return first, [("-" if _LOSS.search(event) else "+", int(re.search(r"\d+", event)[0])) for event in events]
