"""What a value model is for: rewards by token, advantages from them, and the loss of the values."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from grpo_jax.algorithms.advantages import gae, whitened
from grpo_jax.algorithms.objectives import Metrics
from grpo_jax.types import Experience, Rewards


def token_rewards(rewards: Rewards, mask: Array, penalty: Array) -> Array:
    """The reward of each token: `r_t = r(q, o_<=t) - penalty_t`, the first term only where something is judged.

    That is the end of each step where there are step rewards, else the completion's last token. What cannot be judged
    counts as 0; such completions are not trained on. mask, penalty [B, Tc] -> [B, Tc] f32, 0 off the mask.
    arXiv:2402.03300, eq. 2.
    """
    last = mask & (jnp.cumsum(mask, -1) == mask.sum(-1, keepdims=True))
    judged = jnp.where(last, rewards.outcome.reshape(-1, 1), 0.0)
    if rewards.steps is not None:
        judged = jnp.where(rewards.step_mask, rewards.steps, 0.0).reshape(mask.shape)
    return jnp.where(mask, jnp.nan_to_num(judged) - penalty, 0.0)


def advantages_of(*, gamma: float, lam: float, whiten: bool) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    """Generalised advantage estimates as a function (rewards, values, mask) -> (advantages, returns), [B, Tc] each."""

    def estimate(rewards: Array, values: Array, mask: Array) -> tuple[Array, Array]:
        advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
        return (whitened(advantages, mask) if whiten else advantages), returns

    return estimate


def clipped_value_loss(values: Array, experience: Experience, *, clip: float | None) -> tuple[Array, Metrics]:
    """`0.5 sum(weights max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2))`, a sum over rows; c None: no clipping.

    values [B, Tc], those of now; of the experience `values` (V_old) and `returns` (R). Not in the paper; PPO's code,
    verl and TRL have it so, with a mean over tokens. Ours is reduced by the policy's weights. Metrics: V, the squared
    error, and the share of tokens that the clip holds.
    """
    mask, returns, old = experience.completion_mask, experience.returns, experience.values
    values = jnp.where(mask, values, 0.0)
    error = (values - returns) ** 2
    near = values if clip is None else jnp.clip(values, old - clip, old + clip)
    worst = jnp.maximum(error, (near - returns) ** 2)
    held = (worst > error).astype(jnp.float32)
    loss = 0.5 * jnp.sum(experience.weights * jnp.where(mask, worst, 0.0))
    return loss, {"value/mean": values, "value/error": error, "value/clip_ratio": held}
