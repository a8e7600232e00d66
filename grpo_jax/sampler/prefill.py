"""What decoding needs of the prompts: their keys and values, and the state that predicts the first token.

Prompts are read in turns, so many at once as lanes decode (`slots.py`), and kept by turn.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, empty_cache, unstack
from grpo_jax.models.decoder import Decoder
from grpo_jax.sharding import constrain
from grpo_jax.types import Sequences, pytree


@pytree
class Prompted:
    """Prompts that were read, by turn I and lane R: lane r's prompts are rows r*I .. r*I + I-1 of the batch."""

    hidden: Array  # [I, R, D], the state that predicts token 0
    begin: Array  # [I, R] i32, the position of token 0
    cache: Cache  # of R rows, each array with I in front

    @property
    def turns(self) -> int:
        """Prompts that a lane takes one after the other."""
        return self.begin.shape[0]

    def states(self, prompt: Array) -> Array:
        """The state that predicts token 0 of the given prompt of each lane: [R] i32 -> [R, D]."""
        return _pick(self.hidden, prompt)

    def first(self) -> Prompted:
        """The first prompt of each lane, without the axis of turns."""
        return jax.tree.map(lambda x: x[0], self)

    def of(self, prompt: Array) -> Prompted:
        """The given prompt of each lane: [R] i32 -> arrays without the axis of turns."""
        layers = 0 if isinstance(self.cache.k, tuple) else 1
        k, v = jax.tree.map(lambda x: _pick(x, prompt, layers), (self.cache.k, self.cache.v))
        positions, segments = (_pick(x, prompt) for x in (self.cache.positions, self.cache.segments))
        cache = self.cache.replace(k=k, v=v, positions=positions, segments=segments, length=self.cache.length[0])
        return Prompted(_pick(self.hidden, prompt), _pick(self.begin, prompt), cache)


def read_prompts(model: Decoder, params: Any, prompts: Sequences, *, turns: int, unrolled: bool) -> Prompted:
    """Read prompts [P, Tp], P / turns at once; `unrolled`: keys and values in an array for each layer."""
    P, Tp = prompts.tokens.shape

    def read(rows: Sequences) -> tuple[Array, Cache]:
        hidden, cache = model.apply({"params": params}, rows, cache=empty_cache(model.config, P // turns, Tp))
        return hidden[:, -1], unstack(cache) if unrolled else cache

    if turns == 1:
        hidden, cache = jax.tree.map(lambda x: x[None], read(prompts))
    else:
        hidden, cache = jax.lax.map(read, jax.tree.map(lambda x: _by_turn(x, turns), prompts))
    return Prompted(hidden, _by_turn(prompts.positions[:, -1] + 1, turns), cache)


def _by_turn(x: Array, turns: int) -> Array:
    """[P, ...] -> [I, R, ...]."""
    x = jnp.swapaxes(x.reshape(-1, turns, *x.shape[1:]), 0, 1)
    return constrain(x, None, "batch", *(None,) * (x.ndim - 2))


def _pick(x: Array, prompt: Array, axis: int = 0) -> Array:
    """Of [I, ..., R, ...] the entry prompt[r] of lane r: [..., R, ...], R on `axis`."""
    return jax.vmap(lambda lane, i: lane[i], in_axes=(axis + 1, 0), out_axes=axis)(x, prompt)
