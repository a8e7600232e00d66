"""The command `plan`: measure what was asked for, look for what fits if it does not, and say so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, NamedTuple

from rich.console import Console

from grpo_jax.config import Config
from grpo_jax.models.parameters import count
from grpo_jax.reporting.plan_table import show_plan, wide_console
from grpo_jax.sharding import batch_shards
from grpo_jax.stages.arithmetic import arithmetic, problems_here
from grpo_jax.stages.budget import choose
from grpo_jax.stages.plan import USABLE, Measured, Plan, Study, open_plan, open_shape
from grpo_jax.stages.policy import describe_adapters
from grpo_jax.stages.remedies import flags, nearest
from grpo_jax.stages.targets import Target, gpu_target, tpu_target

GPU_SHARE = 0.75  # of a GPU's memory, which JAX takes unless it is told otherwise
MOST_DEVICES = 8  # times as many as were asked for, where what was asked for has no remedy


class PlanError(ValueError):
    """A pipeline that does not fit its devices; the message says what does."""

    exit_code = 2


class Request(NamedTuple):
    """What to plan, and for what."""

    config: Config
    only: Collection[str]
    devices: int
    memory: int | None  # bytes of a device; None: 80 GB, or what a TPU is known to have
    topology: str | None
    as_json: bool


def plan(request: Request) -> None:
    """Print a plan. Raises `PlanError`, with the nearest change that does, if it does not fit."""
    progress, out = wide_console(stderr=True), wide_console()
    note = partial(progress.print, highlight=False, markup=False, soft_wrap=True)
    decoder = open_shape(request.config, note)
    target = open_target(request, request.devices)
    study = Study(request.only, lambda name: compiling(name, progress))
    plant = open_plan(request.config, decoder, target)
    plant = plant._replace(config=choose(plant, target.memory))
    asked = study.plan(plant, target)
    found = None
    if asked.too_large:
        note(f"{complaint(asked)}; looking for the nearest change that fits")
        found = nearest(study, asked, targets(request, target))
    content = as_content(asked, request) | {"remedy": found and remedy(asked, found, request)}
    if request.as_json:
        out.file.write(json.dumps(content, indent=1) + "\n")
    else:
        show_plan(content, out)
        for line in verdict(asked):
            out.print(f"\n{line}", highlight=False, markup=False, soft_wrap=True)
        if found:
            out.print(f"\nwith {' '.join(flags(asked, found))}:\n", highlight=False, markup=False, soft_wrap=True)
            show_plan(content["remedy"], out)
            for line in verdict(found):
                out.print(f"\n{line}", highlight=False, markup=False, soft_wrap=True)
    if asked.too_large:
        raise PlanError(refusal(asked, found))


def open_target(request: Request, devices: int) -> Target:
    """The devices to compile for; raises `TargetError`."""
    if request.topology:
        return tpu_target(request.topology, request.memory)
    return gpu_target(devices, request.memory or 80 * 10**9)


def targets(request: Request, asked: Target) -> Iterator[Target]:
    """The devices asked for, then twice, four and eight times as many; of TPUs only those of the topology."""
    yield asked
    count = 2 * len(asked.devices)
    while not request.topology and count <= MOST_DEVICES * len(asked.devices):
        yield open_target(request, count)
        count *= 2


@contextlib.contextmanager
def compiling(name: str, console: Console) -> Iterator[Any]:
    """Show what is compiled and for how long, and leave a line with the result."""
    result: list[str] = []
    if not console.is_terminal:
        console.print(f"compiling {name} ...", highlight=False, markup=False)
    with console.status(f"compiling {name}"):
        yield result.append
    for words in result:
        console.print(f"{name}: {words}", highlight=False, markup=False, soft_wrap=True)


def as_content(plan: Plan, request: Request) -> dict[str, Any]:
    """A plan as plain values, bytes and operations of a device."""
    c, decoder, target = plan.plant.config, plan.plant.decoder, plan.target
    adapters = describe_adapters(decoder) if decoder.lora else ""
    return {
        "model": {
            "name": c.model.model_name_or_path or "model.architecture",
            "family": decoder.family,
            "parameters": count(decoder),
            "dtype": decoder.dtype,
            "remat": decoder.remat,
            "adapters": adapters,
        },
        "target": {
            "name": target.name,
            "devices": len(target.devices),
            "memory": target.memory,
            "compiler": target.compiler,
            "upper_bound": target.upper_bound,
        },
        "mesh": dict(plan.plant.mesh.shape),
        "batch": arithmetic(c, batch_shards(plan.plant.mesh), request.only, problems_here),
        "phases": [as_row(plan, measured) for measured in plan.measured],
        "fits": not plan.too_large,
    }


def as_row(plan: Plan, measured: Measured) -> dict[str, Any]:
    """A phase as plain values; `batch` is all that is neither of the others, `temporaries` are without the cache."""
    held, takes = measured.phase.held, measured.footprint
    known = held.parameters + held.optimizer + held.reference + held.reward_models
    return {
        "name": measured.phase.name,
        "parameters": held.parameters,
        "optimizer": held.optimizer,
        "reference": held.reference,
        "reward_models": held.reward_models,
        "cache": measured.cache,
        "batch": max(takes.peak - takes.temporaries - known, 0),
        "temporaries": takes.temporaries - measured.cache,
        "peak": takes.peak,
        "share": takes.peak / plan.target.memory,
        "flops": takes.flops,
        "seconds": measured.seconds,
        "fits": plan.fits(measured),
        "refused": measured.refused,
    }


def remedy(asked: Plan, found: Plan, request: Request) -> dict[str, Any]:
    """A plan that fits, and the way to it."""
    return {"flags": flags(asked, found)} | as_content(found, request)


def verdict(plan: Plan) -> list[str]:
    """Whether it fits, in words."""
    if plan.too_large:
        return [f"{'may' if plan.target.upper_bound else 'does'} not fit: {complaint(plan)}"]
    most = max(plan.measured, key=lambda measured: measured.footprint.peak)
    share = most.footprint.peak / plan.target.memory
    lines = [f"fits: {most.phase.name} takes most, {share:.0%} of a device's memory"]
    if plan.target.kind != "tpu" and share > 0.95 * GPU_SHARE:
        lines.append(
            f"JAX takes {GPU_SHARE:.0%} of a GPU unless it is told: set XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE}"
        )
    return lines


def complaint(plan: Plan) -> str:
    """What does not fit, and by how much."""
    room = USABLE * plan.target.memory
    parts = [
        f"{measured.phase.name} takes {'more than ' if measured.refused else ''}{measured.footprint.peak / 1e9:.1f} GB"
        for measured in plan.too_large
    ]
    return (
        f"{', '.join(parts)}; a device has {room / 1e9:.1f} GB to use ({USABLE:.0%} of {plan.target.memory / 1e9:.4g})"
    )


def refusal(asked: Plan, found: Plan | None) -> str:
    """That it does not fit, and what does."""
    doubt = " (by an upper bound)" if asked.target.upper_bound else ""
    if found:
        return f"does not fit{doubt}: {complaint(asked)}\nthe nearest change that fits: {' '.join(flags(asked, found))}"
    held = max(sum(measured.phase.held) for measured in asked.measured) * len(asked.target.devices)
    return (
        f"does not fit{doubt}: {complaint(asked)}\n"
        "no micro-batches, remat, head_chunk, decode_rows or mesh that fit were found; weights, moments and reference "
        f"alone are {held / 1e9:.0f} GB in all: take more devices, fewer prompts_per_step or num_generations, "
        "shorter completions, or adapters (model.lora)"
    )
