"""The truth about the steps of students' sums: a step is good iff its result is that of the right solution.

In this source what follows rests on the last result alone, so this is what Math-Shepherd's labels estimate: whether
the right answer can still be reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_jax.config import config
from grpo_jax.data.sources import arithmetic

if TYPE_CHECKING:
    from grpo_jax.data.labelled import Labelled


@config
class Config(arithmetic.Config):
    """Sums worked out by students who slip, every step with the truth."""


def build(config: Config, seed: int) -> list[Labelled]:
    """Return every demonstration with its labels; equal (config, seed) make equal ones.

    Raises `TooFewProblems` if the split has fewer sums than `size`.
    """
    import dataclasses

    from grpo_jax.data.labelled import Labelled

    found = []
    right = arithmetic.build(dataclasses.replace(config, slip_rate=0.0, students=1), seed)
    for number, problem in enumerate(arithmetic.build(config, seed)):
        steps = tuple(problem.solution.split("\n"))
        labels = true_labels(steps, right[number % len(right)].solution)
        found.append(Labelled(problem, steps, labels, labels[-1]))
    return found


def true_labels(steps: Sequence[str], solution: str) -> tuple[float, ...]:
    """Return 1 for each step that has the result of the same step of the right `solution`, else 0.

    A step is a result, or an equation that ends with it; one that is no such thing, or one too many, is bad.
    """
    right = [_result(step) for step in solution.split("\n")]
    said = [_result(step) for step in steps]
    return tuple(float(i < len(right) and result == right[i]) for i, result in enumerate(said))


def alphabet(config: Config) -> str:
    """Return all characters that may occur in questions and solutions, sorted."""
    return arithmetic.alphabet(config)


def _result(step: str) -> str:
    return step.strip().rpartition("=")[2]
