"""Which tokens may be drawn: pure functions on logits [..., V] that set the others to minus infinity.

Each keeps the likeliest token, so a distribution is never empty. Ties at a threshold are all kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def top_k(logits: Array, k: int) -> Array:
    """Keep the k likeliest tokens. [..., V] -> [..., V]; k = 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def top_p(logits: Array, p: float) -> Array:
    """Keep the smallest set of likeliest tokens whose probability reaches p. [..., V] -> [..., V]; p = 1 keeps all.

    Nucleus sampling, arXiv:1904.09751, section 3.1.
    """
    if p >= 1.0:
        return logits
    ordered = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # mass of the likelier tokens
    threshold = jnp.where(before < p, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < jnp.minimum(threshold, ordered[..., :1]), -jnp.inf, logits)


def min_p(logits: Array, share: float) -> Array:
    """Keep tokens with at least `share` of the likeliest token's probability. [..., V] -> [..., V]; 0 keeps all."""
    if share <= 0.0:
        return logits
    return jnp.where(logits < logits.max(-1, keepdims=True) + jnp.log(share), -jnp.inf, logits)
