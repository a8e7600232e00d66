"""The weighted sum of the parts of a reward, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from grpo_jax.rewards.reward import StepRewards
from grpo_jax.types import Rewards


def combine_all(
    parts: Sequence[Array | StepRewards], weights: Array, optional: Array | None = None
) -> tuple[Array, Rewards]:
    """The parts one by one, and what they come to: `combine` of their outcomes, and step rewards if a part has some.

        r[t] = sum over the parts with steps of weights * steps[t],  and at the completion's last step end
               the other parts' weighted sum besides: they are known when it is finished

    A completion whose outcome is NaN has NaN at all its steps, and leaves its group's baseline.
    -> [R, P, G] f32, Rewards.
    """
    values = jnp.stack([part.outcome if isinstance(part, StepRewards) else part for part in parts])
    values = values.astype(jnp.float32)
    outcome = combine(values, weights, optional)
    judged = [i for i, part in enumerate(parts) if isinstance(part, StepRewards)]
    if not judged:
        return values, Rewards(outcome)
    steps = sum(weights[i] * parts[i].steps for i in judged)  # [P, G, Tc]
    mask = sum(parts[i].step_mask for i in judged) > 0
    others = [i for i in range(len(parts)) if i not in judged]
    rest = sum((weights[i] * jnp.nan_to_num(values[i]) for i in others), jnp.zeros_like(outcome))
    last = mask & (jnp.cumsum(mask, -1) == mask.sum(-1, keepdims=True))
    steps = jnp.where(mask, steps, 0.0) + jnp.where(last, rest[..., None], 0.0)
    steps = jnp.where(mask & jnp.isnan(outcome)[..., None], jnp.nan, steps)
    return values, Rewards(outcome, steps, mask)


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
