"""What the phases of a pipeline are made of: the devices, the arrays that lie on them, and the work of a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.config import Config, SamplingConfig
from grpo_jax.models.cache import empty_cache
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.decoding import decode_bytes, decode_config
from grpo_jax.models.lora import attach
from grpo_jax.sampler.draw import distribution_of
from grpo_jax.sampler.sample import Sampling, cache_blocks
from grpo_jax.sampler.slots import lanes_and_rows, most_steps
from grpo_jax.sharding import batch_shards, named, replicated, run_key
from grpo_jax.stages.ahead import Ahead, compile_ahead
from grpo_jax.stages.policy import abstract, abstract_frozen
from grpo_jax.stages.programs import sampling_program
from grpo_jax.training.state import abstract_state
from grpo_jax.types import Prompts, Sequences, TrainState


class Held(NamedTuple):
    """Bytes on each device of what stays there while programs come and go."""

    parameters: int  # of the policy: all that is trained, and a frozen base
    optimizer: int = 0
    reference: int = 0
    batch: int = 0  # the experience of the step before
    reward_models: int = 0  # that score completions, or the one that is trained


class Work(NamedTuple):
    """What decides a program's temporaries: the rows that a device has in hand at once, and their length."""

    rows: int  # on a device at once
    length: int  # of a row
    prompts: int = 0  # on a device at once, whose completions these rows are; 0: rows without a shared prompt
    prompt_length: int = 0
    chunk: int = 1  # time steps whose logits are in memory at once
    gradient: int = 0  # bytes on a device; 0: a forward pass only
    gradients: int = 1  # in memory at once
    cache: int = 0  # bytes of keys and values that the sampler keeps on a device
    weights: int = 0  # bytes of the decode loop's own copy of the weights
    sampled: Work | None = None  # of a program that samples what it then learns from: that part of it

    @property
    def keys_and_values(self) -> int:
        """Bytes of keys and values that the sampler keeps, itself the program or a part of it."""
        return self.cache if self.sampled is None else self.sampled.cache


class Phase(NamedTuple):
    """A part of the pipeline in which one program runs."""

    name: str
    held: Held
    beside: int  # of what is held, the bytes that the program neither takes nor returns
    work: Work | None  # None: it computes nothing that needs memory
    key: Hashable  # equal for equal programs for equal devices
    compile: Callable[[], Ahead] | None  # None: arrays are made, and no program runs


class Plant(NamedTuple):
    """What all phases share."""

    config: Config
    decoder: DecoderConfig
    mesh: Mesh
    trained: Any  # abstract: all weights, or adapters
    frozen: Any | None  # abstract: the base of the adapters

    @property
    def model(self) -> Decoder:
        return Decoder(self.decoder)

    @property
    def policy(self) -> Any:
        """What sampler and scoring take, in abstract form."""
        return attach(self.frozen, self.trained)

    def array(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """An array whose first axis is split over the batch shards."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named(self.mesh, "batch"))

    def sequences(self, rows: int, length: int) -> Sequences:
        """Token rows [B, T]."""
        return Sequences(*[self.array((rows, length))] * 3)

    def prompts(self, count: int, length: int | None = None) -> Prompts:
        """Prompts [P, Tp], of the longest there may be or another length."""
        return Prompts(self.sequences(count, length or self.config.prompt.max_prompt_length), self.array((count,)))

    def chunk(self, steps: int, tree: Any) -> Any:
        """The arrays of a step, of several steps: the second axis is split over the batch shards."""
        sharding = named(self.mesh, None, "batch")
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype, sharding=sharding), tree)

    def state(self, optimizer: Any) -> TrainState:
        """The state that the trainer starts from."""
        return abstract_state(self.trained, optimizer, self.mesh)

    def key(self, *more: Hashable, remat: bool = False, decode: bool = False) -> Hashable:
        """What every program depends on, and some more; `remat` and decode settings only what has such a part."""
        decoder = self.decoder if remat else dataclasses.replace(self.decoder, remat="none")
        if not decode:
            decoder = dataclasses.replace(decoder, decode_layers="auto", decode_weights="auto")
        return (decoder, tuple(self.mesh.shape.items()), self.mesh.devices.flat[0].platform, *more)


def open_plant(config: Config, decoder: DecoderConfig, mesh: Mesh) -> Plant:
    """Shapes and layouts of what is trained; raises `ShardingError` if the mesh does not divide it."""
    return Plant(config, decoder, mesh, abstract(decoder, mesh), abstract_frozen(decoder, mesh))


def abstract_sampling(
    config: SamplingConfig, num_generations: int, decode_rows: int = 0, weights: Literal["same", "int8"] = "same"
) -> Sampling:
    """The sampler's settings; which tokens end a completion changes no shape."""
    c = config
    distribution = distribution_of(c)
    return Sampling(
        distribution,
        num_generations,
        c.max_completion_length,
        eos_ids=(0,),
        pad_id=0,
        decode_rows=decode_rows,
        cache_block=c.cache_block,
        weights=weights,
    )


def sampling_work(plant: Plant, prompts: int, sampling: Sampling, length: int | None = None) -> Work:
    """The rows that are decoded at once, with their keys and values and those of all prompts. Raises `DecodeError`.

    Prompts are of the longest there may be or another `length`.
    """
    G, Tc = sampling.num_generations, sampling.max_completion_length
    Tp = length or plant.config.prompt.max_prompt_length
    R, M = lanes_and_rows(prompts, G, sampling.decode_rows, shards=batch_shards(plant.mesh))
    P, B = on_a_device(plant, prompts + (R if prompts > R else 0)), on_a_device(plant, R * M)
    caches = jax.eval_shape(lambda: [empty_cache(plant.decoder, P, Tp), empty_cache(plant.decoder, B, Tc)])
    values = sum(x.size * x.dtype.itemsize for cache in caches for x in jax.tree.leaves((cache.k, cache.v)))
    sizes = dict(plant.mesh.shape)
    with jax.set_mesh(plant.mesh):  # for its platform
        layout = decode_config(plant.decoder, sizes, slots=R * M * Tc, weights=sampling.weights).decode_weights
    if sampling.weights == "int8" and layout == "stored":  # integers are made whether or not they are joined
        layout = "joined"
    weights = decode_bytes(plant.decoder, layout, sizes, weights=sampling.weights)
    return Work(B, Tc, P, Tp, cache=values // sizes["tensor"], weights=weights)


def longest_decode(plant: Plant, prompts: int, sampling: Sampling) -> tuple[int, ...]:
    """Steps of a decode loop if no completion ends early: of the one loop, or of each of those that follow another.

    Where lanes take several prompts the loop over tokens is in another (`decode_loop`), which is left out: (1, steps).
    """
    G, Tc = sampling.num_generations, sampling.max_completion_length
    R, M = lanes_and_rows(prompts, G, sampling.decode_rows, shards=batch_shards(plant.mesh))
    refills = (turns := prompts // R) > 1 or M < G
    blocks = 1 if refills else len(cache_blocks(Tc, sampling.cache_block))
    steps = -(-most_steps(turns, G, M, Tc) // blocks)
    return (1, steps) if turns > 1 else (steps,)


def on_a_device(plant: Plant, rows: int) -> int:
    """Rows of a batch that a device has; shards that do not divide them are filled up."""
    return -(-rows // batch_shards(plant.mesh))


def sampling_phase(
    plant: Plant, stage: str, held: Held, prompts: int, sampling: Sampling, *, length: int | None = None, what: str = ""
) -> Phase:
    """A stage's sampling with nothing but the policy, beside what is held."""
    key = jax.eval_shape(lambda: run_key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(plant.mesh))
    longest = length or plant.config.prompt.max_prompt_length
    return Phase(
        f"{stage}: {what or 'sampling'}",
        held,
        sum(held) - held.parameters,
        sampling_work(plant, prompts, sampling, length),
        plant.key("sampling", prompts, longest, sampling, decode=True),
        partial(
            compile_ahead,
            sampling_program(plant.model, sampling),
            plant.policy,
            plant.prompts(prompts, length),
            key,
            0,
            mesh=plant.mesh,
            longest=longest_decode(plant, prompts, sampling),
        ),
    )
