"""Micro-batches and head chunks that a config leaves open (0): the largest that a device's memory or cache allows.

On accelerators the fewest micro-batches (of sorted rows as many as pad little), then the longest chunk, whose phases
fit by arithmetic (`estimate.py`), with headroom for what the arithmetic does not see. A CPU has memory enough, but is
faster where a micro-batch and a block of logits stay near its caches. What is chosen depends on shapes and memory
alone, and is kept in the run's config.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax

from grpo_jax.config import Config
from grpo_jax.sharding import agree, batch_shards
from grpo_jax.stages.estimate import estimated
from grpo_jax.stages.footprints import Plant, phases
from grpo_jax.stages.plan import USABLE
from grpo_jax.stages.programs import algorithm_of
from grpo_jax.stages.remedies import KNOBS, turn, with_value
from grpo_jax.stages.scored_footprints import LINE_12

OPEN = ("microbatches", "head_chunk")
STAGES = ("sft", "rl")
LONGEST_CHUNK = 128  # time steps
MIB = 2**20
HEADROOM = 1.5  # times the estimate of temporaries: compilers hold more than the arithmetic sees
# Seconds of an update of 8 groups of 8 x 128 tokens (width 256, vocabulary 4096, float32), by groups at a time and rows
# of logits at once: 1 and 1024: 1.27, 1 and 512: 1.30, 2 and 2048: 1.28, 2 and 512: 1.34; half a group is slower, as
# its prompt is computed twice. Of groups of 16 x 256 (width 512, vocabulary 32768), one at a time: 512 rows 15.4,
# 128 rows 15.8.
CPU_TOKENS = 1024  # of a micro-batch on a device
CPU_LOGITS = 1024  # rows of logits at once
# Sorted rows are computed as far as the longest of their micro-batch reaches, so few micro-batches pad as few buckets
# do. Of long-tailed lengths (workload V: 64 rows, 16 buckets) 8, 16 and 32 micro-batches pad 24, 12 and 9 % of what is
# computed, and take 1.69, 1.41 and 1.48 s a step.
CUTS_A_BUCKET = 2  # micro-batches at least, for each bucket


class BudgetError(ValueError):
    """Settings that were left open, and nothing that fits; the message names the sizes and the remedy."""

    exit_code = 2


def device_memory() -> int | None:
    """Bytes that a device lets programs have, as process 0 sees it; None on CPUs, whose caches decide instead.

    Raises `BudgetError` if an accelerator does not say.
    """
    device = jax.local_devices()[0]
    limit = -MIB if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit", 0)
    limit = int(agree(limit // MIB))  # what is agreed upon goes as 32 bits
    if limit == 0:
        raise BudgetError(
            f"{device.device_kind} does not say how much memory it has; give numbers to what is 0 of "
            "sft.microbatches, sft.head_chunk, rl.microbatches and rl.head_chunk"
        )
    return None if limit < 0 else limit * MIB


def remembered(config: Config, saved: Mapping[str, Any], started: Collection[str]) -> Config:
    """The config with what a run has chosen before for its started stages, so that it goes on bit for bit."""
    for key in left_open(config):
        stage, name = key.split(".")
        if stage in started and (saved.get(stage) or {}).get(name):
            config = with_value(config, key, saved[stage][name])
    return config


def left_open(config: Config) -> list[str]:
    """The keys whose value is to be chosen."""
    present = [(stage, getattr(config, stage)) for stage in STAGES]
    return [f"{stage}.{name}" for stage, c in present if c for name in OPEN if getattr(c, name) == 0]


def choose(plant: Plant, memory: int | None, *, stages: Collection[str] = STAGES) -> Config:
    """The config with a number for all that was left open of these stages; `memory` of a device in bytes.

    Without memory (None) a CPU's caches decide. A batch that the mesh does not divide is left as it is, for the stage
    to refuse. Raises `BudgetError` where nothing fits.
    """
    config, keys, shards = plant.config, left_open(plant.config), batch_shards(plant.mesh)
    for stage in (stage for stage in STAGES if stage in stages):
        mine = [key for key in keys if key.startswith(stage)]
        if mine and _batch(config, stage) % shards == 0:
            now = plant._replace(config=config)
            config = _by_cache(now, stage, mine) if memory is None else _by_memory(now, stage, mine, memory)
    return config


def _by_memory(plant: Plant, stage: str, keys: list[str], memory: int) -> Config:
    """From whole batches and the longest chunk on, turn what is open no further than needed."""
    shards = batch_shards(plant.mesh)

    def needed(config: Config) -> float:
        found = phases(plant._replace(config=config), (stage,))
        mine = [phase for phase in found if not phase.name.startswith(LINE_12)]  # which has settings of its own
        scoring = [phase for phase in mine if phase.work and not phase.work.cache]  # as the sampler has
        works = [(sum(phase.held), phase.work._replace(sampled=None)) for phase in scoring]
        return max(held + HEADROOM * estimated(plant, work) for held, work in works)

    config = _start(plant, stage, keys, LONGEST_CHUNK)
    knobs = [knob for knob in KNOBS[f"{stage}: update"] if knob.key in keys]
    found = turn(config, knobs, shards, lambda config: needed(config) <= USABLE * memory)
    if found:
        return found
    for knob in knobs:
        for value in knob.values(config, shards):
            config = with_value(config, knob.key, value)
    least = ", ".join(f"{key} {getattr(getattr(config, stage), key.split('.')[1])}" for key in keys)
    raise BudgetError(
        f"{', '.join(keys)}: 0 leaves the choice to the run, and nothing fits: with {least} a device would need about "
        f"{needed(config) / 1e9:.1f} GB of its {memory / 1e9:.1f} GB; set model.remat to full, shorten the rows or "
        "spread them over more devices (launch/plan.py compiles what would fit), or give the numbers yourself"
    )


def _by_cache(plant: Plant, stage: str, keys: list[str]) -> Config:
    """Micro-batches of so few tokens that they stay near a core's caches, but of whole groups."""
    shards = batch_shards(plant.mesh)
    config = _start(plant, stage, keys, 1)
    for knob in KNOBS[f"{stage}: update"]:
        if knob.key == f"{stage}.microbatches" and knob.key in keys:
            ways = [config, *(with_value(config, knob.key, value) for value in knob.values(config, shards))]
            ways = [way for way in ways if _whole(way, stage)]
            small = (way for way in ways if _rows(way, stage, shards) * _time(way, stage) <= CPU_TOKENS)
            config = next(small, ways[-1])
    if f"{stage}.head_chunk" in keys:
        chunk = max(min(CPU_LOGITS // max(_rows(config, stage, shards), 1), _time(config, stage)), 1)
        config = with_value(config, f"{stage}.head_chunk", chunk)
    return config


def _start(plant: Plant, stage: str, keys: list[str], chunk: int) -> Config:
    """The fewest micro-batches and this chunk where these are open."""
    config = plant.config
    for key, value in ((f"{stage}.microbatches", _fewest(plant, stage)), (f"{stage}.head_chunk", chunk)):
        config = with_value(config, key, value) if key in keys else config
    return config


def _fewest(plant: Plant, stage: str) -> int:
    """One micro-batch; of rows sorted by length as many as pad little, or as many as there can be."""
    c, shards = plant.config.rl, batch_shards(plant.mesh)
    if stage == "sft" or c.length_buckets == 1:
        return 1
    together = c.num_generations // algorithm_of(c).rows  # that rows of a group come in
    units = c.prompts_per_step * together // shards
    ways = [M for M in range(1, units + 1) if units % M == 0]
    return next((M for M in ways if CUTS_A_BUCKET * c.length_buckets <= M), ways[-1])


def _batch(config: Config, stage: str) -> int:
    """What the mesh has to divide: rows, or prompts."""
    return config.sft.batch_size if stage == "sft" else config.rl.prompts_per_step


def _rows(config: Config, stage: str, shards: int) -> int:
    """Rows of a micro-batch on a device."""
    groups = 1 if stage == "sft" else config.rl.num_generations
    return _batch(config, stage) * groups // getattr(config, stage).microbatches // shards


def _time(config: Config, stage: str) -> int:
    """Tokens of a row."""
    return config.sft.max_length if stage == "sft" else config.rl.sampling.max_completion_length


def _whole(config: Config, stage: str) -> bool:
    """Whether micro-batches hold whole groups, whose prompt is then computed once."""
    return stage == "sft" or config.rl.length_buckets > 1 or config.rl.prompts_per_step % config.rl.microbatches == 0
