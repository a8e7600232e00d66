"""Equivalence classes of the answers to one problem, which is what votes are counted over."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

from grpo_jax.rewards.equivalent import RIGHT, answer_key, exact_verdict, local_verdict

# What all right answers of a problem are called when votes are counted: however written, they are one answer.
RIGHT_ANSWER = "\0right"
BUDGET = 3.0  # seconds for one problem, after which its wrong answers are compared by exact rules only


def same_answer(a: str, b: str, *, by_value: bool = True) -> bool:
    """Whether two answers mean the same, as far as it shows without a worker: by exact rules, then by value."""
    try:
        verdict = local_verdict(a, b) if by_value else exact_verdict(a, b)
    except Exception:  # a fault of the grader must not stop a run; `local_verdict` has the same rule
        return False
    return verdict is not None and verdict.grade is RIGHT


def classes(
    answers: Sequence[str | None],
    right: Sequence[bool],
    same: Callable[..., bool] = same_answer,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> list[str | None]:
    """The class that each sample votes for; None has no vote.

    All right answers are one class. Wrong ones are equal by their key, else joined with the first class whose first
    member means the same, in the order of the samples. Many long formulas that all differ would take minutes: once
    `BUDGET` seconds are spent, `same` is called with `by_value=False`, and a warning says so.
    """
    names: dict[str, str] = {}  # of a key, the class
    firsts: dict[str, str] = {}  # of a class, its first member
    votes: list[str | None] = []
    end, spent = clock() + BUDGET, False
    for answer, is_right in zip(answers, right, strict=True):
        if answer is None or is_right:
            votes.append(RIGHT_ANSWER if is_right else None)
            continue
        key = answer_key(answer)
        if key not in names:
            names[key] = key
            for name, first in firsts.items():
                spent = spent or clock() > end
                if same(answer, first, by_value=not spent):
                    names[key] = name
                    break
            firsts.setdefault(names[key], answer)
        votes.append(names[key])
    if spent:
        warnings.warn(
            f"majority votes: {len(firsts)} different wrong answers to one problem were compared for {BUDGET:g} s, the "
            "rest by exact rules only; formulas that mean the same may count as different",
            stacklevel=2,
        )
    return votes
