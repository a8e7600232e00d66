"""PPO with a value model (arXiv:2402.03300, eq. 1 and 2; arXiv:1707.06347, eq. 7).

    J = mean over completions of mean over tokens of  min(rho A, clip(rho, 1 - eps, 1 + eps) A)
    r_t = r(q, o_<=t) - beta (logp_t - ref_t),   A = GAE(r, V; gamma, lambda)

The reward is the outcome at the last token, or step rewards at the ends of their steps. The penalty in the reward is
k1, of the old policy. The value model begins on the policy's trunk with a head of zeros, and is updated with it, by
half the clipped squared error to A + V. The paper names neither gamma, lambda, epsilon nor how values are learnt: ours
are 1, 0.95, 0.2 and a clip of 0.2 (verl 0.5), and advantages are not whitened unless asked (TRL and verl do).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import pydantic

from grpo_jax.algorithms.settings import Clip, clip
from grpo_jax.config import NonNegative, OptimizerConfig, Share, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Clip):
    """PPO."""

    beta: NonNegative = 0.04
    """Coefficient of the KL penalty in each token's reward (0: no reference is kept; TRL 0.05, verl 0.001)."""
    gamma: Share = 1.0
    """Discount of a reward by token."""
    lam: Share = 0.95
    """Lambda of the advantage estimate: 1 takes the rewards to come, 0 the next value (TRL 0.95, verl 1)."""
    value_clip: Annotated[float, pydantic.Field(gt=0.0)] | None = 0.2
    """How far a value may move in one update before its error is held; null: anywhere (TRL 0.2, verl 0.5)."""
    whiten: bool = False
    """Give advantages mean 0 and deviation 1 over the tokens of the batch (TRL and verl: yes)."""
    value_optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    """Of the value model (verl 1e-5)."""


def build(c: Config) -> Algorithm:
    """PPO as a value."""
    from grpo_jax.algorithms.algorithm import Algorithm, Critic, maximize
    from grpo_jax.algorithms.objectives import clipped, kl_k1
    from grpo_jax.algorithms.values import advantages_of
    from grpo_jax.algorithms.weights import sequence_mean

    estimate = advantages_of(gamma=c.gamma, lam=c.lam, whiten=c.whiten)
    return Algorithm(
        None,
        sequence_mean,
        maximize(partial(clipped, **clip(c))),
        reference=c.beta > 0,
        penalty=(lambda logprobs, ref, mask: c.beta * kl_k1(logprobs, ref, mask)) if c.beta else None,
        steps=True,
        baseline=False,
        critic=Critic(estimate, c.value_clip, c.value_optimizer),
    )
