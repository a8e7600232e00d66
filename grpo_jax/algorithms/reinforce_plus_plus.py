"""REINFORCE++ with baseline: centred by group, normalised over the batch (arXiv:2501.03262, section 3).

    J = 1 / sum |o_i|  sum over completions and tokens of  min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta k2
    a_i = r_i - mean(r)   within the group,   A_i = (a_i - mean(a)) / std(a)   over the batch

The statistics are over completions; OpenRLHF and verl take them over tokens, where a long completion counts for more.
The mean over tokens is OpenRLHF's default. k2 in the loss has the gradient of the divergence; beta is ours.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from grpo_jax.algorithms.settings import Clip, Penalty, clip, in_reward, penalty
from grpo_jax.config import NonNegative, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Clip, Penalty):
    """REINFORCE++ with baseline."""

    beta: NonNegative = 0.001
    """Coefficient of the KL penalty to the reference (0: no reference is kept)."""
    kl: Literal["k1", "k2", "k3"] = "k2"
    """Estimate of the divergence: log-ratio, its square over 2, or GRPO's."""


def build(c: Config) -> Algorithm:
    """REINFORCE++ with baseline as a value."""
    from grpo_jax.algorithms.advantages import globally_normalized
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, of_outcome
    from grpo_jax.algorithms.objectives import clipped
    from grpo_jax.algorithms.weights import token_mean

    return Algorithm(
        of_outcome(globally_normalized),
        token_mean,
        maximize(partial(clipped, **clip(c), **penalty(c))),
        reference=c.beta > 0,
        penalty=in_reward(c),
    )
