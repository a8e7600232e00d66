"""The nearest change of a config that fits: settings that change how a run computes and not what.

In this order: micro-batches, remat, the head's chunk; of the sampler the weights, then the rows decoded at once; then
another mesh; then more devices. Which change to try is guessed by arithmetic (`estimate.py`), and what is proposed has
been compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from grpo_jax.config import Config, MeshConfig
from grpo_jax.configure import difference, tree_of
from grpo_jax.sampler.slots import DecodeError, lanes_and_rows
from grpo_jax.sharding import ShardingError, batch_shards
from grpo_jax.stages.ahead import CompileError
from grpo_jax.stages.estimate import estimated
from grpo_jax.stages.footprints import Plant
from grpo_jax.stages.plan import USABLE, Plan, Study, open_plan
from grpo_jax.stages.scored_footprints import LINE_12
from grpo_jax.stages.targets import Target
from grpo_jax.training.step import MicrobatchError, group_cuts

ROUNDS = 6  # of compiling on one mesh
SMALLEST_CHUNK = 16
UNRUNNABLE = (ShardingError, DecodeError, MicrobatchError)


class Knob(NamedTuple):
    """A setting that saves memory, and the values it may take instead, from the nearest on."""

    key: str
    values: Callable[[Config, int], Iterable[Any]]  # of a config on so many batch shards


def _rl_microbatches(c: Config, shards: int) -> Iterator[int]:
    P, G = c.rl.prompts_per_step, c.rl.num_generations
    for M in range(c.rl.microbatches + 1, P * G + 1):
        try:
            group_cuts(P, G, M, shards=shards)
        except MicrobatchError:
            continue
        yield M


def _sft_microbatches(c: Config, shards: int) -> Iterator[int]:
    B = c.sft.batch_size
    yield from (M for M in range(c.sft.microbatches + 1, B + 1) if B % M == 0 and B // M % shards == 0)


def _remat(c: Config, shards: int) -> Iterator[str]:
    yield from ("full",) if c.model.remat != "full" else ()


def _halves(value: int) -> Iterator[int]:
    while value // 2 >= SMALLEST_CHUNK:
        yield (value := value // 2)


def _decode_rows(c: Config, shards: int) -> Iterator[int]:
    P, G = c.rl.prompts_per_step // c.rl.sample_parts, c.rl.num_generations
    R, M = lanes_and_rows(P, G, c.rl.decode_rows, shards=shards)
    yield from (R * m for m in range(M - 1, 0, -1) if R % shards == 0)


def _decode_weights(c: Config, shards: int) -> Iterator[str]:
    """Smaller copies, from `auto` on the smallest: which it is depends on the mesh."""
    yield from {"gathered": ("joined", "stored"), "stored": ()}.get(c.model.decode_weights, ("stored",))


def _reward_model_microbatches(section: str, c: Config, shards: int) -> Iterator[int]:
    B = attrgetter(f"{section}.batch_size")(c)
    least = attrgetter(f"{section}.microbatches")(c) + 1
    yield from (M for M in range(least, B + 1) if B % M == 0 and B // M % shards == 0)


def _batch_prompts(section: str, c: Config, shards: int) -> Iterator[int]:
    now = attrgetter(f"{section}.batch_prompts")(c)
    yield from (p for p in range(now - 1, 0, -1) if now % p == 0 and p % shards == 0)


REMAT = Knob("model.remat", _remat)
WEIGHTS = Knob("model.decode_weights", _decode_weights)
SCORING = (
    Knob("rl.microbatches", _rl_microbatches),
    Knob("rl.head_chunk", lambda c, shards: _halves(c.rl.head_chunk)),
)
CONTINUED = "rl.continue_reward_model"
LABELLED, EVALUATED, FRESH = (
    Knob(f"{section}.batch_prompts", partial(_batch_prompts, section)) for section in ("label", "evaluation", CONTINUED)
)
LEARNT, LEARNT_ON = (
    Knob(f"{section}.microbatches", partial(_reward_model_microbatches, section))
    for section in ("reward_model", CONTINUED)
)
KNOBS = {
    "sft: update": (
        Knob("sft.microbatches", _sft_microbatches),
        REMAT,
        Knob("sft.head_chunk", lambda c, shards: _halves(c.sft.head_chunk)),
    ),
    "rl: sampling": (WEIGHTS, Knob("rl.decode_rows", _decode_rows)),
    "rl: old log-probabilities": SCORING,
    "rl: reference log-probabilities": SCORING,
    "rl: update": (SCORING[0], REMAT, SCORING[1]),
    "rl: fused steps": (SCORING[0], REMAT, SCORING[1], WEIGHTS, Knob("rl.decode_rows", _decode_rows)),
    "label: solutions": (WEIGHTS, LABELLED),
    "label: completions of the longest": (WEIGHTS, LABELLED),
    "reward_model: update": (LEARNT, REMAT),
    f"{LINE_12}: solutions": (WEIGHTS, FRESH),
    f"{LINE_12}: completions of the longest": (WEIGHTS, FRESH),
    f"{LINE_12}: update": (LEARNT_ON, REMAT),
    "evaluation: sampling": (WEIGHTS, EVALUATED),
    "evaluation: scores of a reward model": (EVALUATED,),
}


def nearest(study: Study, asked: Plan, targets: Iterable[Target]) -> Plan | None:
    """A plan that fits, of a config near to the one asked for; None if none was found.

    `targets` are the devices asked for, and then more of them if there can be more.
    """
    search = _Search(study, asked)
    for target in targets:
        for mesh in meshes(asked.plant.config.mesh, asked.plant.mesh.shape, len(target.devices)):
            config = dataclasses.replace(asked.plant.config, mesh=mesh)
            if found := search.on_mesh(config, target):
                return found
    return None


def flags(asked: Plan, found: Plan) -> list[str]:
    """What to add to the command line to come from one plan to the other, device count included."""
    lines = difference(tree_of(asked.plant.config), tree_of(found.plant.config))
    changed = [(line.partition(": ")[0], line.rpartition(" -> ")[2]) for line in lines]
    words = [f"--{key} {value.strip(chr(39))}" for key, value in changed]
    more = len(found.target.devices)
    return ([f"--devices {more}"] if more != len(asked.target.devices) else []) + words


def meshes(config: MeshConfig, present: dict[str, int], devices: int) -> list[MeshConfig]:
    """All ways to arrange the devices, the config's own first, then by how much the axes change; -1 stays -1."""
    sizes = [d for d in range(1, devices + 1) if devices % d == 0]
    ways = [
        (data, devices // data // tensor, tensor)
        for data in sizes
        for tensor in sizes
        if devices % (data * tensor) == 0
    ]

    def distance(way: tuple[int, int, int]) -> tuple[float, ...]:
        data, _, tensor = way
        return (_ratio(tensor, present["tensor"]) + _ratio(data, present["data"]), data, tensor)

    return [
        dataclasses.replace(
            config,
            **{
                axis: size
                for axis, size in zip(("data", "fsdp", "tensor"), way, strict=True)
                if getattr(config, axis) != -1
            },
        )
        for way in sorted(ways, key=distance)
    ]


def _ratio(a: int, b: int) -> float:
    return max(a, b) / min(a, b) - 1


class _Search:
    """What compiling has taught so far: by phase, temporaries as compiled for each byte of the estimate."""

    def __init__(self, study: Study, asked: Plan):
        self.study, self.asked = study, asked
        self.ratios: dict[str, float] = {}
        self.learn(asked)

    def learn(self, plan: Plan) -> None:
        """Take over what a plan has measured."""
        for measured in plan.measured:
            if work := measured.phase.work:
                estimate = estimated(plan.plant, work)
                self.ratios[measured.phase.name] = measured.footprint.temporaries / estimate

    def on_mesh(self, config: Config, target: Target) -> Plan | None:
        """A plan that fits on one mesh, by rounds of guessing and compiling; None if none is in sight."""
        suspects = [measured.phase.name for measured in self.asked.too_large]
        for _ in range(ROUNDS):
            try:
                changed = self.mend(config, target)
            except UNRUNNABLE:
                return None
            if changed is None:
                return None
            try:
                plan = self.study.plan(self.plant(changed, target), target, first=suspects, whole=False)
            except CompileError:
                return None
            self.learn(plan)
            if not plan.too_large:
                return plan
        return None

    def mend(self, config: Config, target: Target) -> Config | None:
        """The config with the knobs of each phase turned until it seems to fit; None if that is not enough."""
        shards = batch_shards(self.plant(config, target).mesh)
        for measured in self.asked.measured:
            name = measured.phase.name
            config = turn(config, KNOBS.get(name, ()), shards, partial(self.seems_to_fit, name, target))
            if config is None:
                return None
        return config

    def seems_to_fit(self, name: str, target: Target, config: Config) -> bool:
        """Whether a phase fits: as compiled if it was, else by ratio."""
        plant = self.plant(config, target)
        phase = next(phase for phase in self.study.phases(plant) if phase.name == name)
        if known := self.study.known(phase):
            return Plan(plant, target, [known]).too_large == []
        if phase.work is None:
            return sum(phase.held) <= USABLE * target.memory
        estimate = estimated(plant, phase.work)
        return sum(phase.held) + self.ratios.get(name, 1.0) * estimate <= USABLE * target.memory

    def plant(self, config: Config, target: Target) -> Plant:
        return open_plan(config, self.asked.plant.decoder, target)


def turn(config: Config, knobs: Iterable[Knob], shards: int, fits: Callable[[Config], bool]) -> Config | None:
    """Turn knobs one after the other, each no further than needed, until it fits; None if all are not enough."""
    if fits(config):
        return config
    changed, turned = config, []
    for knob in knobs:
        values = list(knob.values(changed, shards))
        enough = next((v for v in values if fits(with_value(changed, knob.key, v))), None)
        if enough is not None:
            return _take_back(with_value(changed, knob.key, enough), config, turned, fits)
        if values:
            changed = with_value(changed, knob.key, values[-1])
            turned.append(knob.key)
    return None


def _take_back(changed: Config, config: Config, keys: Iterable[str], fits: Callable[[Config], bool]) -> Config:
    """Undo what was turned in vain."""
    for key in keys:
        without = with_value(changed, key, attrgetter(key)(config))
        changed = without if fits(without) else changed
    return changed


def with_value(config: Any, key: str, value: Any) -> Any:
    """The config, or a section of one, with another value of `section.name`."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: with_value(getattr(config, name), rest, value) if rest else value})
