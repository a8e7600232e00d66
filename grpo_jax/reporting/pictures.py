"""The two still pictures of the report as numbers: where each dot and interval lies.

They are SVG without a view box, x in per cent of the width: they stretch with the page, their text does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from grpo_jax.reporting.evaluations import (
    Cell,
    Row,
    change,
    is_share,
    metric_rows,
    show,
    show_interval,
    split,
)


class Mark(NamedTuple):
    """A dot with its interval on a line, all in per cent of the width; `kind` is first, middle or last."""

    kind: str
    at: float
    low: float
    high: float
    offset: int  # pixels below the first mark, so that intervals do not hide one another


class TableRow(NamedTuple):
    """A row of the before/after table, ready to print."""

    name: str
    cells: list[tuple[str, str]]  # number, interval
    change: str
    marks: list[Mark]


class Dot(NamedTuple):
    """A point of the plot over k: x in per cent, the rest in pixels from the top."""

    x: float
    y: float
    low: float
    high: float
    title: str


class Line(NamedTuple):
    """The dots of one metric family and one evaluation; `pieces` are the straight lines between them."""

    family: str
    evaluation: str
    kind: str
    dots: list[Dot]
    pieces: list[tuple[Dot, Dot]]


MARK_PITCH = 9  # pixels between the intervals of one row
PLOT_HEIGHT = 220


def kinds(count: int) -> list[str]:
    """How evaluations are drawn: the first hollow, the last filled, those between small."""
    return ["last"] if count == 1 else ["first", *["middle"] * (count - 2), "last"]


def table_rows(evaluations: Sequence[Mapping[str, Any]]) -> list[TableRow]:
    """The rows of the table; only shares are drawn, since other numbers have no common scale."""
    rows = []
    for row in metric_rows(evaluations):
        cells = [(show(cell), show_interval(cell)) for cell in row.cells]
        difference = change(row) if len(row.cells) > 1 else ""
        rows.append(TableRow(row.name, cells, difference, marks(row) if is_share(row) else []))
    return rows


def marks(row: Row) -> list[Mark]:
    """The dots of a row of shares; an interval that is missing has no length."""
    drawn = []
    for number, (kind, cell) in enumerate(zip(kinds(len(row.cells)), row.cells, strict=True)):
        if cell.value is not None:
            low, high = ends(cell)
            drawn.append(Mark(kind, percent(cell.value), percent(low), percent(high), number * MARK_PITCH))
    return drawn


def ends(cell: Cell) -> tuple[float, float]:
    """The interval, or the number itself twice."""
    if cell.low is None or cell.high is None:
        return cell.value or 0.0, cell.value or 0.0
    return cell.low, cell.high


def percent(share: float) -> float:
    """Per cent with two decimals."""
    return round(100 * share, 2)


def lines_over_k(evaluations: Sequence[Mapping[str, Any]]) -> tuple[list[Line], list[tuple[float, int]]]:
    """The lines of pass@k and maj@k over log k, and the places of the k; no lines if there are not two k."""
    rows = [row for row in metric_rows(evaluations) if split(row.name)[0] in ("pass", "maj") and is_share(row)]
    numbers = sorted({split(row.name)[1] for row in rows} - {0})
    if len(numbers) < 2:
        return [], []
    widest = math.log(numbers[-1] / numbers[0])
    places = {k: round(4 + 92 * math.log(k / numbers[0]) / widest, 2) for k in numbers}
    lines = []
    for family in ("pass", "maj"):
        mine = [row for row in rows if split(row.name)[0] == family]
        for number, kind in enumerate(kinds(len(evaluations))):
            name = str(evaluations[number]["name"])
            dots = [dot(row, number, name, places) for row in mine if row.cells[number].value is not None]
            lines.append(Line(family, name, kind, dots, list(itertools.pairwise(dots))))
    return [line for line in lines if line.dots], [(places[k], k) for k in numbers]


def dot(row: Row, number: int, name: str, places: Mapping[int, float]) -> Dot:
    """A point of the plot over k."""
    cell = row.cells[number]
    low, high = ends(cell)
    title = f"{row.name} {name}: {show(cell)} {show_interval(cell)}".strip()
    heights = [round(PLOT_HEIGHT * (1 - share), 1) for share in (cell.value or 0.0, low, high)]
    return Dot(places[split(row.name)[1]], *heights, title)
