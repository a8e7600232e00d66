"""All maths of the decoder, as pure functions of arrays.

Letters: `B` rows, `T` query time, `S` key time, `D` width, `N` query heads, `K` key-value heads, `M = N/K`
query heads of one key-value head, `H` head width, `F` mlp width, `R` rows of a block of keys, `G = B/R`
query rows it serves. Matrix products run in the type of their inputs and are summed in float32; norms,
angles and softmax are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.experts import mixture
from grpo_jax.models.lora import gathered
from grpo_jax.models.quantize import SCALES, rescaled
from grpo_jax.models.rope import rotate
from grpo_jax.types import pytree

if TYPE_CHECKING:
    from grpo_jax.models.decoder import DecoderConfig

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}
UNSEEN = -1e30  # the score of a key that a query does not see: finite, so that no row can become NaN


@pytree
class KeyValues:
    """A block of keys and values; its row r serves the query rows r*G .. r*G + G-1."""

    k: Array  # [R, K, S, H]
    v: Array  # [R, K, S, H]
    positions: Array  # [R, S] i32
    segments: Array  # [R, S] i32, 0 is never seen


def rms_norm(x: Array, scale: Array, eps: float, *, offset: float = 0.0, axes: int | tuple[int, ...] = -1) -> Array:
    """`x / sqrt(mean(x^2) + eps) * (offset + scale)` over `axes`, in float32 (arXiv:1910.07467; offset 1: Gemma).

    `scale` must broadcast against `x`.
    """
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axes, keepdims=True) + eps)
    return (x32 * inverse * (scale + offset if offset else scale)).astype(x.dtype)


def softcap(x: Array, cap: float | None) -> Array:
    """`cap * tanh(x / cap)`: bounded by `cap`, unchanged where small; None leaves `x` as it is (arXiv:2408.00118)."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def visible(q_positions: Array, q_segments: Array, block: KeyValues, window: Array | int | None = None) -> Array:
    """Which keys of a block a query sees: [R, G, T, S] bool.

    A key is seen iff it is of the query's segment, is not padding, and its position is not after the query's; with a
    `window`, also only if it is fewer than so many positions before it.
    """
    rows, time = block.positions.shape[0], q_positions.shape[1]
    positions = q_positions.reshape(rows, -1, time, 1)  # [R, G, T, 1]
    segments = q_segments.reshape(rows, -1, time, 1)
    k_positions, k_segments = (
        block.positions[:, None, None, :],
        block.segments[:, None, None, :],
    )  # [R, 1, 1, S]
    seen = (segments == k_segments) & (k_segments > 0) & (k_positions <= positions)
    return seen if window is None else seen & (positions - k_positions < window)


def attend(
    q: Array,
    q_positions: Array,
    q_segments: Array,
    blocks: Sequence[KeyValues],
    *,
    scale: float | None = None,
    cap: float | None = None,
    window: Array | int | None = None,
) -> Array:
    """Grouped-query attention over several blocks of keys with one softmax, and no block copied.

    `softmax(softcap(scale q k)) v`, the softmax taken jointly over all keys by the shared maximum and sum; `scale` is
    `1 / sqrt(H)` unless given. The `G` query rows that a block's row serves are rows of one matrix product, so a
    shared prompt is read once for all completions. A query that sees no key at all (padding) gives zeros.
    q [B, T, N, H] -> [B, T, N, H]; positions, segments [B, T].
    """
    B, T, N, H = q.shape
    K = blocks[0].k.shape[1]
    about = {"scale": H**-0.5 if scale is None else scale, "cap": cap, "window": window}
    scores = [_scores(q, q_positions, q_segments, block, **about) for block in blocks]  # each [R, K, G, T, M, S] f32
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


def _scores(q: Array, q_positions: Array, q_segments: Array, block: KeyValues, *, scale, cap, window) -> Array:
    """Scaled and capped scores of one block, unseen keys at `UNSEEN`: [R, K, G, T, M, S] f32."""
    B, T, N, H = q.shape
    R, K = block.k.shape[:2]
    if B % R or N % K:
        raise ValueError(f"attend: {B} query rows on {R} key rows, {N} query heads on {K}: neither may have a rest")
    grouped = q.reshape(R, B // R, T, K, N // K, H)
    scores = jnp.einsum("rgtkmh,rksh->rkgtms", grouped, block.k, preferred_element_type=jnp.float32)
    seen = visible(q_positions, q_segments, block, window)[:, None, :, :, None, :]  # [R, 1, G, T, 1, S]
    return jnp.where(seen, softcap(scores * scale, cap), UNSEEN)


def _by_row(x: Array, rows: int) -> Array:
    """[R, K, G, T, M, ...] -> [B, T, K, M, ...]."""
    x = jnp.moveaxis(x, 1, 3)  # [R, G, T, K, M, ...]
    return x.reshape(rows, *x.shape[2:])


def _by_block(x: Array, rows: int) -> Array:
    """[B, T, K, M] -> [R, K, G, T, M]."""
    x = x.reshape(rows, x.shape[0] // rows, *x.shape[1:])  # [R, G, T, K, M]
    return jnp.moveaxis(x, 3, 1)


def matmul(x: Array, w: Array, inputs: int = 1) -> Array:
    """Contract the last `inputs` dimensions of `x` with the first of `w`, as one product of two matrices.

    [rows..., in...] x [in..., out...] -> [rows..., out...]. Written flat because XLA's CPU backend turns the gradient
    of a product with several row dimensions into strided transposes (an mlp's gradient takes twice as long).
    """
    rows, width = x.shape[: x.ndim - inputs], math.prod(w.shape[:inputs])
    return (x.reshape(-1, width) @ w.reshape(width, -1)).reshape(*rows, *w.shape[inputs:])


def linear(layer: dict[str, Any], name: str, x: Array, config: DecoderConfig, *, inputs: int = 1) -> Array:
    """`x w`, and where the layer has an adapter for it, `+ scale (x a^T) b` beside.

    The adapter is never added into the weight, where what is small beside it would be rounded away (arXiv:2106.09685).
    """
    y = rescaled(matmul(x, layer[name], inputs), layer, name)
    return adapted(y, layer, name, x, config, inputs=inputs)


def adapted(y: Array, layer: dict[str, Any], name: str, x: Array, config: DecoderConfig, *, inputs: int = 1) -> Array:
    """`y`, the product of a projection, with what its adapter adds where the layer has one."""
    if name in layer.get("lora", ()):
        a, b = gathered(layer["lora"][name], name, config)
        low = matmul(x, jnp.moveaxis(a, 0, -1), inputs)  # [B, T, r]
        y = y + config.lora.scale * matmul(low, b)
    return y


def gated_mlp(layer: dict[str, Any], x: Array, config: DecoderConfig) -> Array:
    """`(act(x gate) * (x up)) down` (arXiv:2002.05202), or a mixture of such: [B, T, D] -> [B, T, D]."""
    activation = ACTIVATIONS[config.activation]
    if config.num_experts:
        return mixture(
            x,
            layer,
            activation,
            experts_per_token=config.experts_per_token,
            normalize=config.normalize_experts,
            kernel=config.experts_kernel,
        )
    gate, up = _gate_up(layer, x, config)  # [B, T, F]
    if config.mlp_bias:
        gate, up = gate + layer["gate_bias"], up + layer["up_bias"]
    down = linear(layer, "down", activation(gate) * up, config)
    return down + layer["down_bias"] if config.mlp_bias else down


def _gate_up(layer: dict[str, Any], x: Array, config: DecoderConfig) -> tuple[Array, Array]:
    """Both inner products of the mlp, as one where the weights are joined (`decoding.py`)."""
    if "gate_up" not in layer:
        return linear(layer, "gate", x, config), linear(layer, "up", x, config)
    both = rescaled(jnp.einsum("btd,dcf->btcf", x, layer["gate_up"]), layer, "gate_up")
    return tuple(adapted(both[:, :, i], layer, name, x, config) for i, name in enumerate(("gate", "up")))


def _query_key_value(layer: dict[str, Any], x: Array, config: DecoderConfig) -> tuple[Array, Array, Array]:
    """Queries [B, T, N, H], keys and values [B, T, K, H], by one product where the weights are joined."""
    if "qkv" not in layer:
        return tuple(linear(layer, name, x, config) for name in "qkv")
    all_three = rescaled(jnp.einsum("btd,dkmh->btkmh", x, layer["qkv"]), layer, "qkv")
    M = config.num_heads // config.num_kv_heads
    q = all_three[..., :M, :].reshape(*x.shape[:2], config.num_heads, config.head_dim)
    parts = zip("qkv", (q, all_three[..., M, :], all_three[..., M + 1, :]), strict=True)
    return tuple(adapted(y, layer, name, x, config) for name, y in parts)


def project(
    layer: dict[str, Any], x: Array, cos: Array, sin: Array, config: DecoderConfig
) -> tuple[Array, Array, Array]:
    """Rotated queries [B, T, N, H], rotated keys and values [B, K, T, H] of activations [B, T, D].

    Queries and keys are normed before they are rotated where the config says so, by head or over all heads.
    """
    q, k, v = _query_key_value(layer, x, config)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)  # [B, K, T, H]
    if config.qkv_bias:
        q = q + layer["q_bias"]
        k = k + layer["k_bias"][:, None, :]
        v = v + layer["v_bias"][:, None, :]
    norm = partial(rms_norm, eps=config.rms_norm_eps, offset=config.norm_offset)
    if config.qk_norm == "head":
        q, k = norm(q, layer["q_norm"]), norm(k, layer["k_norm"])
    elif config.qk_norm == "width":
        q, k = norm(q, layer["q_norm"], axes=(2, 3)), norm(k, layer["k_norm"][:, None, :], axes=(1, 3))
    return rotate(q, cos[:, :, None], sin[:, :, None]), rotate(k, cos[:, None], sin[:, None]), v


def decoder_layer(
    x: Array,
    layer: dict[str, Any],
    angles: tuple[Array, Array],
    q_positions: Array,
    q_segments: Array,
    store: Callable[[Array, Array], tuple[Sequence[KeyValues], Any]],
    *,
    config: DecoderConfig,
    window: Array | int | None = None,
    attention: Callable[..., Array] = attend,
) -> tuple[Array, Any]:
    """One transformer layer: `x + attention(x)`, then `x + mlp(x)`, each with a norm before it, after it, or both.

    `store(k, v)` is given the new keys and values [B, K, T, H] and returns the blocks that the queries look at, and
    what the caller keeps of them; that is all of caching. `attention` is called as `attend` is.
    x [B, T, D] -> ([B, T, D], what was kept).
    """
    w = jax.tree_util.tree_map_with_path(lambda path, p: p if _is_fine(path) else p.astype(x.dtype), layer)

    def norm(name: str, x: Array) -> Array:
        """Apply the norm of that name if the layer has it."""
        return rms_norm(x, w[name], config.rms_norm_eps, offset=config.norm_offset) if name in w else x

    q, k, v = project(w, norm("attention_norm", x), *angles, config)
    blocks, kept = store(k, v)
    attended = attention(
        q,
        q_positions,
        q_segments,
        blocks,
        scale=config.attention_scale,
        cap=config.attention_softcap,
        window=window,
    )  # [B, T, N, H]
    out = linear(w, "o", attended, config, inputs=2)
    x = x + norm("attention_post_norm", out + w["o_bias"] if config.o_bias else out)
    return x + norm("mlp_post_norm", gated_mlp(w, norm("mlp_norm", x), config)), kept


def _is_fine(path: tuple) -> bool:
    """Norms and scales stay float32, as what they compute."""
    return path[-1].key.endswith("norm") or path[0].key == SCALES
