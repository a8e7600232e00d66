"""Evaluations side by side: the rows of the before/after table, on the terminal and in the report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from grpo_jax.reporting.files import finite

FAMILIES = ("greedy", "mean", "pass", "maj")  # the order of rows; other metrics follow, by name


class Cell(NamedTuple):
    """One number with its interval; None where the evaluation does not have it."""

    value: float | None
    low: float | None
    high: float | None


class Row(NamedTuple):
    """A metric over all evaluations, in their order."""

    name: str
    cells: tuple[Cell, ...]


def columns(evaluations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluations in reading order: "before" first, "after" last, what is between as it came."""
    rank = {"before": -1, "after": 1}
    return sorted(evaluations, key=lambda evaluation: rank.get(str(evaluation["name"]), 0))


def metric_rows(evaluations: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for every metric that any evaluation has: greedy, mean@n, pass@k, maj@k, then the rest."""
    names = {name for evaluation in evaluations for name in evaluation.get("metrics", {})}
    return [
        Row(name, tuple(cell(evaluation.get("metrics", {}).get(name)) for evaluation in evaluations))
        for name in sorted(names, key=place)
    ]


def cell(entry: Any) -> Cell:
    """The number and interval of an entry; what is missing or not finite is None."""
    if not isinstance(entry, Mapping):
        entry = {"value": entry}
    return Cell(*(finite(entry.get(key)) for key in Cell._fields))


def place(name: str) -> tuple[int, int, str]:
    """The sort key of a metric's name: its family, its number, its name."""
    family, number = split(name)
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), number, name)


def split(name: str) -> tuple[str, int]:
    """("pass", 8) from "pass@8"; the number is 0 where there is none."""
    found = re.fullmatch(r"(.+)@(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def is_share(row: Row) -> bool:
    """Whether all numbers of a row lie between 0 and 1, so that they read as per cent."""
    return all(0 <= number <= 1 for cell in row.cells for number in cell if number is not None)


def show(cell: Cell) -> str:
    """The number as per cent with one decimal, or as it is if it is no share; "-" where there is none."""
    if cell.value is None:
        return "-"
    return f"{100 * cell.value:.1f}%" if 0 <= cell.value <= 1 else f"{cell.value:.4g}"


def show_interval(cell: Cell) -> str:
    """The interval in brackets, in the unit of the number; empty where there is none."""
    if cell.value is None or cell.low is None or cell.high is None:
        return ""
    if 0 <= cell.value <= 1:
        return f"[{100 * cell.low:.1f}, {100 * cell.high:.1f}]"
    return f"[{cell.low:.4g}, {cell.high:.4g}]"


def change(row: Row) -> str:
    """Last minus first, in points for shares; empty where either is missing."""
    first, last = row.cells[0].value, row.cells[-1].value
    if first is None or last is None:
        return ""
    return f"{100 * (last - first):+.1f}" if is_share(row) else f"{last - first:+.4g}"
