"""A figure from its name: run what it needs, read what came out, write and print it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

from grpo_jax.reproduce import figure5, figure6, figure7
from grpo_jax.reproduce.experiments import SCALES, Scale, jobs_of
from grpo_jax.reproduce.results import Findings, write
from grpo_jax.reproduce.schedule import Place, run_jobs

READERS: dict[str, Callable[[Scale, Path], Findings]] = {
    "figure5": figure5.findings,
    "figure6": figure6.findings,
    "figure7": figure7.findings,
}


def reproduce(
    figure: str, scale: str, out: Path | None = None, *, seeds: int | None = None, at_once: int | None = None
) -> Findings:
    """Run what is missing, write plot, table and words to `out`, and print them.

    Raises `JobError` for a run that fails, and what reading its records raises.
    """
    sized = SCALES[scale]
    if seeds is not None:
        sized = dataclasses.replace(sized, seeds=tuple(range(seeds)))
    out = (out or Path("runs/reproduce") / scale).absolute()
    jobs, since = jobs_of(figure, sized, out), time.monotonic()
    print(f"{figure}, {scale}: {len(jobs)} runs, {at_once or sized.at_once} at once, in {out}", flush=True)
    place = Place(out, at_once or sized.at_once, sized.environment)
    run_jobs(jobs, place, tell=lambda line: print(f"[{time.monotonic() - since:6.0f} s] {line}", flush=True))
    found = READERS[figure](sized, out)
    paths = write(found, out)
    show(found)
    print("results: " + ", ".join(map(str, paths)))
    return found


def show(found: Findings) -> None:
    """Print words and tables."""
    console = Console(width=170, highlight=False)
    console.print(found.title, style="bold")
    for line in found.verdicts:
        console.print(f"- {line}", markup=False)
    for table in found.tables:
        printed = Printed(title=table.caption)
        for i, header in enumerate(table.headers):
            printed.add_column(header, justify="right" if i else "left")
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)
    for line in found.remarks:
        console.print(f"- {line}", markup=False)
