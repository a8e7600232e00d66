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


def _decoder(model: Decoder) -> Decoder:
    unrolled = model.config.num_layers <= UNROLLED_LAYERS
    return model.clone(config=dataclasses.replace(model.config, scan_layers=not unrolled, remat="none"))
