"""The weighted sum of the parts of a reward, on the device."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def combine(parts: Array, weights: Array, optional: Array | None = None) -> Array:
    """Sum the parts by their weights; what cannot be judged is NaN, and leaves its group's baseline.

        r[p, g] = sum over the parts r that are not NaN of weights[r] * parts[r, p, g]
        r[p, g] = NaN where a part that is not optional is NaN, or all parts are

    An optional part that is NaN contributes nothing: TRL's meaning of None, "this function does not apply here".

    Pure; jit it together with the array rewards, whose results are further rows of `parts`:

        @jax.jit
        def outcome(host_parts, rollout):
            array_parts = jnp.stack([reward.array(rollout) for reward in array_rewards])
            return combine(jnp.concatenate([host_parts, array_parts]), weights)

    Args:
        parts: [R, P, G] f32.
        weights: [R] f32, in the order of the parts.
        optional: [R] bool; None: no part is.

    Returns:
        [P, G] f32.
    """
    parts = jnp.asarray(parts, jnp.float32)
    missing = jnp.isnan(parts)
    known = jnp.where(missing, 0.0, parts)
    total = jnp.einsum("r,rpg->pg", jnp.asarray(weights, jnp.float32), known, precision="highest")
    needed = jnp.ones(len(parts), bool) if optional is None else ~jnp.asarray(optional)
    unjudged = (missing & needed[:, None, None]).any(axis=0) | missing.all(axis=0)
    return jnp.where(unjudged, jnp.nan, total)
