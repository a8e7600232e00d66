"""Sampling as one compiled program: each prompt is read once, its G completions share the keys and values."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, empty_cache, unstack
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logprobs import next_token_logits
from grpo_jax.sampler.draw import Distribution, draw, row_keys
from grpo_jax.sharding import constrain
from grpo_jax.types import Prompts, Rollout, Sequences

# A small model's layers are unrolled in the decode loop (a scan reads and writes the whole cache at each token);
# above this many layers the time to compile outweighs that.
UNROLLED_LAYERS = 8


class Sampling(NamedTuple):
    """What a completion is: its distribution, its length and how it ends; static."""

    distribution: Distribution
    num_generations: int
    max_completion_length: int
    eos_ids: tuple[int, ...]
    pad_id: int


class DecodeError(ValueError):
    """Rows that cannot be decoded in equal parts of whole groups; the message names the numbers that would do."""

    exit_code = 2


class _Decode(NamedTuple):
    t: Array  # [] i32
    hidden: Array  # [B, D], the state that predicts token t
    cache: Cache
    tokens: Array  # [B, Tc] i32
    logprobs: Array  # [B, Tc] f32
    mask: Array  # [B, Tc] bool
    finished: Array  # [B] bool


def sample(model: Decoder, params: Any, prompts: Prompts, key: Array, *, sampling: Sampling) -> Rollout:
    """Draw `num_generations` completions for each prompt.

    prompts [P, Tp], key the step's key -> Rollout of B = P * num_generations rows. The loop ends when every row has
    ended. `logprobs` are those of the distribution sampled from: with top-k, top-p or min-p they differ from what
    the trainer scores. Lay `params` out on a mesh and set the mesh in context; the batch is split as the rules say.
    """
    G, Tc = sampling.num_generations, sampling.max_completion_length
    P, Tp = prompts.sequences.tokens.shape
    decoder = _decoder(model)
    hidden, prefix = model.apply({"params": params}, prompts.sequences, cache=empty_cache(model.config, P, Tp))
    prefix = prefix if decoder.config.scan_layers else unstack(prefix)
    keys = row_keys(key, prompts.index, G)  # [B]
    start = jnp.repeat(prompts.sequences.positions[:, -1] + 1, G)  # [B], the position of token 0

    def unfinished(state: _Decode) -> Array:
        return (state.t < Tc) & ~state.finished.all()

    def step(state: _Decode) -> _Decode:
        logits = next_token_logits(model, params, state.hidden)  # [B, V]
        drawn, logprobs = draw(logits, keys, state.t, sampling.distribution)
        chosen = ~state.finished
        token = jnp.where(chosen, drawn, sampling.pad_id)
        ended = (token[:, None] == jnp.asarray(sampling.eos_ids, jnp.int32)).any(-1) & chosen
        one = Sequences(token[:, None], (start + state.t)[:, None], chosen[:, None].astype(jnp.int32))  # [B, 1]
        hidden, cache = decoder.apply({"params": params}, one, cache=state.cache, prefix=prefix)
        return _Decode(
            t=state.t + 1,
            hidden=hidden[:, 0],
            cache=cache,
            tokens=state.tokens.at[:, state.t].set(token),
            logprobs=state.logprobs.at[:, state.t].set(jnp.where(chosen, logprobs, 0.0)),
            mask=state.mask.at[:, state.t].set(chosen),
            finished=state.finished | ended,
        )

    B = P * G
    end = jax.lax.while_loop(
        unfinished,
        step,
        _Decode(
            t=jnp.int32(0),
            hidden=constrain(jnp.repeat(hidden[:, -1], G, axis=0), "batch", None),
            cache=empty_cache(decoder.config, B, Tc),
            tokens=jnp.full((B, Tc), sampling.pad_id, jnp.int32),
            logprobs=jnp.zeros((B, Tc), jnp.float32),
            mask=jnp.zeros((B, Tc), bool),
            finished=jnp.zeros((B,), bool),
        ),
    )
    positions = start[:, None] + jnp.arange(Tc, dtype=jnp.int32)  # [B, Tc]
    completions = Sequences(end.tokens, positions, end.mask.astype(jnp.int32))
    return Rollout(prompts, completions, end.mask, end.logprobs, end.finished)


def decode_parts(prompts: int, num_generations: int, decode_rows: int, *, shards: int = 1) -> int:
    """Into how many parts a batch of P prompts is cut so that `decode_rows` rows are decoded at once; 0: one part.

    A part is of whole groups, equally many on each of the batch shards. Raises `DecodeError` naming what would do.
    """
    P, G = prompts, num_generations
    rows = decode_rows or P * G
    if P * G % rows == 0 and (rows == P * G or rows % (G * shards) == 0):
        return P * G // rows
    fitting = [p * G for p in range(shards, P + 1, shards) if P % p == 0] or [P * G]
    raise DecodeError(
        f"decode_rows: {decode_rows} rows are no equal part of {P} prompts of {G} completions in whole groups over "
        f"{shards} batch shard(s); choose one of {', '.join(map(str, fitting))}, or 0 for all at once"
    )


def sample_in_parts(
    model: Decoder, params: Any, prompts: Prompts, key: Array, *, sampling: Sampling, parts: int
) -> Rollout:
    """`sample`, one part of the prompts after the other: the same tokens with the keys and values of a part only.

    Part m takes the prompts m, m + parts, m + 2 parts, ..., so that each device keeps its own rows.
    """
    if parts == 1:
        return sample(model, params, prompts, key, sampling=sampling)
    P = prompts.index.shape[0]

    def cut(x: Array) -> Array:  # [P, ...] -> [parts, P/parts, ...]
        return jnp.swapaxes(x.reshape(P // parts, parts, *x.shape[1:]), 0, 1)

    def join(x: Array) -> Array:  # [parts, B/parts, ...] -> [B, ...]
        x = x.reshape(parts, P // parts, -1, *x.shape[2:])
        x = jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[3:])
        return constrain(x, "batch", *(None,) * (x.ndim - 1))

    def part(rows: Prompts) -> Rollout:
        rows = jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), rows)
        return sample(model, params, rows, key, sampling=sampling)

    rollout = jax.lax.map(part, jax.tree.map(cut, prompts))
    return jax.tree.map(join, rollout.replace(prompts=None)).replace(prompts=prompts)


def _decoder(model: Decoder) -> Decoder:
    unrolled = model.config.num_layers <= UNROLLED_LAYERS
    return model.clone(config=dataclasses.replace(model.config, scan_layers=not unrolled, remat="none"))
