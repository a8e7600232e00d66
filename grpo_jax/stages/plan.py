"""What a pipeline would take on devices that are not here: each phase compiled ahead of time, the sum, and a verdict.

A plan that does not fit is compiled again with the nearest change that does (`remedies.py`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Hashable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from grpo_jax.config import Config
from grpo_jax.data.tokenizer import character_tokenizer, load_tokenizer
from grpo_jax.models.attention import AUTO
from grpo_jax.models.decoder import DecoderConfig, from_architecture
from grpo_jax.models.decoding import UNROLLED
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.sharding import ShardingError, batch_shards, make_mesh
from grpo_jax.stages.ahead import Footprint
from grpo_jax.stages.footprints import Phase, Plant, open_plant, phases
from grpo_jax.stages.policy import alphabet, decoder_options, read_decoder_config
from grpo_jax.stages.targets import Target

USABLE = 0.95  # of a device's memory: the rest is for gaps between buffers, programs, and the runtime itself


class Measured(NamedTuple):
    """A phase and what its program takes."""

    phase: Phase
    footprint: Footprint
    refused: bool  # by the compiler, as too large
    seconds: float  # to compile; 0 for one that was compiled before

    @property
    def cache(self) -> int:
        """Bytes of keys and values, part of the temporaries."""
        return min(self.phase.work.keys_and_values, self.footprint.temporaries) if self.phase.work else 0


class Plan(NamedTuple):
    """All phases of a pipeline on a target."""

    plant: Plant
    target: Target
    measured: list[Measured]

    def fits(self, measured: Measured) -> bool:
        """Whether a phase fits its devices."""
        return not measured.refused and measured.footprint.peak <= USABLE * self.target.memory

    @property
    def too_large(self) -> list[Measured]:
        """The phases that do not fit."""
        return [measured for measured in self.measured if not self.fits(measured)]


class Study:
    """Plans of one model, whose programs are compiled once however many plans they are part of.

    `say(what)` is entered while a program compiles, and returns a function to call with the result in words.
    """

    def __init__(self, only: Collection[str], say: Callable[[str], AbstractContextManager[Callable[[str], None]]]):
        self.only, self._say = only, say
        self._known: dict[Hashable, Measured] = {}

    def phases(self, plant: Plant) -> list[Phase]:
        """The phases of a pipeline; raises `ShardingError` and others for settings that cannot be run."""
        check_batches(plant)
        return phases(plant, self.only)

    def known(self, phase: Phase) -> Measured | None:
        """What a phase takes, if it was compiled before."""
        found = self._known.get(phase.key)
        if found is None:
            return None
        return found._replace(phase=phase, footprint=found.footprint._replace(beside=phase.beside), seconds=0.0)

    def measure(self, phase: Phase) -> Measured:
        """What a phase takes; compiles its program if that is new. Raises `CompileError`."""
        if phase.compile is None:
            return Measured(phase, Footprint(0, 0, 0, 0, phase.beside, 0.0, 0.0, 0.0), False, 0.0)
        if found := self.known(phase):
            return found
        start = time.perf_counter()
        with self._say(phase.name) as done:
            ahead = phase.compile()
            seconds = time.perf_counter() - start
            measured = Measured(phase, ahead.footprint(phase.beside), ahead.compiled is None, seconds)
            done(f"{in_words(measured)}, compiled in {seconds:.0f} s")
        self._known[phase.key] = measured
        return measured

    def plan(self, plant: Plant, target: Target, *, first: Collection[str] = (), whole: bool = True) -> Plan:
        """Measure all phases, those named `first` before the others; if not `whole`, up to one that does not fit."""
        plan = Plan(plant, target, [])
        ordered = self.phases(plant)
        for phase in sorted(ordered, key=lambda phase: phase.name not in first):
            plan.measured.append(self.measure(phase))
            if plan.too_large and not whole:
                break
        names = [phase.name for phase in ordered]
        plan.measured.sort(key=lambda measured: names.index(measured.phase.name))
        return plan


def in_words(measured: Measured) -> str:
    """A phase's peak, or that the compiler refused it."""
    size = f"{measured.footprint.peak / 1e9:.1f} GB a device"
    return f"refused by the compiler as too large: {size} or more" if measured.refused else size


def check_batches(plant: Plant) -> None:
    """Raise `ShardingError` for a batch that the mesh does not divide, as the stages do."""
    c, shards = plant.config, batch_shards(plant.mesh)
    again = c.rl and c.rl.continue_reward_model
    sizes = {
        "sft.batch_size": c.sft and c.sft.batch_size,
        "each of sft.microbatches": c.sft and c.sft.batch_size // (c.sft.microbatches or 1),
        "label.batch_prompts": c.label and c.label.batch_prompts,
        "reward_model.batch_size": c.reward_model and c.reward_model.batch_size,
        "each of reward_model.microbatches": c.reward_model
        and c.reward_model.batch_size // c.reward_model.microbatches,
        "rl.prompts_per_step": c.rl and c.rl.prompts_per_step,
        "each of rl.sample_parts": c.rl and c.rl.prompts_per_step // c.rl.sample_parts,
        "rl.continue_reward_model.batch_prompts": again and again.batch_prompts,
        "rl.continue_reward_model.batch_size": again and again.batch_size,
        "each of rl.continue_reward_model.microbatches": again and again.batch_size // again.microbatches,
        "evaluation.batch_prompts": c.evaluation and c.evaluation.batch_prompts,
    }
    for key, size in sizes.items():
        if size and size % shards:
            raise ShardingError(f"{key}: {size} rows cannot be split over {shards} batch shards; choose a multiple")


def open_shape(config: Config, note: Callable[[str], None]) -> DecoderConfig:
    """The decoder's shape, from config.json alone; weights and tokenizer need not be there.

    Raises `ModelFolderError` if that file is not to be had.
    """
    model = config.model
    if model.model_name_or_path:
        folder = shape_folder(model.model_name_or_path, note)
        return read_decoder_config(
            dataclasses.replace(config, model=dataclasses.replace(model, model_name_or_path=folder))
        )
    name = model.tokenizer_name_or_path
    tokenizer = load_tokenizer(name, note) if name else character_tokenizer(alphabet(config))
    return from_architecture(model.architecture, vocab_size=len(tokenizer), **decoder_options(config))


def shape_folder(name: str, note: Callable[[str], None]) -> str:
    """A directory with the model's config.json, which alone is fetched if the name is one of the hub."""
    if Path(name).expanduser().is_dir():
        return name
    from huggingface_hub import hf_hub_download

    note(f"fetching config.json of {name}")
    try:
        return str(Path(hf_hub_download(name, "config.json")).parent)
    except Exception as error:  # the client raises many kinds; all mean that the file is not here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFolderError(
            f"model.model_name_or_path: {name} is no directory here, and the Hugging Face hub did not give its "
            f"config.json ({reason}); a plan needs that file alone: --model.model_name_or_path DIR, where DIR holds it"
        ) from error


def open_plan(config: Config, decoder: DecoderConfig, target: Target) -> Plant:
    """The pipeline laid out on the devices of a target; the decoder computed as the config says."""
    decoder = dataclasses.replace(decoder, **decoder_options(config))
    if target.kind == "cpu":  # as on the GPUs that are stood in for
        if decoder.num_experts and decoder.experts_kernel == "auto":
            decoder = dataclasses.replace(decoder, experts_kernel="blocks")
        if decoder.decode_layers == "auto":
            layers = "unroll" if decoder.num_layers <= UNROLLED else "scan"
            decoder = dataclasses.replace(decoder, decode_layers=layers)
        if decoder.attention_kernel == "auto":
            decoder = dataclasses.replace(decoder, attention_kernel=AUTO.get("gpu", "xla"))
    return open_plant(config, decoder, make_mesh(config.mesh, target.devices))
