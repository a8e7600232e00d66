"""Pictures of measurements as plain SVG: stacked bars, and curves on doubly logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
FONT = 'font-family="sans-serif" font-size="12"'


class Curve(NamedTuple):
    """One line of a panel: points (x, y), both positive; a dashed one is a law."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


class Panel(NamedTuple):
    """One picture of curves."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]


def bars(title: str, rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Horizontal bars, one a row, stacked of its parts."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    colour = dict(zip(parts, COLOURS * (len(parts) // len(COLOURS) + 1), strict=False))
    longest = max(sum(row.values()) for row in rows.values())
    shapes, width = [_text(10, 20, title)], 560
    for i, part in enumerate(parts):
        shapes.append(f'<rect x="{160 + 95 * i}" y="30" width="12" height="12" fill="{colour[part]}"/>')
        shapes.append(_text(176 + 95 * i, 41, part))
    for i, (name, row) in enumerate(rows.items()):
        top, left = 56 + 30 * i, 160.0
        shapes.append(_text(10, top + 15, name))
        for part, value in row.items():
            wide = width * value / longest
            shapes.append(
                f'<rect x="{left:.1f}" y="{top}" width="{wide:.1f}" height="20" fill="{colour[part]}">'
                f"<title>{escape(part)}: {value:.3g} {escape(unit)}</title></rect>"
            )
            left += wide
        shapes.append(_text(left + 6, top + 15, f"{sum(row.values()):.3g} {unit}"))
    return _svg(820, 70 + 30 * len(rows), shapes)


def curves(panels: Sequence[Panel], *, columns: int = 2) -> str:
    """Panels beside and below one another; all axes are logarithmic."""
    wide, high = 420, 280
    shapes = []
    for i, panel in enumerate(panels):
        place = f"translate({wide * (i % columns)},{high * (i // columns)})"
        shapes.append(f'<g transform="{place}">{"".join(_panel(panel, wide, high))}</g>')
    return _svg(wide * min(columns, len(panels)), high * math.ceil(len(panels) / columns), shapes)


def _panel(panel: Panel, wide: int, high: int) -> list[str]:
    left, top, right, bottom = 62, 46, wide - 20, high - 40
    points = [point for curve in panel.curves for point in curve.points]
    (x0, x1), (y0, y1) = (_range([p[axis] for p in points]) for axis in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - math.log(x0)) / (math.log(x1) - math.log(x0))
        up = (math.log(y) - math.log(y0)) / (math.log(y1) - math.log(y0))
        return left + (right - left) * across, bottom - (bottom - top) * up

    shapes = [_text(10, 16, f"{panel.title}, {panel.y}"), _text((left + right) / 2 - 20, high - 8, panel.x)]
    frame = f'x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"'
    shapes.append(f'<rect {frame} fill="none" stroke="#999"/>')
    shapes += [_text(at(x, y0)[0] - 8, bottom + 15, f"{x:g}") for x in sorted({p[0] for p in points})]
    shapes += [_text(4, at(x0, y)[1] + 4, f"{y:.3g}") for y in (y0, math.sqrt(y0 * y1), y1)]
    for i, curve in enumerate(panel.curves):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in curve.points)
        dash = ' stroke-dasharray="5 4"' if curve.dashed else ""
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if not curve.dashed:
            dots = (at(*point) for point in curve.points)
            shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in dots]
        shapes.append(f'<text x="{left + 8 + 85 * i}" y="{top - 6}" fill="{colour}" {FONT}>{escape(curve.name)}</text>')
    return shapes


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low / 1.2, high * 1.2) if low < high else (low / 2, high * 2)


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {FONT}>{escape(text)}</text>'


def _svg(width: float, height: float, shapes: Sequence[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{ground}{"".join(shapes)}</svg>\n'
