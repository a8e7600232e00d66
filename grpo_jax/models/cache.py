"""The key-value cache: an argument of the decoder and a result, never hidden state.

Scanned decoders stack the layers' keys and values in one array, unrolled ones keep a tuple of arrays, which
a decode loop updates in place. Positions and segments are the same in every layer and are held once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.sharding import constrain, shards_in_context
from grpo_jax.types import Sequences, pytree

if TYPE_CHECKING:
    from grpo_jax.models.decoder import DecoderConfig

Layers = Array | tuple[Array, ...]


@pytree
class Cache:
    """Keys and values of tokens that later queries may see; slots not yet written have segment 0."""

    k: Layers  # [L, B, K, S, H], or L arrays [B, K, S, H]
    v: Layers  # as k
    positions: Array  # [B, S] i32
    segments: Array  # [B, S] i32
    length: Array  # [] i32, the slot of the next token; [B]: of each row, for one token at a time
    rows: Array | None = None  # [B] i32, of a prefix: the row that each query row continues (`of_rows`); None: in order

    @property
    def size(self) -> int:
        """Slots S."""
        return self.positions.shape[1]


def empty_cache(config: DecoderConfig, rows: int, length: int) -> Cache:
    """A cache of `length` empty slots for each of `rows` rows, in the decoder's layout and computing type."""
    shape = (rows, config.num_kv_heads, length, config.head_dim)  # [B, K, S, H]

    def zeros():
        if config.scan_layers:
            return jnp.zeros((config.num_layers, *shape), config.compute_dtype)
        return tuple(jnp.zeros(shape, config.compute_dtype) for _ in range(config.num_layers))

    slots = jnp.zeros((rows, length), jnp.int32)
    return Cache(k=zeros(), v=zeros(), positions=slots, segments=slots, length=jnp.zeros((), jnp.int32))


def of_rows(x: Array, rows: Array) -> Array:
    """The given rows of an array [P, ...] -> [B, ...]; a row is counted within its batch shard and never leaves it."""
    shards = shards_in_context()

    def by_shard(x: Array) -> Array:
        x = x.reshape(shards, -1, *x.shape[1:])
        return constrain(x, "batch", *("any",) * (x.ndim - 1))

    taken = jax.vmap(lambda x, rows: x[rows])(by_shard(x), by_shard(rows))  # [shards, B/shards, ...]
    return taken.reshape(-1, *x.shape[1:])


def unstack(cache: Cache) -> Cache:
    """The same cache with an array for each layer; do it outside a decode loop, so that it is done once."""
    return cache.replace(k=_tuple(cache.k), v=_tuple(cache.v))


def stack(cache: Cache) -> Cache:
    """The same cache with the layers stacked on axis 0."""
    return cache.replace(k=_array(cache.k), v=_array(cache.v))


def _tuple(layers: Layers) -> tuple[Array, ...]:
    return layers if isinstance(layers, tuple) else tuple(layers[l] for l in range(layers.shape[0]))


def _array(layers: Layers) -> Array:
    return jnp.stack(layers) if isinstance(layers, tuple) else layers


def write_slots(old: Array, new: Array, slot: Array, *, rows: int, slots: int, first: Array | int = 0) -> Array:
    """Write new tokens into a cache from a slot on: [] for all rows, or each row's own, [B].

    old [..., B, ..., S, ...] and new, which has fewer slots; `rows` and `slots` are the axes, `first` the place on axis
    0 if that is neither of them.
    """
    start = [jnp.zeros((), jnp.int32)] * old.ndim
    start[0] = jnp.asarray(first, jnp.int32)
    if slot.ndim == 0:
        start[slots] = slot
        return jax.lax.dynamic_update_slice(old, new, start)

    def one(old: Array, new: Array, slot: Array) -> Array:
        at = [*start]
        at[slots] = slot
        del at[rows]
        return jax.lax.dynamic_update_slice(old, new, at)

    return jax.vmap(one, in_axes=(rows, rows, 0), out_axes=rows)(old, new, slot)


def advance(cache: Cache, sequences: Sequences) -> Cache:
    """The cache after `T` new tokens, without their keys and values: positions, segments and length.

    The caller sees to it that `length + T <= S`; the length is not known while tracing, so it cannot be
    checked here. Raises `ValueError` if the rows differ or `T > S`.
    """
    rows, time = sequences.tokens.shape
    if cache.positions.shape[0] != rows or cache.size < time:
        raise ValueError(
            f"cache: {rows} rows of {time} tokens do not fit a cache of {cache.positions.shape[0]} rows "
            f"of {cache.size} slots; make it with empty_cache(config, {rows}, length >= {time})"
        )
    if cache.size == time:  # it must be empty: the new tokens are all there is, and nothing needs copying
        positions, segments = sequences.positions, sequences.segments
    else:
        positions = write_slots(cache.positions, sequences.positions, cache.length, rows=0, slots=1)
        segments = write_slots(cache.segments, sequences.segments, cache.length, rows=0, slots=1)
    return cache.replace(positions=positions, segments=segments, length=cache.length + time)
