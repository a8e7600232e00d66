"""Lines with bands as plain SVG: accuracy over steps, or over K."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#0b62a8", "#c2410c", "#00795a", "#7c3aed", "#8a6d00", "#5b636d")
GREY, RULE, INK = "#5b636d", "#e1e2dc", "#1b1e22"
WIDTH, HEIGHT = 460, 380
LEFT, RIGHT, BOTTOM, ROW = 48, 16, 46, 15
MANY = 20  # values of x that cannot all be written


class Line(NamedTuple):
    """A line of a panel: points (x, value, low, high) in order of x, shares from 0 to 1."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    colour: int = 0
    dashed: bool = False


class Panel(NamedTuple):
    """One picture of lines over one x axis, with marks at some x that mean something."""

    title: str
    x: str
    lines: Sequence[Line]
    logarithmic: bool = False
    marks: Sequence[float] = ()


class Frame(NamedTuple):
    """Where things are: the corners, the axes' ends, and both scales."""

    top: float
    low: float
    high: float
    x: Callable[[float], float]
    y: Callable[[float], float]


def chart(panels: Sequence[Panel]) -> str:
    """The panels side by side, as one SVG that stands alone."""
    width = WIDTH * len(panels)
    drawn = "".join(
        f'<g transform="translate({WIDTH * i} 0)">{"".join(shapes(panel))}</g>' for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img">'
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>{drawn}</svg>\n'
    )


def shapes(panel: Panel) -> Iterator[str]:
    """Title, legend, axes, and each line on its band."""
    frame = frame_of(panel)
    yield f'<text x="{LEFT}" y="20" font-size="15" font-weight="600" fill="{INK}">{escape(panel.title)}</text>'
    for i, line in enumerate(panel.lines):
        at, row = LEFT + 195 * (i % 2), 38 + ROW * (i // 2)
        yield f'<line x1="{at}" x2="{at + 20}" y1="{row}" y2="{row}" {stroke(line)}/>'
        yield f'<text x="{at + 26}" y="{row + 4}" fill="{GREY}">{escape(line.name)}</text>'
    yield from axes(panel, frame)
    for line in panel.lines:
        yield band(line, frame)
    for line in panel.lines:
        yield from curve(line, frame)


def frame_of(panel: Panel) -> Frame:
    """Axes wide enough for all values; bands are cut at the borders of a share."""
    points = [point for line in panel.lines for point in line.points]
    xs = [point[0] for point in points]
    low = math.floor(10 * max(0.0, min(min(p[1], p[2]) for p in points)) + 1e-9) / 10
    high = math.ceil(10 * min(1.0, max(max(p[1], p[3]) for p in points)) - 1e-9) / 10
    high = high if high > low else low + 0.1
    top = 48 + ROW * ((len(panel.lines) + 1) // 2)
    turn = math.log if panel.logarithmic else float
    first, last = turn(min(xs)), turn(max(xs))

    def x(value: float) -> float:
        share = (turn(value) - first) / (last - first) if last > first else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y(share: float) -> float:
        inside = (min(max(share, low), high) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - top) * inside

    return Frame(top, low, high, x, y)


def axes(panel: Panel, frame: Frame) -> Iterator[str]:
    """Rules with per cent, the marks, and the values of x."""
    step = 0.1 if frame.high - frame.low > 0.25 else 0.05
    for number in range(round((frame.high - frame.low) / step) + 1):
        share = frame.low + step * number
        at = frame.y(share)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{RULE}"/>'
        yield f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end" fill="{GREY}">{100 * share:.0f}</text>'
    for mark in panel.marks:
        at, bottom = frame.x(mark), HEIGHT - BOTTOM
        ends = f'x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top}" y2="{bottom}"'
        yield f'<line {ends} stroke="{GREY}" stroke-dasharray="2 4"/>'
    for value in ticks(panel):
        at = frame.x(value)
        yield f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="{GREY}">{value:g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle" fill="{GREY}">{escape(panel.x)}</text>'
    yield f'<text x="14" y="{frame.top - 6}" fill="{GREY}">%</text>'


def ticks(panel: Panel) -> list[float]:
    """The values of x to be written: those that there are, or every second, third, ...; of many round ones."""
    values = sorted({point[0] for line in panel.lines for point in line.points})
    if not panel.logarithmic and len(values) > MANY:  # lines that have each their own x
        step = 10 ** math.floor(math.log10(values[-1]))
        step = step / 5 if values[-1] < 2 * step else step / 2 if values[-1] < 5 * step else step
        return [step * i for i in range(int(values[-1] / step) + 1)]
    return values[:: math.ceil(len(values) / 8)]


def band(line: Line, frame: Frame) -> str:
    """The area between low and high; nothing where one is not finite."""
    points = [p for p in line.points if math.isfinite(p[2]) and math.isfinite(p[3])]
    upper = [f"{frame.x(p[0]):.1f},{frame.y(p[3]):.1f}" for p in points]
    lower = [f"{frame.x(p[0]):.1f},{frame.y(p[2]):.1f}" for p in reversed(points)]
    return f'<polygon points="{" ".join(upper + lower)}" fill="{COLOURS[line.colour]}" opacity="0.13"/>'


def curve(line: Line, frame: Frame) -> Iterator[str]:
    """The line with a dot at each point that says its numbers."""
    colour = COLOURS[line.colour]
    path = " ".join(f"{frame.x(p[0]):.1f},{frame.y(p[1]):.1f}" for p in line.points)
    yield f'<polyline points="{path}" fill="none" {stroke(line)}/>'
    for x, value, low, high in line.points:
        said = f"{line.name}, {x:g}: {100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        at = f'cx="{frame.x(x):.1f}" cy="{frame.y(value):.1f}"'
        yield f'<circle {at} r="3" fill="{colour}"><title>{escape(said)}</title></circle>'


def stroke(line: Line) -> str:
    """The attributes of a line."""
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    return f'stroke="{COLOURS[line.colour]}" stroke-width="2"{dash}'
