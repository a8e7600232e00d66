"""A plan on the terminal: the batch, what each phase takes of a device's memory, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROWEST = 132  # columns, where the output is no terminal
BYTES = ("parameters", "optimizer", "reference", "reward_models", "cache", "batch", "temporaries")
TITLES = {"cache": "KV cache", "reward_models": "reward models"}


def wide_console(**options: Any) -> Console:
    """A console in which the tables are not folded, in a file or a pipe too."""
    console = Console(**options)
    return console if console.is_terminal else Console(width=max(console.width, NARROWEST), **options)


def show_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan, which is the content of what `--json` prints."""
    model, target = plan["model"], plan["target"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    say(f"model    {model['name']} ({model['family']}): {count(model['parameters'])} parameters, {model['dtype']}")
    if model["adapters"]:
        say(f"         {model['adapters']}")
    say(f"devices  {target['name']}; mesh {mesh}; remat {model['remat']}")
    say(f"figures  of {target['compiler']}\n")
    console.print(batch_table(plan["batch"]))
    console.print()
    console.print(memory_table(plan["phases"], target))


def batch_table(batch: Sequence[Mapping[str, Any]]) -> Table:
    """What a step is."""
    table = _table("a step of", "is", "rows", "rows a device", "at once", "tokens", "steps", "epochs")
    for row in batch:
        parts = row.get("microbatches")
        at_once = "" if parts is None else f"{row['rows_a_device'] / parts:g} in {parts} parts" if parts > 1 else "all"
        if row.get("decode_rows", row["rows"]) != row["rows"]:
            at_once += f", {row['decode_rows']} decoded"
        steps, epochs = row["steps"], row.get("epochs")
        table.add_row(
            row["stage"],
            row["step"],
            f"{row['rows']:,}",
            f"{row['rows_a_device']:,}",
            at_once,
            count(row["tokens_a_step"]),
            "?" if steps is None else f"{steps:,}",
            "" if "epochs" not in row else "?" if epochs is None else f"{epochs:.2f}",
        )
    return table


def memory_table(phases: Sequence[Mapping[str, Any]], target: Mapping[str, Any]) -> Table:
    """Gigabytes of a device in each phase."""
    unit, name = (1e9, "GB") if any(phase["peak"] >= 1e9 for phase in phases) else (1e6, "MB")
    size = partial(in_units, unit=unit)
    shown = [part for part in BYTES if any(phase[part] >= unit / 200 for phase in phases)]
    titles = [TITLES.get(part, part) for part in shown]
    table = _table(f"{name} of a device", *titles, "peak", f"of {target['memory'] / 1e9:.3g} GB", "TFLOP")
    for phase in phases:
        style = "" if phase["fits"] else "bold red"
        peak = f"{'> ' if phase['refused'] else ''}{size(phase['peak'])}"
        share = f"{phase['share']:.0%}{'' if phase['fits'] else ' !'}"
        work = phase["flops"] / 1e12
        cells = [size(phase[part]) for part in shown]
        table.add_row(
            phase["name"],
            *cells,
            Text(peak, style),
            Text(share, style),
            f"{work:,.0f}" if work >= 100 else f"{work:.3g}" if work else "",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, style="bold", no_wrap=True)
    for title in others:
        table.add_column(title, justify="right")
    return table


def in_units(size: float, *, unit: float) -> str:
    """Bytes in gigabytes or megabytes; nothing for next to none."""
    return "" if size < unit / 2000 else f"{size / unit:.3f}" if size < unit else f"{size / unit:.2f}"


def count(number: float) -> str:
    """A large number in words: 1.05M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:g}"
