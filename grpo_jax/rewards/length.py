"""DAPO's soft penalty for overlong completions (arXiv:2503.14476, eq. 13), in tokens, on the device.

    R(y) = 0                                         |y| <= L_max - L_cache
           ((L_max - L_cache) - |y|) / L_cache       L_max - L_cache < |y| <= L_max
           -1                                        L_max < |y|

|y| counts the tokens that the policy chose, the end of sequence included. A weight scales the penalty.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.config import Positive, config

if TYPE_CHECKING:
    from jax import Array

    from grpo_jax.rewards.reward import Reward
    from grpo_jax.types import Rollout


@config
class Config:
    """Penalty for long completions."""

    weight: float = 1.0
    """Factor in the weighted sum of the rewards."""
    max_length: Positive | None = None
    """L_max, tokens (DAPO 20480); None: the longest completion that the sampler may draw."""
    buffer: Positive = 4096
    """L_cache, tokens before L_max over which the penalty grows from 0 to -1 (DAPO 4096)."""


def build(c: Config) -> Reward:
    """Make the reward; raises `RewardError` if the buffer is longer than the completion may be."""
    from grpo_jax.rewards.reward import Reward, RewardError

    if c.max_length is not None and c.buffer > c.max_length:
        raise RewardError(
            f"rewards: length: buffer {c.buffer} is longer than max_length {c.max_length}; "
            "every completion would be punished"
        )
    return Reward("length", c.weight, array=partial(_penalty, max_length=c.max_length, buffer=c.buffer))


def _penalty(rollout: Rollout, *, max_length: int | None, buffer: int) -> Array:
    import jax.numpy as jnp

    mask = rollout.completion_mask  # [B, Tc]
    limit = mask.shape[1] if max_length is None else max_length
    lengths = mask.sum(axis=1).reshape(rollout.prompts.index.shape[0], -1)  # [P, G]
    return jnp.clip((limit - buffer - lengths) / buffer, -1.0, 0.0).astype(jnp.float32)
