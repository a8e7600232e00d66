"""GRPO, the paper's objective (arXiv:2402.03300, eq. 3 and 4), with outcome or process supervision.

    J = mean over completions of mean over tokens of  min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta k3
    outcome (section 4.1.2)   A_i = (r_i - mean(r)) / std(r)   within the group, for every token of completion i
    process (section 4.1.3)   A_{i,t} = sum over the steps that end at t or later of (r - mean(R)) / std(R),
                              R all step rewards of the group; taken where a reward gives steps

The paper leaves open, and we choose: epsilon 0.2 (PPO's), the population deviation, and an advantage of exactly 0 for
a group without spread, whose KL term stays. TRL's default differs in both means (`dapo`, over all tokens) and in beta
(0); Tunix's default KL estimate is k1, whose gradient in a loss carries no information.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.algorithms.settings import Clip, Penalty, Scale, clip, in_reward, penalty
from grpo_jax.config import config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Scale, Clip, Penalty):
    """GRPO."""


def build(c: Config) -> Algorithm:
    """GRPO as a value."""
    from grpo_jax.algorithms.advantages import SCALES, process_normalized
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, of_either
    from grpo_jax.algorithms.objectives import clipped
    from grpo_jax.algorithms.weights import sequence_mean

    return Algorithm(
        of_either(SCALES[c.scale_rewards], process_normalized),
        sequence_mean,
        maximize(partial(clipped, **clip(c), **penalty(c))),
        reference=c.beta > 0,
        penalty=in_reward(c),
        steps=True,
    )
