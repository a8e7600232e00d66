"""CISPO: likelihood weighted by a clipped ratio, so that no token loses its gradient (arXiv:2506.13585, eq. 4 and 5).

    J = 1 / sum |o_i|  sum over completions and tokens of  stop(clip(rho, 1 - eps_low, 1 + eps_high)) A logp
    A_i = (r_i - mean(r)) / std(r)   within the group

As in the paper there is no lower bound (its eps_low is "a large value") and no KL penalty. Its eps_high is tuned and
not told; ours is 4, a ratio of 5. TRL's `epsilon_high` is the bound itself. The mean is over the batch's tokens.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.algorithms.settings import Penalty, Scale, in_reward, penalty
from grpo_jax.config import NonNegative, Share, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Scale, Penalty):
    """CISPO."""

    beta: NonNegative = 0.0
    """Coefficient of the KL penalty to the reference (0: no reference is kept)."""
    epsilon: Share | None = None
    """How far below 1 the weight may fall; None: to 0."""
    epsilon_high: NonNegative = 4.0
    """How far above 1 the weight may rise."""


def build(c: Config) -> Algorithm:
    """CISPO as a value."""
    from grpo_jax.algorithms.advantages import SCALES
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, of_outcome
    from grpo_jax.algorithms.objectives import clipped_weight
    from grpo_jax.algorithms.weights import token_mean

    return Algorithm(
        of_outcome(SCALES[c.scale_rewards]),
        token_mean,
        maximize(partial(clipped_weight, low=c.epsilon, high=c.epsilon_high, **penalty(c))),
        reference=c.beta > 0,
        penalty=in_reward(c),
    )
