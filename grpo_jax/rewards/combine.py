"""The weighted sum of the parts of a reward, on the device."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def combine(parts: Array, weights: Array) -> Array:
    """Sum the parts by their weights; a NaN part contributes nothing, and where all parts are NaN so is the sum.

        r[p, g] = sum over the parts r that are not NaN of weights[r] * parts[r, p, g]

    Pure; jit it together with the array rewards, whose results are further rows of `parts`:

        @jax.jit
        def outcome(host_parts, rollout):
            array_parts = jnp.stack([reward.array(rollout) for reward in array_rewards])
            return combine(jnp.concatenate([host_parts, array_parts]), weights)

    Args:
        parts: [R, P, G] f32.
        weights: [R] f32, in the order of the parts.

    Returns:
        [P, G] f32.
    """
    parts = jnp.asarray(parts, jnp.float32)
    missing = jnp.isnan(parts)
    known = jnp.where(missing, 0.0, parts)
    total = jnp.einsum("r,rpg->pg", jnp.asarray(weights, jnp.float32), known, precision="highest")
    return jnp.where(missing.all(axis=0), jnp.nan, total)
