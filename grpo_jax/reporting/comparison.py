"""Several runs side by side: what their ledgers differ in, what they took, and a metric at equal generated tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from grpo_jax.configure.documents import dotted, read
from grpo_jax.configure.resume import MAY_CHANGE
from grpo_jax.reporting.ledger import NAME, read_ledger
from grpo_jax.reporting.ledger_table import GENERATED, NOT_HERE, TRAINED, as_text, curve, differences, totals_of
from grpo_jax.reporting.metrics import read_metrics

COLOURS = ("#0b62a8", "#c2410c", "#00795a", "#8a3ffc", "#a16207", "#be185d", "#475569", "#0e7490")
GREY, RULE, INK = "#5b636d", "#e1e2dc", "#1b1e22"
WIDTH, HEIGHT = 760, 420
LEFT, TOP, RIGHT, BOTTOM = 64, 40, 24, 48
LONGEST = 44  # characters of a value in the table
WAYS = MAY_CHANGE - {"output_dir", "report_to"}  # settings of how a result is computed
PREFERRED = ("eval/greedy", "reward", "loss")

Points = Sequence[tuple[float, float]]


class ComparisonError(ValueError):
    """Runs that cannot be laid side by side; the message names the run and the remedy."""

    exit_code = 2


def ledgers(runs: Sequence[Path]) -> dict[str, dict]:
    """The ledgers of runs by their names, short and different. Raises `ComparisonError` for a run without one."""
    found = {}
    for path, name in zip(runs, short_names(runs), strict=True):
        found[name] = read_ledger(path)
        if not found[name]:
            raise ComparisonError(f"{path}: holds no {NAME}; give the output_dir of a run that has begun a stage")
    return found


def short_names(runs: Sequence[Path]) -> list[str]:
    """As many of the last parts of each path as tell the runs apart. Raises `ComparisonError` for one run twice."""
    paths = [path.absolute().parts for path in runs]
    for parts in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ComparisonError(f"{', '.join(map(str, runs))}: the same run twice; give each once")


def tables(found: Mapping[str, dict], runs: Sequence[Path]) -> Iterator[str]:
    """The lines of three tables: what differs, in what way the same was computed, and what each run took."""
    every = list(found.values())
    parts = {
        "What differs": differences(every),
        "How it was computed, where that differs": ways(runs),
        "What was taken": totals_of(every),
    }
    for title, rows in parts.items():
        yield f"{title}:"
        yield from table(["", *found], [[name, *values] for name, values in rows]) if rows else ["  nothing"]
        yield ""


def ways(runs: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """The settings that change no result and are not the same in all runs that have a config.yaml, as it stands."""
    files = [run / "config.yaml" for run in runs]
    trees = [dict(leaves(read(file).tree)) if file.exists() else {} for file in files]
    keys = [key for key in dict.fromkeys(key for tree in trees for key in tree) if not WAYS.isdisjoint(key)]
    rows = [(dotted(key), [as_text(tree[key]) if key in tree else NOT_HERE for tree in trees]) for key in keys]
    return [(name, values) for name, values in rows if len(set(values) - {NOT_HERE}) > 1]


def leaves(tree: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of nested mappings by their keys."""
    if isinstance(tree, Mapping) and tree:
        for name, value in tree.items():
            yield from leaves(value, (*key, name))
    else:
        yield key, tree


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as their longest entry."""
    cells = [[cut(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def cut(text: str) -> str:
    """A text on one line, of some length at most."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def choose_metric(runs: Sequence[Path], stage: str) -> str:
    """The first of a few metrics that all runs have. Raises `ComparisonError` if there is none."""
    keys = [set().union(*read_metrics(run / stage / "metrics.jsonl")) for run in with_stage(runs, stage)]
    metric = next((name for name in PREFERRED if all(name in one for one in keys)), None)
    if metric is None:
        common = sorted(set.intersection(*keys))
        raise ComparisonError(f"{stage}: not all have {' or '.join(PREFERRED)}; give --metric: {', '.join(common)}")
    return metric


def with_stage(runs: Sequence[Path], stage: str) -> Sequence[Path]:
    """The runs themselves. Raises `ComparisonError` for one without metrics of the stage."""
    for run in runs:
        if not (run / stage / "metrics.jsonl").is_file():
            raise ComparisonError(f"{run}: has no {stage}/metrics.jsonl; give --stage, or leave the run out")
    return runs


def choose_across(runs: Sequence[Path], stage: str) -> str:
    """What a metric is plotted over: generated tokens, or trained ones where no run has generated any in the stage."""
    lines = (line for run in with_stage(runs, stage) for line in read_metrics(run / stage / "metrics.jsonl"))
    totals = [line for line in lines if GENERATED in line]
    return TRAINED if totals and not any(line[GENERATED] for line in totals) else GENERATED


def tokens_in_words(across: str, stage: str) -> str:
    """ "tokens generated in rl"."""
    return f"tokens {across.removeprefix('total/').removesuffix('_tokens')} in {stage}"


def curves(runs: Sequence[Path], stage: str, metric: str, across: str = GENERATED) -> dict[str, Points]:
    """A metric over generated or trained tokens, run by run. Raises `ComparisonError` for a run without it."""
    found = {}
    for run, name in zip(with_stage(runs, stage), short_names(runs), strict=True):
        found[name] = curve(run, stage, metric, across)
        if not found[name]:
            raise ComparisonError(f"{run}: no line of {stage}/metrics.jsonl has {metric}; give another --metric")
    return found


def figure(lines: Mapping[str, Points], metric: str, across: str) -> str:
    """One SVG that stands alone: a line a run, tokens across, which is said in words, the metric upwards."""
    xs, ys = ([point[axis] for points in lines.values() for point in points] for axis in (0, 1))
    right, (low, high) = max(*xs, 1.0), spread(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = x / right, (y - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up

    shapes = [*grid(at, right, low, high)]
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        last = at(*points[-1])
        shapes.append(f'<circle cx="{last[0]:.1f}" cy="{last[1]:.1f}" r="3.5" fill="{colour}"/>')
        shapes.append(text(LEFT + number * (WIDTH - LEFT) / len(lines), 22, name, colour))
    shapes += [text(WIDTH - RIGHT, HEIGHT - 10, across, GREY, "end"), text(8, HEIGHT - 10, metric, GREY)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(metric)} over {across}">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>{"".join(shapes)}</svg>\n'
    )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value with some room."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def grid(at, right: float, low: float, high: float) -> Iterator[str]:
    """Lines and numbers of both axes."""
    for part in range(5):
        x, y = right * part / 4, low + (high - low) * part / 4
        (left, up), (end, _) = at(0, y), at(right, y)
        yield f'<line x1="{left:.1f}" x2="{end:.1f}" y1="{up:.1f}" y2="{up:.1f}" stroke="{RULE}"/>'
        yield text(left - 8, up + 4, f"{y:.3g}", GREY, "end")
        yield text(at(x, low)[0], HEIGHT - BOTTOM + 18, f"{x:,.0f}", GREY, "middle")


def text(x: float, y: float, words: str, colour: str = INK, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'
