"""Equivalence classes of the answers to one problem, which is what votes are counted over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpo_jax.rewards.equivalent import RIGHT, answer_key, local_verdict

# What all right answers of a problem are called when votes are counted: however written, they are one answer.
RIGHT_ANSWER = "\0right"


def same_answer(a: str, b: str) -> bool:
    """Whether two answers mean the same, as far as it shows without a worker: by exact rules, then by value."""
    verdict = local_verdict(a, b)
    return verdict is not None and verdict.grade is RIGHT


def classes(
    answers: Sequence[str | None], right: Sequence[bool], same: Callable[[str, str], bool] = same_answer
) -> list[str | None]:
    """The class that each sample votes for; None has no vote.

    All right answers are one class. Wrong ones are equal by their key, else joined with the first class whose first
    member means the same, in the order of the samples.
    """
    names: dict[str, str] = {}  # of a key, the class
    firsts: dict[str, str] = {}  # of a class, its first member
    votes: list[str | None] = []
    for answer, is_right in zip(answers, right, strict=True):
        if answer is None or is_right:
            votes.append(RIGHT_ANSWER if is_right else None)
            continue
        key = answer_key(answer)
        if key not in names:
            names[key] = next((name for name, first in firsts.items() if same(answer, first)), key)
            firsts.setdefault(names[key], answer)
        votes.append(names[key])
    return votes
