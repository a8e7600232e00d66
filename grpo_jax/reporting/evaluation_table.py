"""The results of an evaluation on the terminal: metrics in rows, benchmarks in columns, and what was counted apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_jax.reporting.evaluations import cell, metric_rows, show, show_interval
from grpo_jax.reporting.plan_table import wide_console

APART = ("ungradable", "unanswered", "truncated", "prompt too long")


def print_results(results: Sequence[Mapping[str, Any]], *, console: Console | None = None) -> None:
    """Print the results of each benchmark side by side as there is room, and what another run had otherwise."""
    console = console or wide_console()
    across = max(1, console.width // (75 if any("against" in result for result in results) else 30))
    for start in range(0, len(results), across):
        console.print(table_of(results[start : start + across]))


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    """The table of some benchmarks."""
    drawn = Table(box=None, padding=(0, 2), pad_edge=False)
    drawn.add_column("", style="bold")
    for result in results:
        drawn.add_column(Text(result["name"]), justify="right")
        if "against" in result:
            drawn.add_column(Text("difference"), justify="right")
    drawn.add_row("problems", *fill(results, lambda result: str(result["num_problems"])))
    for row in metric_rows(results):
        cells = []
        for result, one in zip(results, row.cells, strict=True):
            cells.append(Text(f"{show(one)} {show_interval(one)}".strip()))
            if "against" in result:
                cells.append(Text(difference(result["against"]["paired"].get(row.name))))
        drawn.add_row(Text(row.name), *cells)
    for mode in ("greedy", "sampled"):
        for what in APART:
            if any(result["counts"][mode][what] for result in results):
                line = fill(results, lambda r, mode=mode, what=what: share(r["counts"][mode], what))
                drawn.add_row(Text(f"{mode}, {what}"), *line)
    return drawn


def fill(results: Sequence[Mapping[str, Any]], text: Any) -> list[str]:
    """A cell for each benchmark, and an empty one where it is compared."""
    return [word for result in results for word in (text(result), *([""] if "against" in result else []))]


def share(found: Mapping[str, int], what: str) -> str:
    """ "12 of 800"."""
    return f"{found[what]} of {found['samples']}"


def difference(entry: Mapping[str, Any] | None) -> str:
    """ "+1.2 [-0.3, 2.5] p 0.13" in points; empty where the other run does not have the metric."""
    if entry is None:
        return ""
    one = cell(entry)
    return f"{100 * one.value:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}] p {entry['p']:.2g}"
