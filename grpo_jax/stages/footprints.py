"""The phases of a pipeline as programs to be compiled ahead of time, with what lies on the devices meanwhile.

The programs are those of `programs.py`, on abstract arrays laid out as the stages lay them out. A phase knows what its
program depends on, so that of two configs only the phases in which they differ need compiling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.config import Config, RLConfig, SamplingConfig
from grpo_jax.models.cache import empty_cache
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.decoding import decode_bytes, decode_config
from grpo_jax.models.lora import attach
from grpo_jax.rewards.reward import load_rewards
from grpo_jax.sampler.draw import distribution_of
from grpo_jax.sampler.sample import Sampling, cache_blocks
from grpo_jax.sampler.slots import lanes_and_rows, most_steps
from grpo_jax.sharding import batch_shards, named, replicated, run_key
from grpo_jax.stages.ahead import Ahead, compile_ahead, device_bytes
from grpo_jax.stages.fused import check_fused, column_shapes, num_slots
from grpo_jax.stages.policy import abstract, abstract_frozen
from grpo_jax.stages.programs import algorithm_of, fused_program, old_pass, rl_programs, sampling_program, sft_program
from grpo_jax.stages.step_shapes import StepShapes, step_shapes
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.state import abstract_state
from grpo_jax.training.step import group_cuts
from grpo_jax.types import Prompts, Sequences, TrainState

STAGES = ("sft", "rl", "evaluation")


class Held(NamedTuple):
    """Bytes on each device of what stays there while programs come and go."""

    parameters: int  # of the policy: all that is trained, and a frozen base
    optimizer: int = 0
    reference: int = 0
    batch: int = 0  # the experience of the step before


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

    def prompts(self, count: int) -> Prompts:
        """Prompts [P, Tp]."""
        return Prompts(self.sequences(count, self.config.prompt.max_prompt_length), self.array((count,)))

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


def phases(plant: Plant, only: Collection[str] = ()) -> list[Phase]:
    """What a pipeline runs on its devices, in order; `only` some of its sections.

    Left out is what has no temporaries to speak of: the copy of the reference, the making of experience.

    Raises `DecodeError` and `MicrobatchError` for parts that are not whole, `RewardError` for rewards that fused steps
    cannot ask.
    """
    wanted = [stage for stage in STAGES if getattr(plant.config, stage) and (not only or stage in only)]
    absent = {stage: None for stage in STAGES if stage not in wanted}
    plant = plant._replace(config=dataclasses.replace(plant.config, **absent))
    rl = _fused_rl if plant.config.rl and plant.config.rl.fused_steps else _rl
    of = {"sft": _sft, "rl": rl, "evaluation": _evaluation}
    return [_loading(plant, wanted), *(phase for stage in wanted for phase in of[stage](plant))]


def _loading(plant: Plant, wanted: Collection[str]) -> Phase:
    """Weights, created sharded slice by slice, then the optimizer's moments."""
    training = [stage for stage in wanted if stage != "evaluation"]
    moments = plant.state(make_optimizer(getattr(plant.config, training[0]).optimizer, 1)).opt_state if training else ()
    held = Held(device_bytes(plant.policy), device_bytes(moments))
    return Phase("loading", held, sum(held), None, plant.key("loading", *training[:1]), None)


def _sft(plant: Plant) -> Iterator[Phase]:
    c = plant.config.sft
    optimizer = make_optimizer(c.optimizer, c.max_steps)
    state = plant.state(optimizer)
    work = Work(
        rows=_on_a_device(plant, c.batch_size // c.microbatches),
        length=c.max_length,
        chunk=c.head_chunk,
        gradient=device_bytes(plant.trained),
        gradients=1 if c.microbatches == 1 else 2,
    )

    def compile_update() -> Ahead:
        update = sft_program(plant.model, c, optimizer, plant.trained)
        mask = plant.array((c.batch_size, c.max_length), jnp.bool_)
        rows = plant.sequences(c.batch_size, c.max_length)
        return compile_ahead(update, state, rows, mask, frozen=plant.frozen, mesh=plant.mesh)

    held = Held(device_bytes(plant.policy), device_bytes(state.opt_state))
    key = plant.key("sft", c.batch_size, c.max_length, c.microbatches, c.head_chunk, c.optimizer, remat=True)
    yield Phase("sft: update", held, 0, work, key, compile_update)


def held_by(plant: Plant, step: StepShapes) -> Held:
    """What lies on the devices while experience is collected."""
    moments = step.state.opt_state, getattr(step.state, "critic", None)  # with the value model, if there is one
    return Held(*(device_bytes(part) for part in (plant.policy, moments, step.reference, step.experience)))


def _rl(plant: Plant) -> Iterator[Phase]:
    c = plant.config.rl
    sampling = abstract_sampling(c.sampling, c.num_generations, c.decode_rows, c.rollout_weights)
    algorithm = algorithm_of(c)
    optimizer = make_optimizer(c.optimizer, c.iterations * c.max_steps * c.num_iterations)
    programs = rl_programs(plant.model, c, sampling, algorithm, optimizer, plant.trained)
    step = step_shapes(plant, optimizer, programs.freeze, algorithm)
    held = held_by(plant, step)
    _, moments, copy, batch = held
    trained = device_bytes(plant.trained)
    scored = scoring_work(plant, rows=algorithm.rows)
    gradients = {"gradient": trained, "gradients": _gradients(c)}
    P = c.prompts_per_step // c.sample_parts
    drawn = sampling_work(plant, P, sampling)
    batch_settings = ("rl", c.prompts_per_step, plant.config.prompt.max_prompt_length)
    options = (c.importance_cap, c.importance_mode, c.entropy_coef)
    settings = (*batch_settings, sampling._replace(decode_rows=0, cache_block=0), c.algorithm, *options)
    scoring = (*settings, c.microbatches, c.length_buckets, c.head_chunk)
    twice = old_pass(c, algorithm)
    ahead = partial(compile_ahead, mesh=plant.mesh, longest=_longest(plant, P, sampling))

    yield Phase(
        "rl: sampling",
        held,
        moments + copy + batch,
        drawn,
        plant.key(*batch_settings, P, sampling, "sample", decode=True),
        partial(ahead, programs.sample, plant.policy, plant.prompts(P), step.state.key, 0),
    )
    if twice:
        yield Phase(
            "rl: old log-probabilities",
            held,
            moments + copy + batch,
            scored,
            plant.key(*scoring, "old"),
            partial(ahead, programs.logprobs, plant.policy, step.rollout),
        )
    if algorithm.reference:
        yield Phase(
            "rl: reference log-probabilities",
            held,
            trained + moments + batch,
            scored,
            plant.key(*scoring, "reference"),
            partial(ahead, programs.logprobs, attach(plant.frozen, step.reference), step.rollout),
        )
    yield Phase(
        "rl: update",
        held._replace(batch=0),
        copy,
        scored._replace(**gradients),
        plant.key(*scoring, "update", c.optimizer, twice, remat=True),
        partial(ahead, programs.update, step.state, step.experience, frozen=plant.frozen),
    )


def _gradients(c: RLConfig) -> int:
    """Copies of the gradient that exist at once: with parts, or sorted rows, one is made while one is added to."""
    return 1 if c.microbatches == 1 and c.length_buckets == 1 else 2


def _fused_rl(plant: Plant) -> Iterator[Phase]:
    """Sampling, scoring and updates live in one program, which takes all that the stage holds; its work is a step's."""
    c, n = plant.config.rl, plant.config.rl.fused_steps
    sampling = abstract_sampling(c.sampling, c.num_generations, c.decode_rows, c.rollout_weights)
    algorithm = algorithm_of(c)
    optimizer = make_optimizer(c.optimizer, c.iterations * c.max_steps * c.num_iterations)
    programs = rl_programs(plant.model, c, sampling, algorithm, optimizer, plant.trained)
    rewards = load_rewards(c.rewards)
    check_fused(c, rewards)
    slots = num_slots(c)
    program = fused_program(programs, plant.model, c, algorithm, rewards, optimizer, plant.trained, num_slots=slots)
    step = step_shapes(plant, optimizer, programs.freeze, algorithm)
    batches = plant.chunk(n, (step.rollout.prompts, column_shapes(rewards, c)))
    number, each = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((n,), jnp.int32)
    scored = scoring_work(plant, rows=algorithm.rows)
    settings = (dataclasses.replace(c, source=None), sampling, slots, plant.config.prompt.max_prompt_length)
    yield Phase(
        "rl: fused steps",
        held_by(plant, step)._replace(batch=0),
        0,
        scored._replace(gradient=device_bytes(plant.trained), gradients=_gradients(c)),
        plant.key("fused", *settings, remat=True, decode=True),
        partial(
            compile_ahead,
            program,
            step.state,
            step.reference,
            *batches,
            number,
            number,
            each,
            frozen=plant.frozen,
            mesh=plant.mesh,
            longest=(1, _longest(plant, c.prompts_per_step, sampling)),
        ),
    )


def _evaluation(plant: Plant) -> Iterator[Phase]:
    """The samples of each problem; greedy decoding has a row a problem and takes less."""
    config, c = plant.config, plant.config.evaluation
    held = Held(device_bytes(plant.policy))
    if config.rl is not None and config.rl.eval_steps:  # between steps, beside all that these need
        held = next(phase.held for phase in _rl(plant) if phase.name == "rl: sampling")
    sampling = abstract_sampling(c.sampling, c.num_samples, c.decode_rows)
    work = sampling_work(plant, c.batch_prompts, sampling)
    key = jax.eval_shape(lambda: run_key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(plant.mesh))
    yield Phase(
        "evaluation: sampling",
        held,
        sum(held) - held.parameters,
        work,
        plant.key("evaluation", c.batch_prompts, config.prompt.max_prompt_length, sampling, decode=True),
        partial(
            compile_ahead,
            sampling_program(plant.model, sampling),
            plant.policy,
            plant.prompts(c.batch_prompts),
            key,
            0,
            mesh=plant.mesh,
            longest=_longest(plant, c.batch_prompts, sampling),
        ),
    )


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


def scoring_work(plant: Plant, *, rows: int) -> Work:
    """A micro-batch of RL; `rows` of a group stay together. Raises `MicrobatchError`."""
    c = plant.config.rl
    P, G, M = c.prompts_per_step, c.num_generations, c.microbatches
    cut = group_cuts(P, G, M, rows=rows, shards=batch_shards(plant.mesh))
    at_once = _on_a_device(plant, P * cut // M)
    prompts = at_once if c.length_buckets == 1 else _on_a_device(plant, P)  # sorted rows: of all prompts
    return Work(
        rows=at_once * (G // cut),
        length=c.sampling.max_completion_length,
        prompts=prompts,
        prompt_length=plant.config.prompt.max_prompt_length,
        chunk=c.head_chunk,
    )


def sampling_work(plant: Plant, prompts: int, sampling: Sampling) -> Work:
    """The rows that are decoded at once, with their keys and values and those of all prompts. Raises `DecodeError`."""
    G, Tp, Tc = sampling.num_generations, plant.config.prompt.max_prompt_length, sampling.max_completion_length
    R, M = lanes_and_rows(prompts, G, sampling.decode_rows, shards=batch_shards(plant.mesh))
    P, B = _on_a_device(plant, prompts + (R if prompts > R else 0)), _on_a_device(plant, R * M)
    caches = jax.eval_shape(lambda: [empty_cache(plant.decoder, P, Tp), empty_cache(plant.decoder, B, Tc)])
    values = sum(x.size * x.dtype.itemsize for cache in caches for x in jax.tree.leaves((cache.k, cache.v)))
    sizes = dict(plant.mesh.shape)
    layout = decode_config(plant.decoder, sizes).decode_weights
    weights = decode_bytes(plant.decoder, layout, sizes)
    if sampling.weights == "int8":  # a byte a number, which are made whether or not they are joined
        whole = decode_bytes(plant.decoder, "joined" if layout == "stored" else layout, sizes)
        weights = whole // plant.decoder.compute_dtype.itemsize
    return Work(B, Tc, P, Tp, cache=values // sizes["tensor"], weights=weights)


def _longest(plant: Plant, prompts: int, sampling: Sampling) -> int:
    """Steps of a decode loop if no completion ends early: of the one loop, or of each of those that follow another."""
    G, Tc = sampling.num_generations, sampling.max_completion_length
    R, M = lanes_and_rows(prompts, G, sampling.decode_rows, shards=batch_shards(plant.mesh))
    refills = (turns := prompts // R) > 1 or M < G
    blocks = 1 if refills else len(cache_blocks(Tc, sampling.cache_block))
    return -(-most_steps(turns, G, M, Tc) // blocks)


def _on_a_device(plant: Plant, rows: int) -> int:
    """Rows of a batch that a device has; shards that do not divide them are filled up."""
    return -(-rows // batch_shards(plant.mesh))
