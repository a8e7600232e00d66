"""RLOO: REINFORCE on whole completions, the others of the group as the baseline (arXiv:2402.14740, eq. 6 to 8).

    J = mean over completions of  A_i sum_t logp_t
    A_i = R_i - mean(R of the others),   R_i = r_i - beta sum_t (logp_t - ref_t)

The KL penalty is in the reward, by k1; the paper tunes beta, 0.05 is TRL's. There is no ratio: with several updates on
one batch (`num_iterations`) the later ones are off the policy, where TRL clips the ratio of whole completions.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from grpo_jax.algorithms.settings import Penalty, in_reward, penalty
from grpo_jax.config import NonNegative, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Penalty):
    """RLOO."""

    beta: NonNegative = 0.05
    """Coefficient of the KL penalty to the reference (TRL 0.05; 0: no reference is kept)."""
    kl: Literal["k1", "k2", "k3"] = "k1"
    """Estimate of the divergence: log-ratio, its square over 2, or GRPO's."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Where it is subtracted: from each token's objective, or summed over tokens from the completion's reward."""


def build(c: Config) -> Algorithm:
    """RLOO as a value."""
    from grpo_jax.algorithms.advantages import leave_one_out
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, of_outcome
    from grpo_jax.algorithms.objectives import likelihood
    from grpo_jax.algorithms.weights import sequence_sum

    return Algorithm(
        of_outcome(leave_one_out),
        sequence_sum,
        maximize(partial(likelihood, **penalty(c))),
        reference=c.beta > 0,
        penalty=in_reward(c),
    )
