"""How time and memory grow with each size of a step, and the law that they should follow.

On small models, in one process: every size is varied alone, around one middle step. The law of time is that of the
operations (`floors.phase_work`), the law of memory that of the largest arrays (`estimate.temporaries`); both are said
in words, and measured exponents stand beside theirs. Memory is what the compiler gives the update's temporaries. A size
that departs from its law has its reason in `WHY`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from grpo_jax.benchmark.drawing import Curve, Panel, curves
from grpo_jax.benchmark.floors import SIZES, phase_work
from grpo_jax.benchmark.material import decoder_config
from grpo_jax.benchmark.programs import head_chunk, small_step
from grpo_jax.benchmark.results import new_directory, write_lines
from grpo_jax.benchmark.workloads import Workload
from grpo_jax.configure import ConfigError
from grpo_jax.stages.estimate import temporaries
from grpo_jax.stages.plant import Work

DEVICES = 8  # host devices that are made
REPEATS = 3
CLOSE = 0.25  # exponents that differ by less agree
_BATCH = {"prompts": 8, "prompt_length": 64, "generations": 8, "completion_length": 64}
MIDDLE = Workload("middle", 2, 128, 4, 2, 32, 512, 1024, **_BATCH)
PHASES = ("sample", "reference", "update")


class Point(NamedTuple):
    """A step as it is measured: its sizes, and how it is cut."""

    workload: Workload
    microbatches: int = 1
    devices: int = 1


class Axis(NamedTuple):
    """One size, its values, and what should follow."""

    name: str
    values: tuple[int, ...]
    point: Callable[[int], Point]
    law: str  # of time and memory, in words


def _sized(**sizes: int) -> Point:
    return Point(dataclasses.replace(MIDDLE, **sizes))


AXES = (
    Axis(
        "generations",
        (4, 8, 16, 32),
        lambda n: _sized(generations=n),
        "time a + b G: the prompt is computed once a group; memory as G",
    ),
    Axis(
        "completion_length",
        (32, 64, 128, 256),
        lambda n: _sized(completion_length=n),
        "time and memory a + b T + c T^2: every token attends to all before it, and scores of short rows are kept",
    ),
    Axis(
        "prompt_length",
        (32, 64, 128, 256),
        lambda n: _sized(prompt_length=n),
        "time and memory a + b T, b small: once a group, but every completion attends to it",
    ),
    Axis(
        "vocabulary",
        (1024, 4096, 16384, 65536),
        lambda n: _sized(vocabulary=n),
        "time a + b V; memory a + b V: logits of one chunk of time, and the head's gradient",
    ),
    Axis(
        "width",
        (64, 128, 256, 512),
        lambda n: _sized(width=n, heads=n // 32, kv_heads=n // 64, mlp=4 * n),
        "time between D (attention) and D^2 (all matrices); memory as D: activations",
    ),
    Axis(
        "microbatches",
        (1, 2, 4, 8),
        lambda n: Point(MIDDLE, microbatches=n),
        "time constant; memory as 1 / M, down to the gradients and a chunk of logits",
    ),
    Axis(
        "devices",
        (1, 2, 4, 8),
        lambda n: Point(MIDDLE, devices=n),
        "time constant: these devices share the same cores; memory of each as 1 / devices",
    ),
)

# Why a measured exponent departs from its law on CPUs, by axis and quantity: what to look for first where one does.
WHY = {
    ("vocabulary", "time"): "logits of many tokens over a large vocabulary outgrow the caches, and wait for memory",
    ("width", "time"): "small matrices are further below the machine's rate than large ones: less than operations do",
    ("devices", "time"): "matrix products of one device's rows are small, and so many devices wait for one another",
}


def draw_curves(out: Path, *, only: str = "", values: int = 4) -> Path:
    """Measure all axes, or those named in `only`; write curves.jsonl and curves.svg, print a table.

    Returns their directory. `values` bounds how many values of each axis are measured. Raises `ConfigError` for an
    axis that is not there.
    """
    wanted = [name for name in only.split(",") if name]
    unknown = set(wanted) - {axis.name for axis in AXES}
    if unknown:
        raise ConfigError(f"--only {only}: no curve {sorted(unknown)[0]}; choose of {', '.join(a.name for a in AXES)}")
    axes = [axis for axis in AXES if not wanted or axis.name in wanted]
    import jax

    if any(axis.name == "devices" for axis in axes):
        jax.config.update("jax_num_cpu_devices", DEVICES)
    folder = new_directory(out, "curves")
    known: dict[Point, dict[str, float]] = {}
    for axis in axes:
        for value in axis.values[:values]:
            point = axis.point(value)
            known[point] = known.get(point) or measure_point(point)
        print(f"{axis.name}: measured", flush=True)
    records = [
        {"kind": "point", "axis": axis.name, "value": value} | known[axis.point(value)]
        for axis in axes
        for value in axis.values[:values]
    ]
    laws = [law_of(axis, [known[axis.point(v)] for v in axis.values[:values]], values) for axis in axes]
    write_lines(folder / "curves.jsonl", [*records, *laws])
    with (folder / "curves.svg").open("x") as file:
        file.write(curves([panel for axis in axes for panel in panels(axis, known, values)]))
    show(laws)
    print(f"results: {folder}")
    return folder


def measure_point(point: Point) -> dict[str, float]:
    """Seconds of sampling, reference and update of a step, bytes of their temporaries, and operations."""
    import jax

    step = small_step(point.workload, microbatches=point.microbatches, devices=point.devices)
    with jax.set_mesh(step.mesh):
        found = {}
        result: Any = None
        for name in PHASES:
            compiled, call = step.programs[name](result)
            jax.block_until_ready(call())
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                result = jax.block_until_ready(call())
                times.append(time.perf_counter() - start)
            found[f"{name}_seconds"] = statistics.median(times)
            found[f"{name}_bytes"] = float(compiled.memory_analysis().temp_size_in_bytes)
    found["update_arrays"] = largest_arrays(point)
    work = phase_work(point.workload)
    sample = work["prefill"].operations + work["decode"].operations
    operations = {"sample": sample, "reference": work["reference"].operations, "update": work["update"].operations}
    return found | {f"{name}_operations": number for name, number in operations.items()}


def largest_arrays(point: Point) -> float:
    """Bytes of the update's largest arrays on a device, by arithmetic: the law of memory."""
    w, cuts = point.workload, point.microbatches * point.devices
    weights = (w.body + 2 * w.head) * SIZES[w.dtype] // point.devices
    work = Work(
        rows=w.rows // cuts,
        length=w.completion_length,
        prompts=w.prompts // cuts,
        prompt_length=w.prompt_length,
        chunk=head_chunk(w, point.microbatches, point.devices),
        gradient=weights,
        gradients=1 + (point.microbatches > 1),
    )
    return temporaries(decoder_config(w), work, tensor=1, platform="cpu")


def law_of(axis: Axis, points: Sequence[dict[str, float]], values: int) -> dict[str, Any]:
    """Exponents of time beside those of the operations, and of memory beside the law's; what departs is named."""
    sizes = axis.values[:values]
    fits = {}
    for name in PHASES:
        fits[f"{name}_time"] = exponent(sizes, [p[f"{name}_seconds"] for p in points])
        fits[f"{name}_operations"] = exponent(sizes, [p[f"{name}_operations"] for p in points])
    fits["update_memory"] = exponent(sizes, [p["update_bytes"] for p in points])
    gaps = {f"{name} time": fits[f"{name}_time"] - fits[f"{name}_operations"] for name in PHASES}
    fits["memory_law"] = exponent(sizes, [p["update_arrays"] for p in points])
    gaps["memory"] = fits["update_memory"] - fits["memory_law"]
    departs = [name for name, gap in gaps.items() if abs(gap) > CLOSE]
    reasons = {WHY.get((axis.name, name.split()[-1]), "not known") for name in departs}
    why = "; ".join(sorted(reasons))
    return {"kind": "law", "axis": axis.name, "law": axis.law, "departs": departs, "why": why} | fits


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The k of the best fit y = c x^k: the slope of a straight line through the logarithms."""
    a, b = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    spread = sum((v - mean_a) ** 2 for v in a)
    return sum((v - mean_a) * (w - mean_b) for v, w in zip(a, b, strict=True)) / spread


def panels(axis: Axis, known: dict[Point, dict[str, float]], values: int) -> list[Panel]:
    """Time and memory against one size; dashed is the law, drawn through the second point of the update."""
    sizes = axis.values[:values]
    points = [known[axis.point(v)] for v in sizes]
    times = [
        Curve(name, [(v, p[f"{name}_seconds"]) for v, p in zip(sizes, points, strict=True)])
        for name in ("update", "sample")
    ]
    base = points[1]["update_seconds"] / points[1]["update_operations"]
    law = Curve("operations", [(v, p["update_operations"] * base) for v, p in zip(sizes, points, strict=True)], True)
    memory = [(v, p["update_bytes"] / 1e6) for v, p in zip(sizes, points, strict=True)]
    per_byte = points[1]["update_bytes"] / points[1]["update_arrays"]
    arrays = [(v, p["update_arrays"] * per_byte / 1e6) for v, p in zip(sizes, points, strict=True)]
    follows = Curve("largest arrays", arrays, True)
    return [
        Panel(f"time: {axis.name}", axis.name, "s", [*times, law]),
        Panel(f"memory of the update: {axis.name}", axis.name, "MB", [Curve("update", memory), follows]),
    ]


def show(laws: Sequence[dict[str, Any]]) -> None:
    """Print exponents beside those of the laws."""
    table = Table(title="exponents, measured (law): time of each phase, and memory of the update")
    for column in ("size", "sample", "reference", "update", "memory", "departs", "law"):
        table.add_column(column, justify="left" if column in ("size", "departs", "law") else "right")
    for law in laws:
        times = (f"{law[f'{n}_time']:.2f} ({law[f'{n}_operations']:.2f})" for n in PHASES)
        memory = f"{law['update_memory']:.2f} ({law['memory_law']:.2f})"
        departs = ", ".join(law["departs"]) + (law["why"] and f": {law['why']}")
        table.add_row(law["axis"], *times, memory, departs or "-", law["law"])
    Console(width=170).print(table)
