"""Maj@K and Pass@K over K, a panel a benchmark, as in figure 7 of arXiv:2402.03300: one SVG that stands alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from grpo_jax.reporting.evaluations import cell, split

FAMILIES = (("pass", "Pass@K", "#0b62a8"), ("maj", "Maj@K", "#c2410c"), ("best", "Best@K", "#00795a"))
WIDTH, HEIGHT = 440, 340
LEFT, TOP, RIGHT, BOTTOM = 52, 64, 18, 46
GREY, RULE, INK = "#5b636d", "#e1e2dc", "#1b1e22"


class Curve(NamedTuple):
    """A line of a panel: (k, value, low, high) in order of k, shares from 0 to 1."""

    name: str
    colour: str
    dashed: bool
    points: tuple[tuple[int, float, float, float], ...]


def figure(results: Sequence[Mapping[str, Any]]) -> str:
    """The panels of all results that have at least two K, side by side, three in a row; empty if none has."""
    drawn = [(result["name"], curves(result)) for result in results]
    drawn = [(name, lines) for name, lines in drawn if lines]
    if not drawn:
        return ""
    across = min(3, len(drawn))
    width, height = WIDTH * across, HEIGHT * -(-len(drawn) // across)
    panels = "".join(
        f'<g transform="translate({WIDTH * (i % across)} {HEIGHT * (i // across)})">{"".join(panel(name, lines))}</g>'
        for i, (name, lines) in enumerate(drawn)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="Maj@K and Pass@K over K">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{panels}</svg>'
    )


def curves(result: Mapping[str, Any]) -> list[Curve]:
    """The lines of a result, and dashed those of the run that it is compared with."""
    runs = [(result["title"], result["metrics"], False)]
    if "against" in result:
        runs.append((result["against"]["title"], result["against"]["metrics"], True))
    found = []
    for title, metrics, dashed in runs:
        for family, label, colour in FAMILIES:
            of_k = sorted((split(name)[1], cell(entry)) for name, entry in metrics.items() if split(name)[0] == family)
            points = tuple((k, one.value, one.low, one.high) for k, one in of_k if one.value is not None)
            if len(points) > 1:
                name = f"{label} {short(title)}" if len(runs) > 1 else label
                found.append(Curve(name, colour, dashed, points))
    return found


def short(title: str) -> str:
    """The end of a long name."""
    return title if len(title) <= 18 else f"…{title[-17:]}"


def panel(name: str, lines: Sequence[Curve]) -> Iterator[str]:
    """The shapes of a panel: title, legend, axes, and each line with its intervals."""
    ks = sorted({point[0] for line in lines for point in line.points})
    lowest = min(point[2] for line in lines for point in line.points)
    highest = max(point[3] for line in lines for point in line.points)
    floor = max(0, math.floor(lowest * 10) / 10)
    ceiling = min(1, math.ceil(highest * 10) / 10) if highest > floor else floor + 0.1

    def x(k: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(k / ks[0]) / math.log(ks[-1] / ks[0])

    def y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (share - floor) / (ceiling - floor))

    yield f'<text x="{LEFT}" y="20" font-size="15" font-weight="600" fill="{INK}">{escape(name)}</text>'
    for i, line in enumerate(lines):
        at, row = LEFT + 190 * (i % 2), 36 + 15 * (i // 2)
        stroke = f'stroke="{line.colour}" stroke-width="2"{dash(line)}'
        yield f'<line x1="{at}" x2="{at + 20}" y1="{row}" y2="{row}" {stroke}/>'
        yield f'<text x="{at + 26}" y="{row + 4}" fill="{GREY}">{escape(line.name)}</text>'
    step = 0.1 if ceiling - floor > 0.25 else 0.05 if ceiling - floor > 0.1 else 0.02
    for number in range(round((ceiling - floor) / step) + 1):
        share = floor + step * number
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="{RULE}"/>'
        yield f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end" fill="{GREY}">{100 * share:.0f}</text>'
    for k in ks:
        yield f'<text x="{x(k):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="{GREY}">{k}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" fill="{GREY}">K, number of samples</text>'
    yield f'<text x="14" y="{TOP - 8}" fill="{GREY}">%</text>'
    for line in lines:
        yield from shapes(line, x, y)


def shapes(line: Curve, x: Any, y: Any) -> Iterator[str]:
    """A line with a dot and an interval at each K."""
    path = " ".join(f"{x(k):.1f},{y(value):.1f}" for k, value, _, _ in line.points)
    yield f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash(line)}/>'
    for k, value, low, high in line.points:
        title = f"{line.name}, K = {k}: {100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        fill = "#ffffff" if line.dashed else line.colour
        yield (
            f'<line x1="{x(k):.1f}" x2="{x(k):.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}" stroke="{line.colour}" '
            f'stroke-width="1.5" opacity="0.45"/><circle cx="{x(k):.1f}" cy="{y(value):.1f}" r="4" fill="{fill}" '
            f'stroke="{line.colour}" stroke-width="2"><title>{escape(title)}</title></circle>'
        )


def dash(line: Curve) -> str:
    """The attribute of a dashed line."""
    return ' stroke-dasharray="6 4"' if line.dashed else ""
