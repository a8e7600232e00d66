"""DAPO: clip-higher, a mean over tokens, groups of mixed outcomes only (arXiv:2503.14476, eq. 8 to 12).

    J = 1 / sum |o_i|  sum over completions and tokens of  min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A)
    A_i = (r_i - mean(r)) / std(r)   within the group; groups whose rewards are all equal are left out

Its dynamic sampling, which fills a batch up from further prompts, is `rl.dead_groups: refill`; without it such groups
leave the mean. Its soft penalty for overlong completions is reward `length`, in tokens. The paper's mean is over the
tokens of one question's group; ours, as that of all its implementations, over those of the batch. A group is mixed by
its whole reward, with the penalty for length, where the paper looks at right or wrong alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.algorithms.settings import Clip, Penalty, Scale, clip, in_reward, penalty
from grpo_jax.config import NonNegative, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Scale, Clip, Penalty):
    """DAPO."""

    beta: NonNegative = 0.0
    """Coefficient of the KL penalty to the reference (0: no reference is kept)."""
    epsilon_high: NonNegative | None = 0.28
    """How far above 1 the ratio may rise; None: as epsilon."""


def build(c: Config) -> Algorithm:
    """DAPO as a value."""
    from grpo_jax.algorithms.advantages import SCALES
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, mixed_outcomes, of_outcome
    from grpo_jax.algorithms.objectives import clipped
    from grpo_jax.algorithms.weights import token_mean

    return Algorithm(
        of_outcome(SCALES[c.scale_rewards]),
        token_mean,
        maximize(partial(clipped, **clip(c), **penalty(c))),
        keep=mixed_outcomes,
        reference=c.beta > 0,
        penalty=in_reward(c),
    )
