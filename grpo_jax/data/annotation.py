"""Math-Shepherd's estimate of a step (arXiv:2312.08935, section 3.3): what becomes of the solution from there.

    y_i = (1/N) sum_j 1[completion j of s_1..s_i is right]      soft estimate (SE)
    y_i = 1 if any of them is right, else 0                      hard estimate (HE)

The last step is the whole solution: its estimate is whether its answer is right, and costs no completion. A prefix
that several solutions share is completed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Solution(NamedTuple):
    """What a policy has written for a problem."""

    problem: int  # its number in the source
    ids: tuple[int, ...]  # the tokens that it chose, the end of sequence included
    ends: tuple[int, ...]  # the place of each step's last token
    right: bool  # whether its answer is

    def steps(self) -> list[tuple[int, ...]]:
        """The tokens of each step."""
        starts = (0, *(end + 1 for end in self.ends))
        return [self.ids[start : end + 1] for start, end in zip(starts, self.ends, strict=False)]

    def prefixes(self) -> list[Prefix]:
        """What is to be completed: the beginnings up to the end of each step but the last."""
        return [Prefix(self.problem, self.ids[: end + 1]) for end in self.ends[:-1]]


class Prefix(NamedTuple):
    """The beginning of a solution."""

    problem: int
    ids: tuple[int, ...]


def distinct(solutions: Iterable[Solution]) -> list[Solution]:
    """The solutions without those that say the same of a problem as one before."""
    first: dict[tuple, Solution] = {}
    for solution in solutions:
        first.setdefault((solution.problem, solution.ids), solution)
    return list(first.values())


def prefixes_of(solutions: Iterable[Solution]) -> list[Prefix]:
    """The different prefixes of the solutions, the shortest first: those decoded together are of like length."""
    found = {prefix for solution in solutions for prefix in solution.prefixes()}
    return sorted(found, key=lambda prefix: (len(prefix.ids), prefix))


def estimates(right: int, completions: int) -> tuple[int, float]:
    """(hard, soft) for so many right ones among the completions of a step."""
    return int(right > 0), right / completions


def step_counts(solution: Solution, right: Mapping[Prefix, int], completions: int) -> Sequence[tuple[int, int]]:
    """For each step how many completions were right, of how many; the last is its own only completion."""
    return [*((right[prefix], completions) for prefix in solution.prefixes()), (int(solution.right), 1)]
