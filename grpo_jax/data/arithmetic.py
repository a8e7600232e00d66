"""Sums of several steps: their exact enumeration, how students work them out, and how they read.

A sum is a first number and steps `(operation, number)`, evaluated left to right; no intermediate result is
negative. The sums of a given size are counted exactly, so that "the r-th sum" is defined and no sum is met
twice.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from grpo_jax.data.permutation import choice

OPERATIONS = ("+", "-")


class Sum(NamedTuple):
    """`first` and then the steps, left to right."""

    first: int
    steps: tuple[tuple[str, int], ...]


class Work(NamedTuple):
    """What a student writes: the result of each step."""

    results: tuple[int, ...]
    slipped: bool


class Space:
    """All sums with a first number of `first_digits` digits and `steps` further numbers of `digits` digits.

    Values stay at or above 0; with `same_digits` every result has as many digits as the first number. With N_k(v) the
    number of ways to go on for k steps from value v, N_k(v) is the sum of N_{k-1} over the values that one step
    reaches. Farther than k times the largest number from a border nothing is cut off and N_k(v) = (2n)^k, and the
    two borders mirror each other; so a table of prefix sums up to there is exact for every v.
    """

    def __init__(self, first_digits: int, digits: int, steps: int, *, same_digits: bool = False):
        self.first = _numbers(first_digits)
        self.others = _numbers(digits)
        self.steps = steps
        self.bottom = self.first.start if same_digits else 0
        self.values = len(self.first) if same_digits else None  # how many values there are; None: no upper border
        self._sums = [[0]]
        for k in range(1, steps + 1):
            edge = k * self.others.stop
            if self.values is not None and self.values < 2 * edge:
                edge = self.values  # so narrow that the borders meet: a table of everything
            counts = (self._ways(k, self.bottom + i) for i in range(edge))
            self._sums.append(list(itertools.accumulate(counts, initial=0)))
        self.size = self._between(steps, self.first)

    def unrank(self, rank: int) -> Sum:
        """Return the sum of this rank in 0..size-1; a bijection."""
        value, rank = self._descend(self.steps, self.first, rank)
        first, steps = value, []
        for k in reversed(range(self.steps)):
            up, down = self._moves(value)
            ways_up = self._between(k, up)
            operation = "+" if rank < ways_up else "-"
            target, rank = self._descend(k, up, rank) if operation == "+" else self._descend(k, down, rank - ways_up)
            steps.append((operation, abs(target - value)))
            value = target
        return Sum(first, tuple(steps))

    def _moves(self, value: int) -> tuple[range, range]:
        low, high = self.others.start, self.others.stop - 1
        top = value + high if self.values is None else min(value + high, self.bottom + self.values - 1)
        return range(value + low, top + 1), range(max(value - high, self.bottom), max(value - low + 1, self.bottom))

    def _ways(self, k: int, value: int) -> int:
        return sum(self._between(k - 1, targets) for targets in self._moves(value))

    def _below(self, k: int, value: int) -> int:
        """Sum of N_k(u) over u < value."""
        sums, i = self._sums[k], value - self.bottom
        edge, uncut = len(sums) - 1, (len(OPERATIONS) * len(self.others)) ** k
        if i <= edge:
            return sums[i]
        if self.values is None or i <= self.values - edge:
            return sums[-1] + (i - edge) * uncut
        return 2 * sums[-1] + (self.values - 2 * edge) * uncut - sums[self.values - i]

    def _between(self, k: int, values: range) -> int:
        return self._below(k, values.stop) - self._below(k, values.start) if values else 0

    def _descend(self, k: int, values: range, rank: int) -> tuple[int, int]:
        """The value of `values` whose block of N_k ways holds `rank`, and the rank inside that block."""
        base = self._below(k, values.start)
        value = values[bisect_right(values, rank + base, key=lambda v: self._below(k, v)) - 1]
        return value, rank + base - self._below(k, value)


def _numbers(digits: int) -> range:
    """The numbers of so many digits; 0 is left out, as adding it is no step."""
    return range(10 ** (digits - 1), 10**digits)


def work_out(problem: Sum, slips: Callable[[int], bool]) -> Work:
    """Return the results a student writes who slips in step i where `slips(i)` and there is a carry or
    borrow.

    A slip is systematic: in a sum the carries are forgotten (47+8 = 45), in a difference the smaller digit is
    taken from the larger (52-8 = 56). The next step goes on from the wrong result.
    """
    value, results, slipped = problem.first, [], False
    for i, (operation, number) in enumerate(problem.steps):
        right = value + number if operation == "+" else value - number
        wrong = without_carries(value, number) if operation == "+" else without_borrows(value, number)
        # After a slip a difference may fall below 0; a student takes the smaller number from the larger.
        falls = wrong != right and (right < 0 or slips(i))
        value, slipped = (wrong, True) if falls else (right, slipped)
        results.append(value)
    return Work(tuple(results), slipped)


def without_carries(a: int, b: int) -> int:
    """Add column by column and forget each carry; the leftmost column is written in full."""
    columns = _columns(a, b)
    top = len(columns) - 1
    return sum(((x + y) if i == top else (x + y) % 10) * 10**i for i, (x, y) in enumerate(columns))


def without_borrows(a: int, b: int) -> int:
    """Take the smaller digit from the larger in each column."""
    return sum(abs(x - y) * 10**i for i, (x, y) in enumerate(_columns(a, b)))


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    digits = itertools.zip_longest(reversed(str(a)), reversed(str(b)), fillvalue="0")
    return [(int(x), int(y)) for x, y in digits]


def symbols(problem: Sum) -> str:
    """`47+8-9=`"""
    return f"{problem.first}" + "".join(f"{operation}{number}" for operation, number in problem.steps) + "="


def symbols_solution(problem: Sum, work: Work) -> str:
    """The result of each step, one a line."""
    return "\n".join(map(str, work.results))


def program_solution(problem: Sum) -> str:
    """The sum as a program, its output, and the result."""
    result = work_out(problem, lambda step: False).results[-1]
    return f"```python\n{symbols(problem).removesuffix('=')}\n```\n```output\n{result}\n```\n{result}"


PEOPLE = (("Tom", "He"), ("Ann", "She"), ("Max", "He"), ("Eva", "She"), ("Ben", "He"), ("Lily", "She"))
THINGS = ("apples", "coins", "books", "cards", "shells", "pens", "eggs", "stamps")
GAINS = ("gets {n} more", "finds {n} more", "buys {n} more", "wins {n} more")
LOSSES = ("gives {n} away", "loses {n}", "sells {n}", "lends {n} to a friend")


def words(problem: Sum) -> str:
    """`Tom has 47 apples. He gets 8 more. Then he gives 9 away. How many apples does Tom have now?`

    The wording depends on the sum alone, so that one sum never stands on both sides of a split.
    """
    key = symbols(problem)
    name, pronoun = choice(PEOPLE, key + "who")
    things = choice(THINGS, key + "what")
    sentences = [f"{name} has {problem.first} {things}."]
    for i, (operation, number) in enumerate(problem.steps):
        event = choice(GAINS if operation == "+" else LOSSES, f"{key}{i}").format(n=number)
        sentences.append(f"{pronoun} {event}." if i == 0 else f"Then {pronoun.lower()} {event}.")
    return " ".join([*sentences, f"How many {things} does {name} have now?"])


def words_solution(problem: Sum, work: Work) -> str:
    """`47+8=55`, one equation a line."""
    starts = (problem.first, *work.results)
    steps = zip(starts, problem.steps, work.results, strict=False)
    return "\n".join(f"{start}{operation}{number}={result}" for start, (operation, number), result in steps)


def words_characters() -> str:
    """All characters that `words` and `words_solution` may use."""
    fixed = "has How many does have now Then ?.0123456789+-=\n"
    names = "".join(name + pronoun + pronoun.lower() for name, pronoun in PEOPLE)
    return fixed + names + "".join((*THINGS, *GAINS, *LOSSES)).replace("{n}", "")
