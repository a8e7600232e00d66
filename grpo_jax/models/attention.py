"""Attention over whole sequences: three computations of one formula, and the rule that chooses between them.

`plain` is `ops.attend`, the reference; it holds the scores of all queries at once. `blocks` takes the queries piece by
piece, in plain JAX, and computes their scores again in the backward pass. `splash` is JAX's Pallas kernel for TPUs,
which writes no score to memory. The latter two are for queries that look at their own tokens and at what lies before
all of them: training, scoring and prefill. Decoding, one token after the other, is always plain.

Letters as in `ops.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.ops import KeyValues, attend
from grpo_jax.sharding import MESH_AXES, platform_in_context, spec

if TYPE_CHECKING:
    from grpo_jax.models.decoder import DecoderConfig

Attend = Callable[..., Array]

PIECES = 8  # of the queries at most: each is compiled by itself
PIECE = 128  # queries of a piece at least
LONG = 512  # queries from which on `auto` takes no plain attention; below, the scores are small
TILES = (512, 256, 128)  # queries, and keys, that the TPU kernel holds on the chip at once


class AttentionError(ValueError):
    """A kernel that cannot compute what is asked; the message names both and the remedy."""

    exit_code = 2


def blockwise(
    q: Array,
    q_positions: Array,
    q_segments: Array,
    blocks: Sequence[KeyValues],
    *,
    piece: int | None = None,
    **about,
) -> Array:
    """`ops.attend` for queries whose own keys are the last block, `piece` queries after the other.

    A piece multiplies only with the own keys up to its last query, so that close to half of that product is never
    computed, and its scores are computed again in the backward pass: a layer keeps none, and while it is computed the
    compiler holds those of as many pieces as it computes side by side (on CPUs all). `about` as in `attend`.
    q [B, T, N, H] -> [B, T, N, H].
    """
    *shared, own = blocks
    time = q.shape[1]
    _check_own(own, time)
    piece = piece or piece_of(time)

    @jax.checkpoint
    def one(q, positions, segments, blocks):
        return attend(q, positions, segments, blocks, **about)

    out = []
    for start in range(0, time, piece):
        now = slice(start, min(start + piece, time))
        before = KeyValues(
            own.k[:, :, : now.stop], own.v[:, :, : now.stop], own.positions[:, : now.stop], own.segments[:, : now.stop]
        )
        out.append(one(q[:, now], q_positions[:, now], q_segments[:, now], [*shared, before]))
    return jnp.concatenate(out, axis=1)


def piece_of(time: int) -> int:
    """Queries of a piece."""
    return max(PIECE, -(-time // PIECES))


def splash(
    q: Array,
    q_positions: Array,
    q_segments: Array,
    blocks: Sequence[KeyValues],
    *,
    scale: float | None = None,
    cap: float | None = None,
    window: None = None,
    interpret: bool = False,
) -> Array:
    """`ops.attend` by JAX's splash kernel for TPUs, for queries whose own keys are the last block.

    Keys of the other blocks lie before all queries; they are laid out beside each row's own. Within a row positions
    rise with the slots, as in `Sequences`, so that the mask is a diagonal, which the kernel knows beforehand, and equal
    segments. Lengths are filled up to whole tiles with keys that none sees. A mesh splits rows and heads, and nothing
    is exchanged. q [B, T, N, H] -> [B, T, N, H]. Raises `AttentionError` for a window.
    """
    if window is not None:
        raise AttentionError("splash attention: the model has layers with a window; choose blocks or xla")
    _check_own(blocks[-1], q.shape[1])
    one = partial(_splash, scale=scale, cap=cap, interpret=interpret)
    keys, values, segments = ([getattr(b, name) for b in blocks] for name in ("k", "v", "segments"))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return one(q, q_segments, keys, values, segments)
    by_row, by_head, by_kv_head = spec("batch"), spec("batch", None, "heads"), spec("batch", "kv_heads")
    on_mesh = jax.shard_map(
        one,
        in_specs=(by_head, by_row, by_kv_head, by_kv_head, by_row),
        out_specs=by_head,
        axis_names=set(MESH_AXES),
        check_vma=False,  # a Pallas call does not say over which axes its results differ
    )
    return on_mesh(q, q_segments, keys, values, segments)


def _splash(
    q: Array, q_segments: Array, keys: list[Array], values: list[Array], segments: list[Array], *, scale, cap, interpret
) -> Array:
    """`splash` of the rows and heads of one device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    B, T, N, H = q.shape
    tile = _tile(T)
    after = -T % tile
    size = sum(x.shape[1] for x in segments) + after
    key_tile = _tile(size)
    before = -size % key_tile

    def laid_out(parts: list[Array], axis: int) -> Array:
        """What each row sees in one array: filled up, the other blocks, its own, filled up."""
        whole = jnp.concatenate([jnp.repeat(x, B // x.shape[0], axis=0) for x in parts], axis=axis)
        return jnp.pad(whole, [(before, after) if i == axis else (0, 0) for i in range(whole.ndim)])

    scaled = (q.astype(jnp.float32) * (H**-0.5 if scale is None else scale)).astype(q.dtype)
    queries = jnp.pad(jnp.swapaxes(scaled, 1, 2), ((0, 0), (0, 0), (0, after), (0, 0)))  # [B, N, T', H]
    ids = kernel.SegmentIds(jnp.pad(q_segments, ((0, 0), (0, after))), laid_out(segments, 1))
    mask = masks.CausalMask((T + after, before + size), offset=before + size - T - after)
    attention = kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * N),
        block_sizes=_tiles(tile, key_tile),
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )
    out = jax.vmap(attention)(queries, laid_out(keys, 2), laid_out(values, 2), ids)  # [B, N, T', H]
    out = jnp.swapaxes(out[:, :, :T], 1, 2)
    return jnp.where(q_segments[:, :, None, None] > 0, out, 0)  # padding sees padding, and must give nothing


def _tile(length: int) -> int:
    """The largest tile for whose sake a length is filled up by an eighth at most, else the smallest."""
    return next((tile for tile in TILES if -length % tile <= length // 8), TILES[-1])


def _tiles(queries: int, keys: int):
    """Tiles of the forward pass and of both backward kernels."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    names = ("block_q", "block_q_dkv", "block_q_dq"), ("block_kv", "block_kv_dkv", "block_kv_dq")
    return kernel.BlockSizes(**dict.fromkeys(names[0], queries), **dict.fromkeys(names[1], keys))


def _check_own(own: KeyValues, time: int) -> None:
    """Refuse queries over a cache that holds more than their own keys."""
    if own.k.shape[2] != time:
        raise AttentionError(
            f"attention of {time} queries over {own.k.shape[2]} keys: blocks and splash need the queries' own keys and "
            "no others, in the last block; such a cache is for plain attention"
        )


KERNELS: dict[str, Attend] = {"xla": attend, "blocks": blockwise, "splash": splash}
AUTO = {"cpu": "blocks", "tpu": "splash"}  # from LONG queries on; elsewhere, and for windows on TPUs: xla


def automatic(config: DecoderConfig, device: str, time: int) -> str:
    """The kernel that `auto` stands for, of queries over their own keys: by length, platform and windows.

    By what was measured on CPUs (blocks are 1.4 times faster from `LONG` on, in two thirds of the memory) and by what
    the TPU compiler counts (splash moves a sixth of the bytes; blocks more than plain attention).
    """
    kernel = AUTO.get(device, "xla") if time >= LONG else "xla"
    return "xla" if kernel == "splash" and any(config.windows) else kernel


def choose(config: DecoderConfig, time: int, *, own: bool) -> Attend:
    """The attention of a pass over `time` queries; `own`: they look at their own keys and what lies before all of them.

    Raises `AttentionError` for a kernel that the devices of the mesh do not have.
    """
    return KERNELS[chosen(config, time)] if own and time > 1 else attend


def chosen(config: DecoderConfig, time: int) -> str:
    """The name of the kernel for a pass over `time` queries on the mesh in context; errors as `choose`."""
    device = platform_in_context()
    if config.attention_kernel == "splash" and device != "tpu":
        raise AttentionError(
            f"model.attention_kernel: splash is a kernel for TPUs, and the devices are of platform {device}; "
            "choose auto, xla or blocks"
        )
    return kernel_of(config, device, time)


def kernel_of(config: DecoderConfig, device: str, time: int) -> str:
    """The name of the kernel for a pass over `time` queries on devices of this platform, which is not checked."""
    return automatic(config, device, time) if config.attention_kernel == "auto" else config.attention_kernel
