"""Sampling as one compiled program: each prompt is read once, its G completions share the keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, empty_cache
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.decoding import decode_config, decode_params
from grpo_jax.models.logprobs import next_token_logits
from grpo_jax.models.quantize import rollout_params
from grpo_jax.sampler.draw import Distribution, draw, row_keys
from grpo_jax.sampler.prefill import Prompted, read_prompts
from grpo_jax.sampler.slots import (
    Slots,
    advance_slots,
    by_completion,
    lanes_and_rows,
    most_steps,
    open_slots,
    refill,
    unfinished,
)
from grpo_jax.sharding import constrain, mesh_sizes, shards_in_context
from grpo_jax.types import Prompts, Rollout, Sequences


class Sampling(NamedTuple):
    """What a completion is: its distribution, its length and how it ends; and how it is computed. Static."""

    distribution: Distribution
    num_generations: int
    max_completion_length: int
    eos_ids: tuple[int, ...]
    pad_id: int
    decode_rows: int = 0  # rows decoded at once; 0: all
    cache_block: int = 0  # slots by which the cache grows; 0: chosen by `cache_blocks`
    weights: Literal["same", "int8"] = "same"  # of the decode loop (`models/quantize.py`)


class _Decode(NamedTuple):
    step: Array  # [] i32
    slots: Slots
    hidden: Array  # [R*M, D], the state that predicts each row's next token
    cache: Cache  # of R*M rows
    tokens: Array  # [steps, R, M] i32, as they were drawn
    logprobs: Array  # [steps, R, M] f32


def sample(model: Decoder, params: Any, prompts: Prompts, key: Array, *, sampling: Sampling) -> Rollout:
    """Draw `num_generations` completions for each prompt.

    prompts [P, Tp], key the step's key -> Rollout of B = P * num_generations rows. `decode_rows` of them are decoded at
    once; a row whose completion has ended begins the next one of its prompt in the same compiled step. The loop ends
    when every completion has. `logprobs` are those of the distribution sampled from: with top-k, top-p or min-p they
    differ from what the trainer scores. Lay `params` out on a mesh and set the mesh in context; the batch is split as
    the rules say. Raises `DecodeError`.
    """
    G, Tc = sampling.num_generations, sampling.max_completion_length
    P = prompts.index.shape[0]
    R, M = lanes_and_rows(P, G, sampling.decode_rows, shards=shards_in_context())
    turns = P // R
    refills = M < G or turns > 1
    decoder = model.clone(config=decode_config(model.config, mesh_sizes(), slots=R * M * Tc, weights=sampling.weights))
    read = read_prompts(model, params, prompts.sequences, turns=turns, unrolled=not decoder.config.scan_layers)
    weights = decode_params(rollout_params(params, decoder.config, sampling.weights), decoder.config)
    keys = row_keys(key, prompts.index, G).reshape(R, turns * G)

    def step(state: _Decode, present: Prompted, *behind: Cache) -> _Decode:
        """One more token for every row; `behind` are the earlier blocks of its keys and values."""
        slots = state.slots
        logits = next_token_logits(decoder, weights, state.hidden)  # [R*M, V]
        own_keys = jax.vmap(lambda lane, job: lane[job])(keys, slots.job).reshape(-1)  # [R*M]
        drawn, logprobs = draw(logits, own_keys, slots.t.reshape(-1), sampling.distribution)
        chosen = slots.active.reshape(-1)
        token = jnp.where(chosen, drawn, sampling.pad_id)
        ends = (token[:, None] == jnp.asarray(sampling.eos_ids, jnp.int32)).any(-1)
        position = (present.begin[:, None] + slots.t).reshape(-1)
        one = Sequences(token[:, None], position[:, None], chosen[:, None].astype(jnp.int32))  # [R*M, 1]
        cache = state.cache.replace(length=state.step % Tc) if refills else state.cache  # with refills it is a ring
        hidden, cache = decoder.apply({"params": weights}, one, cache=cache, prefix=(present.cache, *behind))
        state = state._replace(
            step=state.step + 1,
            slots=advance_slots(slots, ends.reshape(R, M), limit=Tc),
            hidden=hidden[:, 0],
            cache=cache,
            tokens=state.tokens.at[state.step].set(token.reshape(R, M)),
            logprobs=state.logprobs.at[state.step].set(logprobs.reshape(R, M)),
        )
        return fill(state, read, num_generations=G) if refills else state

    state = fill(_start(decoder.config, read, M, sampling), read, num_generations=G)
    if refills:
        state = decode_loop(lambda state: unfinished(state.slots), step, state, read)
    else:
        state = _in_blocks(state, step, read.first(), lambda size: empty_cache(decoder.config, R * M, size), sampling)
    return _rollout(prompts, state, sampling)


State = TypeVar("State")  # a tuple with step, slots, hidden and cache, as _Decode


def _start(config: DecoderConfig, read: Prompted, M: int, sampling: Sampling) -> _Decode:
    """Before the first token: lanes of M idle rows, every completion waits."""
    (turns, R), G, Tc = read.begin.shape, sampling.num_generations, sampling.max_completion_length
    steps, width = most_steps(turns, G, M, Tc), read.hidden.shape[-1]
    return _Decode(
        step=jnp.int32(0),
        slots=open_slots(R, M, turns * G),
        hidden=constrain(jnp.zeros((R * M, width), read.hidden.dtype), "batch", None),
        cache=empty_cache(config, R * M, Tc),
        tokens=jnp.zeros((steps, R, M), jnp.int32),
        logprobs=jnp.zeros((steps, R, M), jnp.float32),
    )


def decode_loop(
    going: Callable[[State], Array], step: Callable[[State, Prompted], State], state: State, read: Prompted
) -> State:
    """`step` as long as `going` says so, each with the keys and values of the prompts that lanes are at.

    Where a lane can go on to another prompt there are two loops: a loop over tokens that may change what it reads
    copies it at every token, the keys and values of all prompts under way.
    """
    if read.turns == 1:
        first = read.first()
        return jax.lax.while_loop(going, lambda state: step(state, first), state)

    def until_a_lane_moves(state: State) -> State:
        prompt = state.slots.prompt
        present = read.of(prompt)

        def stays(state: State) -> Array:
            return going(state) & (state.slots.prompt == prompt).all()

        return jax.lax.while_loop(stays, lambda state: step(state, present), state)

    return jax.lax.while_loop(going, until_a_lane_moves, state)


def fill(state: State, read: Prompted, *, num_generations: int) -> State:
    """Let idle rows begin the completions that wait."""
    slots, begins = refill(state.slots, state.step, num_generations=num_generations)
    fresh = jnp.repeat(read.states(slots.prompt), begins.shape[1], axis=0)  # [R*M, D]
    rows = begins.reshape(-1)
    segments = jnp.where(rows[:, None], 0, state.cache.segments)  # what the row held before is seen no more
    return state._replace(
        slots=slots,
        hidden=constrain(jnp.where(rows[:, None], fresh, state.hidden), "batch", None),
        cache=state.cache.replace(segments=segments),
    )


def _in_blocks(state: _Decode, step, present: Prompted, cache_of, sampling: Sampling) -> _Decode:
    """Decode with a cache that grows: a block of slots after the other is filled, and only filled ones are read."""
    behind, until = (), 0
    for size in cache_blocks(sampling.max_completion_length, sampling.cache_block):
        until += size

        def unfilled(state: _Decode, until=until) -> Array:
            return (state.step < until) & unfinished(state.slots)

        state = state._replace(cache=cache_of(size))
        state = jax.lax.while_loop(unfilled, lambda state, behind=behind: step(state, present, *behind), state)
        behind = (*behind, state.cache)
    return state


def cache_blocks(length: int, block: int) -> tuple[int, ...]:
    """The sizes of the blocks of a cache of `length` slots; `block` 0: quarters from 128 slots on, else the whole.

    On two CPU cores quarters took 0.79 of the time of the whole at 128 tokens, and 0.63 at 1,024 (eighths: 0.60).
    """
    block = min(block or (-(-length // 4) if length >= 128 else length), length)
    return tuple(min(block, length - start) for start in range(0, length, block))


def _rollout(prompts: Prompts, end: _Decode, sampling: Sampling) -> Rollout:
    """What was drawn, in the order of the batch."""
    G, Tc = sampling.num_generations, sampling.max_completion_length
    mask = jnp.arange(Tc) < end.slots.length.reshape(-1, 1)  # [B, Tc]
    tokens = jnp.where(mask, by_completion(end.tokens, end.slots, limit=Tc), sampling.pad_id)
    positions = jnp.repeat(prompts.sequences.positions[:, -1:] + 1, G, axis=0) + jnp.arange(Tc, dtype=jnp.int32)
    completions = Sequences(tokens, positions, mask.astype(jnp.int32))
    logprobs = by_completion(end.logprobs, end.slots, limit=Tc)
    rows = (completions, mask, logprobs, end.slots.ended.reshape(-1))
    rows = jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), rows)
    return Rollout(prompts, *rows)
