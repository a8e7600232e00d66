"""Dr. GRPO: GRPO without its two normalisers (arXiv:2503.20783, section 3.2).

    J = 1/R sum over completions of 1/L sum over tokens of  min(rho A, clip(rho, 1 - eps, 1 + eps) A),   L constant
    A_i = r_i - mean(r)   within the group

The paper's L is 1 or the budget of tokens; ours is `length`, by default the longest completion there may be, as in TRL.
verl sums over samples and does not divide by their number. No KL penalty, as in the paper.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.algorithms.settings import Clip, Penalty, clip, in_reward, penalty
from grpo_jax.config import NonNegative, Positive, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Clip, Penalty):
    """Dr. GRPO."""

    beta: NonNegative = 0.0
    """Coefficient of the KL penalty to the reference (0: no reference is kept)."""
    length: Positive | None = None
    """The constant that sums over tokens are divided by; None: max_completion_length."""


def build(c: Config) -> Algorithm:
    """Dr. GRPO as a value."""
    from grpo_jax.algorithms.advantages import group_centered
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, of_outcome
    from grpo_jax.algorithms.objectives import clipped
    from grpo_jax.algorithms.weights import constant_length

    return Algorithm(
        of_outcome(group_centered),
        partial(constant_length, length=c.length),
        maximize(partial(clipped, **clip(c), **penalty(c))),
        reference=c.beta > 0,
        penalty=in_reward(c),
    )
