"""What a measurement leaves: a new directory each time, JSON lines, a picture, a table."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from grpo_jax.benchmark.alternate import Measured, medians, ratio
from grpo_jax.benchmark.drawing import bars
from grpo_jax.benchmark.floors import floor_seconds, phase_work
from grpo_jax.benchmark.workloads import Workload

PHASES = ("sample", "reference", "train", "other")
MB = 1e6


def new_directory(parent: Path, name: str) -> Path:
    """A directory that was not there: `name`, the date and time, and a number if two fall into one second."""
    stem = f"{name}_{time.strftime('%Y%m%dT%H%M%S')}"
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1000):
        path = parent / (f"{stem}_{number}" if number else stem)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{parent}: there are a thousand results named {stem}; move them away")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines; raises `FileExistsError` if the file is there."""
    with path.open("x") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def summarize(workload: Workload, measured: Measured, machine: Mapping[str, float]) -> list[dict[str, Any]]:
    """One record a system, ours first: medians, memory, compile time, distance to the floors, ratio to ours."""
    base = next(iter(measured.ready))
    return [_summary(workload, measured, machine, name, base) for name in measured.ready]


def _summary(w: Workload, measured: Measured, machine: Mapping[str, float], name: str, base: str) -> dict[str, Any]:
    ready, finish = measured.ready[name], measured.finish[name]
    middle = medians(measured.steps, name)
    step, tokens = middle.pop("step"), middle.pop("tokens")
    programs = finish.get("programs", {})
    phases = phase_seconds(middle, programs, step)
    work = phase_work(w)
    floors = {phase: floor_seconds(work[phase], machine) for phase in work}
    timed = {"prefill": phases["prefill"], "decode": phases["decode"], "reference": phases["reference"]}
    timed["update"] = phases["train"]
    operations = sum(part.operations for part in work.values())
    return {
        "kind": "summary",
        "workload": w.name,
        "system": name,
        "versions": ready.get("system"),
        "devices": ready.get("devices"),
        "step_seconds": step,
        "phases": phases,
        "tokens": tokens,
        "tokens_per_second": {"sample": tokens / phases["sample"], "step": tokens / step},
        "peak_memory": finish["peak_memory"],
        "children_memory": finish.get("children_memory", 0),
        "peak_device_memory": finish.get("peak_device_memory"),
        "startup_seconds": ready["startup_seconds"],
        # The first step of ours ends with the sampling of the next, as all do, and has its own beside.
        "compile_seconds": max(ready["first_seconds"] - step - phases["sample"] * bool(programs), 0.0),
        "floor_seconds": floors,
        "share_of_floor": {phase: floors[phase] / seconds for phase, seconds in timed.items() if seconds},
        "flops_utilisation": operations / machine["matmul"] / step,
        "decode_operations_share": work["decode"].operations / phases["decode"] / machine["matmul"],
        "decode_bandwidth_share": work["decode"].bytes / phases["decode"] / machine["read"],
        "times_ours": ratio(measured.steps, name, base),
    }


def phase_seconds(middle: Mapping[str, float], programs: Mapping[str, float], step: float) -> dict[str, float]:
    """Seconds of prefill, decode, sample (both), reference, train (the update) and other (what is left of the step).

    Phases are those that a system tells of its own steps. One that tells no train phase has it as what is left of the
    step; what ours cannot tell apart there, prefill and decode, and all phases of fused steps, are measured program by
    program after the last step.
    """
    alone = {"sample": programs["generate"], "train": programs["update"]} | dict(programs) if programs else {}
    told = alone | dict(middle) if "sample" in middle else alone | {"reward": middle.get("reward", 0.0)}
    sample, reference = told["sample"], told.get("reference", 0.0)
    prefill = told.get("prefill", 0.0)
    train = told.get("train", step - sample - reference)
    named = {"prefill": prefill, "decode": max(sample - prefill, 1e-9), "sample": sample, "reference": reference}
    return named | {"train": train, "other": max(step - sample - reference - train, 0.0)}


def write_results(
    folder: Path, workload: Workload, measured: Measured, machine: Mapping[str, float], summaries: list[dict[str, Any]]
) -> None:
    """Write results.jsonl (the machine, every step, a summary a system) and phases.svg."""
    steps = [{"kind": "step", "workload": workload.name} | step._asdict() for step in measured.steps]
    write_lines(folder / "results.jsonl", [{"kind": "machine"} | dict(machine), *steps, *summaries])
    rows = {s["system"]: {phase: s["phases"][phase] for phase in PHASES} for s in summaries}
    title = f"{workload.name}: seconds of a step, medians"
    with (folder / "phases.svg").open("x") as file:
        file.write(bars(title, rows, "s"))


def show(workload: Workload, machine: Mapping[str, float], summaries: list[dict[str, Any]]) -> None:
    """Print what was found."""
    console = Console(width=150)
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in machine.items() if name != "read")
    console.print(f"machine: GFLOP/s in {workload.dtype}: {rates}; read {machine['read'] / 1e9:.1f} GB/s")
    table = Table(title=f"{workload.name}: seconds of a step (medians), and shares of this machine's floor")
    columns = "system|step|x|prefill|decode|reference|train|tokens/s|memory MB|start|compile|MFU"
    for column in columns.split("|"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for s in summaries:
        phases, shares = s["phases"], s["share_of_floor"]
        timed = {"prefill": "prefill", "decode": "decode", "reference": "reference", "train": "update"}
        cells = [f"{phases[p]:.2f} ({shares.get(of, 0):.0%})" for p, of in timed.items()]
        memory = f"{s['peak_memory'] / MB:.0f}"
        if s["children_memory"]:
            memory += f" + {s['children_memory'] / MB:.0f}"
        if s["peak_device_memory"]:
            memory += f", device {s['peak_device_memory'] / MB:.0f}"
        table.add_row(
            s["system"],
            f"{s['step_seconds']:.2f}",
            f"{s['times_ours']:.2f}",
            *cells,
            f"{s['tokens_per_second']['sample']:.0f}",
            memory,
            f"{s['startup_seconds']:.1f}",
            f"{s['compile_seconds']:.1f}",
            f"{s['flops_utilisation']:.0%}",
        )
    console.print(table)
    if any(share > 1 for s in summaries for share in s["share_of_floor"].values()):
        console.print("A share above 100 %: the machine was busy while its rates were measured; measure again.")
