"""Decoding with pauses: a row stops where it has closed a fence, waits for what the host gives it, and goes on.

    opened, state = open_rows(...)                     prompts are read, rows begin
    while True: state, seen = advance_rows(...)        so many tokens for every row that does not wait
    close_rows(...) -> Rollout

Between two calls the host looks at the rows that wait and says of each, in `Given`: go on as you were, go on after
these tokens, or end. Rows that wait stand still while the others decode, and what is given is read token by token in
the same loop, so that there is one compiled step, of one shape, whoever writes. A given token is context:
`completion_mask` is False there and `logprobs` 0. What a row draws at t depends on its own key, on t and on the tokens
before, not on when.

A row pauses at a "```" that another came before since it began, or was last given something: the least that closes a
block. Which of these end a program is for the host to say, who reads text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.models.cache import Cache, empty_cache
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.decoding import decode_config, decode_params
from grpo_jax.models.logprobs import next_token_logits
from grpo_jax.models.quantize import rollout_params
from grpo_jax.sampler.draw import draw, row_keys
from grpo_jax.sampler.prefill import Prompted, read_prompts
from grpo_jax.sampler.sample import Sampling, decode_loop, fill
from grpo_jax.sampler.slots import Slots, close_slots, lanes_and_rows, open_slots
from grpo_jax.sharding import constrain, mesh_sizes, shards_in_context
from grpo_jax.types import Prompts, Rollout, Sequences

FENCE = 3  # backticks
GO_ON, END = 1, 2  # what the host says of a row that waits; 0: nothing yet


class Fences(NamedTuple):
    """What the text of each token has of backticks, so that a fence is seen without text, over several tokens too."""

    leading: Array  # [V] i32
    trailing: Array  # [V] i32
    only: Array  # [V] bool, it is nothing else
    inside: Array  # [V] bool, it holds a whole fence


class Opened(NamedTuple):
    """What stays as it is while rows decode."""

    weights: Any  # as the decode loop uses them
    read: Prompted
    keys: Array  # [R, J]


class Pausing(NamedTuple):
    """Rows under way; letters as in `slots.py`."""

    step: Array  # [] i32
    slots: Slots
    until: Array  # [] i32, the step at which the host looks again
    hidden: Array  # [R*M, D], the state that predicts each row's next token
    cache: Cache  # of R*M rows, each with its own length
    waiting: Array  # [R, M] bool
    backticks: Array  # [R, M] i32, with which the row's text ends
    opened: Array  # [R, M] bool, a fence came since it began or was given something
    tokens: Array  # [R, J, Tc] i32
    logprobs: Array  # [R, J, Tc] f32
    chosen: Array  # [R, J, Tc] bool
    given: Array  # [R, J] i32, the time up to which tokens are given


class Given(NamedTuple):
    """What the host says of the rows that wait."""

    action: Any  # [R, M] i32, GO_ON or END; 0: it waits on
    count: Any  # [R, M] i32, tokens to read before going on
    tokens: Any  # [R, M, F] i32


class Seen(NamedTuple):
    """What the host looks at between two calls."""

    waiting: Array  # [R, M] bool
    active: Array  # [R, M] bool, a completion is under way
    job: Array  # [R, M] i32
    t: Array  # [R, M] i32
    tokens: Array  # [R, M, Tc] i32, of the present completion


def fences(texts: Sequence[str], size: int) -> Fences:
    """The table of a vocabulary whose tokens have these texts, filled up to `size` with tokens that have none."""
    bare = [(len(text) - len(text.lstrip("`")), len(text) - len(text.rstrip("`"))) for text in texts]
    rows = [
        (a, b, bool(text) and a == len(text), "`" * FENCE in text) for (a, b), text in zip(bare, texts, strict=True)
    ]
    leading, trailing, only, inside = np.pad(np.array(rows, np.int32), ((0, size - len(rows)), (0, 0))).T
    return Fences(leading, trailing, only.astype(bool), inside.astype(bool))


def open_rows(
    model: Decoder, params: Any, prompts: Prompts, key: Array, *, sampling: Sampling
) -> tuple[Opened, Pausing]:
    """Read the prompts and let the first rows begin; arguments as of `sample`. Raises `DecodeError`."""
    P, G, Tc = prompts.index.shape[0], sampling.num_generations, sampling.max_completion_length
    R, M = lanes_and_rows(P, G, sampling.decode_rows, shards=shards_in_context())
    turns, config = P // R, _decoder(model, R * M * Tc, sampling).config
    read = read_prompts(model, params, prompts.sequences, turns=turns, unrolled=not config.scan_layers)
    weights = decode_params(rollout_params(params, config, sampling.weights), config)
    keys = row_keys(key, prompts.index, G).reshape(R, turns * G)
    of_rows, of_jobs = (R, M), (R, turns * G)
    state = Pausing(
        step=jnp.int32(0),
        slots=open_slots(R, M, turns * G),
        until=jnp.int32(0),
        hidden=constrain(jnp.zeros((R * M, read.hidden.shape[-1]), read.hidden.dtype), "batch", None),
        cache=empty_cache(config, R * M, Tc).replace(length=jnp.zeros(R * M, jnp.int32)),
        waiting=jnp.zeros(of_rows, bool),
        backticks=jnp.zeros(of_rows, jnp.int32),
        opened=jnp.zeros(of_rows, bool),
        tokens=jnp.full((*of_jobs, Tc), sampling.pad_id, jnp.int32),
        logprobs=jnp.zeros((*of_jobs, Tc), jnp.float32),
        chosen=jnp.zeros((*of_jobs, Tc), bool),
        given=jnp.zeros(of_jobs, jnp.int32),
    )
    return Opened(weights, read, keys), _on_batch(fill(state, read, num_generations=G))


def advance_rows(
    model: Decoder, opened: Opened, state: Pausing, given: Given, fences: Fences, steps: Array, *, sampling: Sampling
) -> tuple[Pausing, Seen]:
    """Take what the host gives, then decode at most `steps` tokens of every row that does not wait."""
    slots, Tc = state.slots, sampling.max_completion_length
    decoder = _decoder(model, slots.t.size * Tc, sampling)

    def going(state: Pausing) -> Array:
        return (state.step < state.until) & (state.slots.active & ~state.waiting).any()

    def one(state: Pausing, present: Prompted) -> Pausing:
        return _step(decoder, opened, present, state, fences, sampling)

    state = fill(_take(state, given, limit=Tc), opened.read, num_generations=sampling.num_generations)
    state = decode_loop(going, one, state._replace(until=state.step + steps), opened.read)
    slots = state.slots
    return _on_batch(state), Seen(state.waiting, slots.active, slots.job, slots.t, _of_rows(state.tokens, slots.job))


def close_rows(prompts: Prompts, state: Pausing, *, sampling: Sampling) -> Rollout:
    """What was written, in the order of the batch: given tokens are of the row's segment, and off its mask."""
    G, Tc = sampling.num_generations, sampling.max_completion_length
    written = jnp.arange(Tc) < state.slots.length.reshape(-1, 1)  # [B, Tc]
    tokens, logprobs, chosen = (x.reshape(-1, Tc) for x in (state.tokens, state.logprobs, state.chosen))
    positions = jnp.repeat(prompts.sequences.positions[:, -1:] + 1, G, axis=0) + jnp.arange(Tc, dtype=jnp.int32)
    completions = Sequences(jnp.where(written, tokens, sampling.pad_id), positions, written.astype(jnp.int32))
    rows = (completions, chosen & written, jnp.where(written, logprobs, 0.0), state.slots.ended.reshape(-1))
    return Rollout(prompts, *_on_batch(rows))


def nothing_given(state: Pausing, longest: int) -> Given:
    """The host says nothing: arrays of the shape of what it can say, at most `longest` tokens a row."""
    of_rows = state.waiting.shape
    return Given(np.zeros(of_rows, np.int32), np.zeros(of_rows, np.int32), np.zeros((*of_rows, longest), np.int32))


def _decoder(model: Decoder, slots: int, sampling: Sampling) -> Decoder:
    return model.clone(config=decode_config(model.config, mesh_sizes(), slots=slots, weights=sampling.weights))


def _step(
    decoder: Decoder, opened: Opened, present: Prompted, state: Pausing, fences: Fences, sampling: Sampling
) -> Pausing:
    """One more token for every row that does not wait: the next given one, or one that it draws."""
    slots, Tc = state.slots, sampling.max_completion_length
    moves, t = slots.active & ~state.waiting, slots.t  # [R, M]
    told = _of_rows(state.given, slots.job) > t
    old = jax.vmap(lambda lane, jobs, t: lane[jobs, t])(state.tokens, slots.job, jnp.minimum(t, Tc - 1))  # [R, M]
    logits = next_token_logits(decoder, opened.weights, state.hidden)  # [R*M, V]
    drawn, logprobs = draw(logits, _of_rows(opened.keys, slots.job).reshape(-1), t.reshape(-1), sampling.distribution)
    chosen = moves & ~told
    token = jnp.where(moves, jnp.where(told, old, drawn.reshape(t.shape)), sampling.pad_id)  # [R, M]
    ends = chosen & (token[..., None] == jnp.asarray(sampling.eos_ids, jnp.int32)).any(-1)
    # A row that waits writes padding into the slot that its next token will have.
    one = (token, present.begin[:, None] + t, moves.astype(jnp.int32))
    hidden, cache = decoder.apply(
        {"params": opened.weights},
        Sequences(*(x.reshape(-1, 1) for x in one)),  # [R*M, 1]
        cache=state.cache.replace(length=t.reshape(-1)),
        prefix=(present.cache,),
    )
    at = jnp.where(moves, t, Tc)  # [R, M], off the end for a row that stands still
    notes = (token, jnp.where(chosen, logprobs.reshape(t.shape), 0.0), chosen)
    tokens, logprobs, own = (
        _note(log, slots.job, at[..., None], value[..., None])
        for log, value in zip((state.tokens, state.logprobs, state.chosen), notes, strict=True)
    )
    slots = slots.replace(t=t + moves)
    done = moves & (ends | (slots.t == Tc))
    fence, backticks = _watch(state.backticks, token, fences)
    state = state._replace(
        step=state.step + 1,
        slots=close_slots(slots, done, ends),
        hidden=jnp.where(moves.reshape(-1, 1), hidden[:, 0], state.hidden),
        cache=cache,
        waiting=state.waiting | (chosen & fence & state.opened & ~done),
        backticks=jnp.where(chosen, backticks, state.backticks),
        opened=state.opened | (chosen & fence),
        tokens=tokens,
        logprobs=logprobs,
        chosen=own,
    )
    return _forget(fill(state, opened.read, num_generations=sampling.num_generations), done)


def _forget(state: Pausing, done: Array) -> Pausing:
    """Rows whose completion is over have no backticks behind them when they begin the next."""
    return state._replace(backticks=jnp.where(done, 0, state.backticks), opened=state.opened & ~done)


def _watch(backticks: Array, token: Array, fences: Fences) -> tuple[Array, Array]:
    """Whether a token completes a fence, and with how many backticks the text ends then: both of its shape."""
    leading, trailing, only, inside = (x[token] for x in map(jnp.asarray, fences))
    return inside | (backticks + leading >= FENCE) & (leading > 0), jnp.where(only, backticks + leading, trailing)


def _take(state: Pausing, given: Given, *, limit: int) -> Pausing:
    """Write down what is given to rows that wait, and end those that are to end."""
    slots = state.slots
    heard = state.waiting & (given.action > 0)  # [R, M]
    over = heard & (given.action == END)
    time = jnp.arange(given.tokens.shape[-1])
    reads = (heard & ~over)[..., None] & (time < given.count[..., None])  # [R, M, F]
    at = jnp.where(reads, slots.t[..., None] + time, limit)
    until = jnp.where(heard & ~over, slots.t + given.count, _of_rows(state.given, slots.job))
    state = state._replace(
        slots=close_slots(slots, over, jnp.zeros_like(over)),
        waiting=state.waiting & ~heard,
        opened=state.opened & ~(heard & (given.count > 0)),
        backticks=jnp.where(heard & (given.count > 0), 0, state.backticks),
        tokens=_note(state.tokens, slots.job, at, given.tokens),
        given=_note(state.given[..., None], slots.job, jnp.where(heard, 0, 1)[..., None], until[..., None])[..., 0],
    )
    return _forget(state, over)


def _of_rows(of_jobs: Array, job: Array) -> Array:
    """What each row's present completion has: [R, J, ...], [R, M] -> [R, M, ...]."""
    return jax.vmap(lambda lane, jobs: lane[jobs])(of_jobs, job)


def _note(log: Array, job: Array, at: Array, values: Array) -> Array:
    """Write values [R, M, F] of each row's present completion at times [R, M, F]; those off the end are dropped.

    Two idle rows may name one completion: they write nothing.
    """
    return jax.vmap(lambda lane, jobs, t, x: lane.at[jobs[:, None], t].set(x, mode="drop"))(log, job, at, values)


def _on_batch(tree: Any) -> Any:
    """Split what has rows or lanes in front over the batch shards; so a state goes from call to call as it lies."""

    def pin(x: Any) -> Any:
        if isinstance(x, Cache):
            axis = 0 if isinstance(x.k, tuple) else 1
            layers = jax.tree.map(lambda kv: constrain(kv, *(None,) * axis, "batch", *("any",) * 3), (x.k, x.v))
            about = jax.tree.map(pin, (x.positions, x.segments, x.length))
            return Cache(*layers, *about)
        return constrain(x, "batch", *("any",) * (x.ndim - 1)) if x.ndim else x

    return jax.tree.map(pin, tree, is_leaf=lambda x: isinstance(x, Cache))
