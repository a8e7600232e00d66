"""Which completion of a pair is the better one, where the data say so: 1 for the first of each two, 0 for the second.

For pairs that stand in a file (`rl.algorithm: {kind: dpo, pairs_from: data}`), whose order is their judgement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_jax.config import config

if TYPE_CHECKING:
    from jax import Array

    from grpo_jax.rewards.reward import Reward
    from grpo_jax.types import Rollout


@config
class Config:
    """The order of a pair."""

    weight: float = 1.0
    """Factor in the weighted sum of the rewards."""


def build(c: Config) -> Reward:
    """Make the reward."""
    from grpo_jax.rewards.reward import Reward

    return Reward("preferred", c.weight, array=_order)


def _order(rollout: Rollout) -> Array:
    """-> [P, G] f32."""
    import jax.numpy as jnp

    P, B = rollout.prompts.index.shape[0], rollout.completion_mask.shape[0]
    return jnp.broadcast_to(1.0 - jnp.arange(B // P) % 2, (P, B // P)).astype(jnp.float32)
