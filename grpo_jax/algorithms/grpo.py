"""GRPO with outcome supervision, the paper's objective (arXiv:2402.03300, eq. 3 and 4, section 4.1.2).

    J = mean over completions of mean over tokens of  min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta k3
    A_i = (r_i - mean(r)) / std(r)   within the group, for every token of completion i

The paper leaves open, and we choose: epsilon 0.2 (PPO's), the population deviation, and an advantage of exactly 0 for
a group without spread, whose KL term stays. TRL's default differs in both means (`dapo`, over all tokens) and in beta
(0); Tunix's default KL estimate is k1, whose gradient in a loss carries no information.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.config import NonNegative, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config:
    """GRPO, outcome supervision."""

    beta: NonNegative = 0.04
    """Coefficient of the KL penalty to the reference (paper 0.04; TRL 0.0; 0: no reference is kept)."""
    epsilon: NonNegative = 0.2
    """How far below 1 the ratio may fall before clipping, and above 1 unless epsilon_high is given."""
    epsilon_high: NonNegative | None = None
    """How far above 1 the ratio may rise; None: as epsilon."""


def build(c: Config) -> Algorithm:
    """GRPO as a value."""
    from grpo_jax.algorithms.advantages import group_normalized
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, of_outcome
    from grpo_jax.algorithms.objectives import clipped
    from grpo_jax.algorithms.weights import sequence_mean

    high = c.epsilon if c.epsilon_high is None else c.epsilon_high
    objective = partial(clipped, low=c.epsilon, high=high, beta=c.beta)
    return Algorithm(of_outcome(group_normalized), sequence_mean, maximize(objective), reference=c.beta > 0)
