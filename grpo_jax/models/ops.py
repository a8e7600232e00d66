"""All maths of the decoder, as pure functions of arrays.

Letters: `B` rows, `T` query time, `S` key time, `D` width, `N` query heads, `K` key-value heads, `M = N/K`
query heads of one key-value head, `H` head width, `F` mlp width, `R` rows of a block of keys, `G = B/R`
query rows it serves. Matrix products run in the type of their inputs and are summed in float32; norms,
angles and softmax are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.types import pytree

UNSEEN = -1e30  # the score of a key that a query does not see: finite, so that no row can become NaN


@pytree
class KeyValues:
    """A block of keys and values; its row r serves the query rows r*G .. r*G + G-1."""

    k: Array  # [R, K, S, H]
    v: Array  # [R, K, S, H]
    positions: Array  # [R, S] i32
    segments: Array  # [R, S] i32, 0 is never seen


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """`x / sqrt(mean(x^2) + eps) * scale` over the last axis, in float32 (arXiv:1910.07467)."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype)


def rotation(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles `position * theta^(-2i/H)`: two arrays [B, T, H/2] f32."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)  # [H/2]
    angles = positions[..., None].astype(jnp.float32) * frequencies  # [B, T, H/2]
    return jnp.cos(angles), jnp.sin(angles)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (i, i + H/2) of the last axis (arXiv:2104.09864, in Hugging Face's pairing).

    `cos` and `sin` [..., H/2] must broadcast against the halves of `x` [..., H].
    """
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def visible(q_positions: Array, q_segments: Array, block: KeyValues) -> Array:
    """Which keys of a block a query sees: [R, G, T, S] bool.

    A key is seen iff it is of the query's segment, is not padding, and its position is not after the query's.
    """
    rows, time = block.positions.shape[0], q_positions.shape[1]
    positions = q_positions.reshape(rows, -1, time, 1)  # [R, G, T, 1]
    segments = q_segments.reshape(rows, -1, time, 1)
    k_positions, k_segments = (
        block.positions[:, None, None, :],
        block.segments[:, None, None, :],
    )  # [R, 1, 1, S]
    return (segments == k_segments) & (k_segments > 0) & (k_positions <= positions)


def attend(q: Array, q_positions: Array, q_segments: Array, blocks: Sequence[KeyValues]) -> Array:
    """Grouped-query attention over several blocks of keys with one softmax, and no block copied.

    `softmax(q k / sqrt(H)) v`, the softmax taken jointly over all keys by the shared maximum and sum. The
    `G` query rows that a block's row serves are rows of one matrix product, so a shared prompt is read once
    for all completions. A query that sees no key at all (padding) gives zeros. q [B, T, N, H] -> [B, T, N,
    H]; positions, segments [B, T].
    """
    B, T, N, H = q.shape
    K = blocks[0].k.shape[1]
    scores = [_scores(q, q_positions, q_segments, block) for block in blocks]  # each [R, K, G, T, M, S] f32
    tops = [_by_row(jnp.max(s, axis=-1), B) for s in scores]  # each [B, T, K, M]
    top = jnp.maximum(jax.tree.reduce(jnp.maximum, tops), UNSEEN / 2)  # an all-unseen row keeps exp(unseen - top) = 0
    top = jax.lax.stop_gradient(top)
    total = jnp.zeros((B, T, K, N // K), jnp.float32)
    mixed = jnp.zeros((B, T, K, N // K, H), jnp.float32)
    for s, block in zip(scores, blocks, strict=True):
        weights = jnp.exp(s - _by_block(top, block.k.shape[0])[..., None])  # [R, K, G, T, M, S]
        total += _by_row(jnp.sum(weights, axis=-1), B)
        values = jnp.einsum(
            "rkgtms,rksh->rkgtmh", weights.astype(block.v.dtype), block.v, preferred_element_type=jnp.float32
        )
        mixed += _by_row(values, B)
    out = mixed / jnp.where(total == 0.0, 1.0, total)[..., None]
    return out.reshape(B, T, N, H).astype(q.dtype)


def _scores(q: Array, q_positions: Array, q_segments: Array, block: KeyValues) -> Array:
    """Scaled scores of one block, unseen keys at `UNSEEN`: [R, K, G, T, M, S] f32."""
    B, T, N, H = q.shape
    R, K = block.k.shape[:2]
    if B % R or N % K:
        raise ValueError(f"attend: {B} query rows on {R} key rows, {N} query heads on {K}: neither may have a rest")
    grouped = q.reshape(R, B // R, T, K, N // K, H)
    scores = jnp.einsum("rgtkmh,rksh->rkgtms", grouped, block.k, preferred_element_type=jnp.float32)
    seen = visible(q_positions, q_segments, block)[:, None, :, :, None, :]  # [R, 1, G, T, 1, S]
    return jnp.where(seen, scores * H**-0.5, UNSEEN)


def _by_row(x: Array, rows: int) -> Array:
    """[R, K, G, T, M, ...] -> [B, T, K, M, ...]."""
    x = jnp.moveaxis(x, 1, 3)  # [R, G, T, K, M, ...]
    return x.reshape(rows, *x.shape[2:])


def _by_block(x: Array, rows: int) -> Array:
    """[B, T, K, M] -> [R, K, G, T, M]."""
    x = x.reshape(rows, x.shape[0] // rows, *x.shape[1:])  # [R, G, T, K, M]
    return jnp.moveaxis(x, 3, 1)


def gated_mlp(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """`(silu(x gate) * (x up)) down` (arXiv:2002.05202): [B, T, D] -> [B, T, D]; all of one type."""
    hidden = jax.nn.silu(jnp.einsum("btd,df->btf", x, gate)) * jnp.einsum("btd,df->btf", x, up)
    return jnp.einsum("btf,fd->btd", hidden, down)


def project(layer: dict[str, Array], x: Array, cos: Array, sin: Array) -> tuple[Array, Array, Array]:
    """Rotated queries [B, T, N, H], rotated keys and values [B, K, T, H] of normed activations [B, T, D]."""
    q = jnp.einsum("btd,dnh->btnh", x, layer["q"])
    k = jnp.einsum("btd,dkh->bkth", x, layer["k"])
    v = jnp.einsum("btd,dkh->bkth", x, layer["v"])
    if "q_bias" in layer:
        q = q + layer["q_bias"]
        k = k + layer["k_bias"][:, None, :]
        v = v + layer["v_bias"][:, None, :]
    return rope(q, cos[:, :, None], sin[:, :, None]), rope(k, cos[:, None], sin[:, None]), v


def decoder_layer(
    x: Array,
    layer: dict[str, Array],
    angles: tuple[Array, Array],
    q_positions: Array,
    q_segments: Array,
    store: Callable[[Array, Array], tuple[Sequence[KeyValues], Any]],
    *,
    eps: float,
) -> tuple[Array, Any]:
    """One pre-norm transformer layer: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

    `store(k, v)` is given the new keys and values [B, K, T, H] and returns the blocks that the queries look
    at, and what the caller keeps of them; that is all of caching. x [B, T, D] -> ([B, T, D], what was kept).
    """
    norms = ("attention_norm", "mlp_norm")  # float32, as the norm itself
    w = {name: p if name in norms else p.astype(x.dtype) for name, p in layer.items()}
    q, k, v = project(w, rms_norm(x, w["attention_norm"], eps), *angles)
    blocks, kept = store(k, v)
    attended = attend(q, q_positions, q_segments, blocks)  # [B, T, N, H]
    x = x + jnp.einsum("btnh,nhd->btd", attended, w["o"])
    return x + gated_mlp(rms_norm(x, w["mlp_norm"], eps), w["gate"], w["up"], w["down"]), kept
