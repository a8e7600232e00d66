"""From rewards to advantages: pure functions of arrays by group.

NaN marks a completion that could not be judged. It leaves its group's baseline, and its own advantage is 0.
Sums run in float32 and in two passes (mean, then deviations): the one-pass variance E[x^2] - E[x]^2 leaves a residue
that looks like spread where there is none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

# Rewards that differ by less than this share of their size are equal up to float32 rounding.
RESOLUTION = 1e-6


def group_centered(rewards: Array) -> Array:
    """Reward minus the mean of its group: `A_i = r_i - mean(r)`.

    rewards [P, G] -> [P, G] f32. Dr. GRPO, arXiv:2503.20783, section 3.2.
    """
    rewards = rewards.astype(jnp.float32)
    judged = ~jnp.isnan(rewards)
    return _centered(rewards, judged, axes=(-1,))


def group_normalized(rewards: Array) -> Array:
    """Reward minus the mean of its group, over the group's standard deviation: `A_i = (r_i - mean(r)) / std(r)`.

    rewards [P, G] -> [P, G] f32. arXiv:2402.03300, section 4.1.2. The paper does not say which deviation; ours is the
    population's (its authors' worked example 0,1,0,1 -> -1,1,-1,1), TRL, verl and Tunix divide by G - 1. A group
    without spread gives exactly 0, where peers divide rounding noise by a small constant.
    """
    rewards = rewards.astype(jnp.float32)
    judged = ~jnp.isnan(rewards)
    return _over_deviation(rewards, judged, axes=(-1,))


def leave_one_out(rewards: Array) -> Array:
    """Reward minus the mean of the others in its group: `A_i = r_i - mean(r without r_i)`.

    rewards [P, G] -> [P, G] f32; a group of one judged completion gives 0. RLOO, arXiv:2402.14740, eq. 8.
    """
    judged = ~jnp.isnan(rewards)
    count = judged.sum(-1, keepdims=True)
    return jnp.where(count > 1, group_centered(rewards) * count / jnp.maximum(count - 1, 1), 0.0)


def batch_scaled(rewards: Array) -> Array:
    """Reward minus the mean of its group, over the deviation of all rewards of the batch: `(r_i - mean(r)) / std(R)`.

    rewards [P, G] -> [P, G] f32. TRL's `scale_rewards: batch` (there the sample's deviation and 1e-4 added). The
    easiest and the hardest prompts, whose groups have little spread, weigh no more than others.
    """
    rewards = rewards.astype(jnp.float32)
    judged = ~jnp.isnan(rewards)
    deviation = _deviation(_centered(rewards, judged, axes=(-2, -1)), judged, axes=(-2, -1))
    return _divided(_centered(rewards, judged, axes=(-1,)), deviation)


def globally_normalized(rewards: Array) -> Array:
    """Centred by group, then normalised over the batch: `a = r - mean(r)`, `A = (a - mean(a)) / std(a)`.

    rewards [P, G] -> [P, G] f32. REINFORCE++ with baseline, arXiv:2501.03262, section 3. mean(a) over the batch is 0
    up to rounding, whatever the groups' sizes, so that nothing is left to subtract.
    """
    rewards = rewards.astype(jnp.float32)
    judged = ~jnp.isnan(rewards)
    centered = _centered(rewards, judged, axes=(-1,))
    return _divided(centered, _deviation(centered, judged, axes=(-2, -1)))


SCALES = {"group": group_normalized, "batch": batch_scaled, "none": group_centered}
"""What divides a centred reward: the deviation of its group, that of the batch, or nothing."""


def correct_only(rewards: Array, *, threshold: float = 0.5) -> Array:
    """The indicator of a right completion: `I(o) = 1 if r > threshold else 0`.

    rewards [P, G] -> [P, G] f32. RFT and online RFT, arXiv:2402.03300, eq. 10.
    """
    return (rewards > threshold).astype(jnp.float32)


def whitened(advantages: Array, mask: Array) -> Array:
    """Advantages with mean 0 and deviation 1 over the tokens of the batch: `(A - mean(A)) / std(A)`.

    advantages, mask [B, T] -> [B, T] f32, 0 off the mask. A setting of PPO that is not in the paper; the deviation is
    the population's (verl: the sample's).
    """
    return _over_deviation(advantages.astype(jnp.float32), mask, axes=(-2, -1))


def process_normalized(steps: Array, step_mask: Array) -> Array:
    """Normalised step rewards, summed from each token to the end of its completion.

    `r~ = (r - mean(R)) / std(R)` with one mean and one deviation over all step rewards R of the group, then
    `A_{i,t} = sum of r~_i^j over the steps j that end at t or later`; after the last step it is 0.
    steps [P, G, Tc] with step_mask [P, G, Tc] True where a step ends -> [P, G, Tc] f32.
    arXiv:2402.03300, section 4.1.3 (population deviation; a group without spread gives exactly 0).
    """
    judged = step_mask & ~jnp.isnan(steps)
    normalized = _over_deviation(steps.astype(jnp.float32), judged, axes=(-2, -1))
    return jnp.flip(jnp.cumsum(jnp.flip(normalized, -1), -1), -1)


def gae(rewards: Array, values: Array, mask: Array, *, gamma: float, lam: float) -> tuple[Array, Array]:
    """Generalised advantage estimates and returns over the chosen tokens of completions.

    `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, V after the last token is 0,
    `returns = A + V`; t + 1 is the next chosen token: what a tool says between is no step of the policy's. rewards,
    values, mask [B, T] -> two [B, T] f32, 0 off the mask. arXiv:1506.02438, eq. 16.
    """
    rewards, values = (jnp.where(mask, x, 0.0).astype(jnp.float32) for x in (rewards, values))

    def backward(carry, inputs):
        advantage, value_after = carry  # [B], [B]
        reward, value, chosen = inputs
        now = reward + gamma * value_after - value + gamma * lam * advantage
        carry = jnp.where(chosen, now, advantage), jnp.where(chosen, value, value_after)
        return carry, jnp.where(chosen, now, 0.0)

    start = (jnp.zeros_like(rewards[:, 0]), jnp.zeros_like(rewards[:, 0]))
    _, advantages = jax.lax.scan(backward, start, (rewards.T, values.T, mask.T), reverse=True)
    advantages = advantages.T  # [B, T]
    return advantages, advantages + values


def dead_groups(rewards: Array) -> Array:
    """Which groups carry no signal: all judged rewards equal, or fewer than two judged. [P, G] -> [P] bool."""
    judged = ~jnp.isnan(rewards)
    return ~_has_spread(rewards.astype(jnp.float32), judged, axes=(-1,))[..., 0]


def _centered(rewards: Array, judged: Array, axes: tuple[int, ...]) -> Array:
    count = jnp.maximum(judged.sum(axes, keepdims=True), 1)
    mean = jnp.where(judged, rewards, 0.0).sum(axes, keepdims=True) / count
    spread = _has_spread(rewards, judged, axes)
    return jnp.where(judged & spread, rewards - mean, 0.0)


def _over_deviation(rewards: Array, judged: Array, axes: tuple[int, ...]) -> Array:
    count = jnp.maximum(judged.sum(axes, keepdims=True), 1)
    centered = _centered(rewards, judged, axes)
    variance = (centered**2).sum(axes, keepdims=True) / count
    return jnp.where(variance > 0, centered / jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)


def _deviation(centered: Array, judged: Array, axes: tuple[int, ...]) -> Array:
    """The population's deviation of what is centred, and 0 where it is not judged."""
    count = jnp.maximum(judged.sum(axes, keepdims=True), 1)
    return jnp.sqrt((centered**2).sum(axes, keepdims=True) / count)


def _divided(centered: Array, deviation: Array) -> Array:
    return jnp.where(deviation > 0, centered / jnp.where(deviation > 0, deviation, 1.0), 0.0)


def _has_spread(rewards: Array, judged: Array, axes: tuple[int, ...]) -> Array:
    highest = jnp.where(judged, rewards, -jnp.inf).max(axes, keepdims=True)
    lowest = jnp.where(judged, rewards, jnp.inf).min(axes, keepdims=True)
    size = jnp.where(judged, jnp.abs(rewards), 0.0).max(axes, keepdims=True)
    return highest - lowest > RESOLUTION * size
