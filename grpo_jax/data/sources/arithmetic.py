"""Sums of several steps with worked solutions, made from a seed: the problems of the tiny pipeline.

The demonstrations are the work of students who sometimes slip in a systematic way (`slip_rate`), so that a
policy taught by them can solve every problem but often does not. `answer` is right in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from grpo_jax.config import Positive, Share, config

if TYPE_CHECKING:
    from grpo_jax.types import Problem

HELD_OUT = 10
"""One sum in so many is held out for the split `test`."""
MOST = 100_000
"""Size of a split of which no size was asked, where there are more sums than that."""


class TooFewProblems(ValueError):
    """More problems were asked for than there are; the message names both numbers and the remedy."""


@config
class Config:
    """Sums such as 47+8-9= with the solution 55, 46; one step a line."""

    split: Literal["train", "test"] = "train"
    """`test` is held out: no sum is ever in both, whatever the seeds."""
    size: Positive | None = None
    """Problems in the split; None: all there are, at most 100,000."""
    steps: Annotated[int, pydantic.Field(ge=1, le=16)] = 2
    """Additions and subtractions, evaluated left to right."""
    first_digits: Annotated[int, pydantic.Field(ge=1, le=9)] = 2
    """Digits of the first number."""
    digits: Annotated[int, pydantic.Field(ge=1, le=4)] = 1
    """Digits of the other numbers."""
    same_digits: bool = False
    """Every result has as many digits as the first number; else any result that is not negative."""
    form: Literal["symbols", "words"] = "symbols"
    """`47+8-9=`, or a short story."""
    slip_rate: Share = 0.0
    """Share of the steps with a carry or borrow in which the demonstration slips."""
    tool_rate: Share = 0.0
    """Share of the demonstrations that let a program calculate, and read its output; they do not slip."""
    students: Positive = 1
    """Demonstrations of each problem, each by another student; the source is so many times longer."""


def build(config: Config, seed: int) -> Sequence[Problem]:
    """Return the split's problems, made when asked for; equal (config, seed) make equal problems.

    Raises `TooFewProblems` if the split has fewer sums than `size`.
    """
    return Arithmetic(config, seed)


def alphabet(config: Config) -> str:
    """Return all characters that may occur in questions and solutions, sorted."""
    from grpo_jax.data.arithmetic import words_characters

    programs = "```python\n```output\n0123456789+-" if config.tool_rate else ""
    characters = "0123456789+-=\n" if config.form == "symbols" else words_characters()
    return "".join(sorted(set(characters + programs)))


class Arithmetic(Sequence):
    """A split as a sequence.

    Index -> place in the split (a permutation keyed by the seed) -> place among all sums (a fixed
    permutation, whose first tenth is the test split) -> sum (exact enumeration). Each map is one to one.
    """

    def __init__(self, config: Config, seed: int):
        from grpo_jax.data.arithmetic import Space

        self.config, self.seed = config, seed
        self.space = Space(config.first_digits, config.digits, config.steps, same_digits=config.same_digits)
        held_out = self.space.size // HELD_OUT
        test = config.split == "test"
        self.offset = 0 if test else held_out
        self.there_are = held_out if test else self.space.size - held_out
        self.size = config.size or min(self.there_are, MOST)
        if not 0 < self.size <= self.there_are:
            raise TooFewProblems(
                f"source arithmetic: size {self.size} is more than the {self.there_are} sums of split "
                f"{config.split!r} with steps {config.steps}, first_digits {config.first_digits}, "
                f"digits {config.digits}; ask for fewer, or raise steps, first_digits or digits"
            )

    def __len__(self) -> int:
        return self.size * self.config.students

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._problem(range(len(self))[index])  # negative indices, and IndexError off the end

    def _problem(self, index: int) -> Problem:
        from grpo_jax.data import arithmetic
        from grpo_jax.types import Problem

        student, number = divmod(index, self.size)
        problem = self._sum(number)
        tool = self._draws("tool", number, student, 0, self.config.tool_rate)
        slips = (lambda step: False) if tool else lambda step: self._slips(number, student, step)
        work = arithmetic.work_out(problem, slips)
        right = arithmetic.work_out(problem, lambda step: False)
        words = self.config.form == "words"
        solution = arithmetic.words_solution if words else arithmetic.symbols_solution
        name = f"{self.config.split}-{number}" + (f"-{student}" if self.config.students > 1 else "")
        return Problem(
            question=(arithmetic.words if words else arithmetic.symbols)(problem),
            answer=str(right.results[-1]),
            source="arithmetic",
            id=name,
            solution=arithmetic.program_solution(problem) if tool else solution(problem, work),
            columns={"steps": self.config.steps, "slipped": work.slipped},
        )

    def _sum(self, number: int):
        from grpo_jax.data.permutation import permute

        place = permute(number, self.there_are, f"{self.seed}/{self.config.split}")
        return self.space.unrank(permute(self.offset + place, self.space.size, "split"))

    def _slips(self, number: int, student: int, step: int) -> bool:
        return self._draws("slip", number, student, step, self.config.slip_rate)

    def _draws(self, what: str, number: int, student: int, step: int, rate: float) -> bool:
        from grpo_jax.data.permutation import unit_interval

        return unit_interval(f"{what}/{self.seed}/{self.config.split}/{number}/{student}/{step}") < rate
