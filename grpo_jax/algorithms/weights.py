"""Reductions as weights: every loss is `-sum(weights * objective)`, linear in rows.

The weights are made once, from the mask of the global batch. Micro-batches, accumulation, data parallelism and
dropped groups then give one gradient by construction: whoever sums a part of the rows sums a part of the loss.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def sequence_mean(mask: Array) -> Array:
    """Mean over each completion's tokens, then over completions: `1 / (R |o_i|)`, R completions with any token.

    mask [B, Tc] -> [B, Tc] f32. arXiv:2402.03300, eq. 3 (the 1/G and 1/|o_i| there, and the mean over questions).
    """
    length = mask.sum(-1, keepdims=True)  # [B, 1]
    rows = jnp.maximum((length > 0).sum(), 1)
    return jnp.where(mask, 1.0 / (rows * jnp.maximum(length, 1)), 0.0).astype(jnp.float32)


def token_mean(mask: Array) -> Array:
    """Mean over all tokens of the batch: `1 / sum |o_i|`.

    mask [B, Tc] -> [B, Tc] f32. DAPO, arXiv:2503.14476, eq. 8: a long completion counts for more than a short one.
    """
    return mask / jnp.maximum(mask.sum(), 1).astype(jnp.float32)


def constant_length(mask: Array, length: int | None = None) -> Array:
    """Sum over tokens over a constant, mean over completions: `1 / (R length)`; None: the longest there may be, Tc.

    mask [B, Tc] -> [B, Tc] f32. Dr. GRPO, arXiv:2503.20783, section 3.2: no completion gains by being short or long.
    """
    rows = jnp.maximum(mask.any(-1).sum(), 1)
    return mask / (rows * (length or mask.shape[-1])).astype(jnp.float32)


def sequence_sum(mask: Array) -> Array:
    """Sum over each completion's tokens, mean over completions: `1 / R`; a completion is one action.

    mask [B, Tc] -> [B, Tc] f32. REINFORCE on whole completions, RLOO, arXiv:2402.14740, eq. 6.
    """
    return constant_length(mask, 1)
