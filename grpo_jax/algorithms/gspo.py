"""GSPO: the ratio, and its clip, of whole completions (arXiv:2507.18071, eq. 5 to 7 and 13 to 14).

    J = mean over completions of  min(s A, clip(s, 1 - eps_low, 1 + eps_high) A),   s = exp(mean_t(logp_t - old_t))
    A_i = (r_i - mean(r)) / std(r)   within the group

`level: token` takes GSPO-token, whose value is the same and whose gradient may weigh tokens differently. On-policy the
gradient is GRPO's. The clip is narrow, as a mean over tokens moves little; no KL penalty, as in the paper. TRL's
sequence form weighs completions by its `loss_type`; with `grpo` it is this.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from grpo_jax.algorithms.settings import Clip, Penalty, Scale, clip, in_reward, penalty
from grpo_jax.config import NonNegative, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Scale, Clip, Penalty):
    """GSPO."""

    beta: NonNegative = 0.0
    """Coefficient of the KL penalty to the reference (0: no reference is kept)."""
    epsilon: NonNegative = 3e-4
    """How far below 1 the ratio may fall before clipping, and above 1 unless epsilon_high is given."""
    epsilon_high: NonNegative | None = 4e-4
    """How far above 1 the ratio may rise; None: as epsilon."""
    level: Literal["sequence", "token"] = "sequence"
    """Whose gradient the ratio has: the completion's, or each token's own."""


def build(c: Config) -> Algorithm:
    """GSPO as a value."""
    from grpo_jax.algorithms.advantages import SCALES
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, of_outcome
    from grpo_jax.algorithms.objectives import clipped, sequence_ratio, sequence_token_ratio
    from grpo_jax.algorithms.weights import sequence_mean

    ratio = sequence_ratio if c.level == "sequence" else sequence_token_ratio
    return Algorithm(
        of_outcome(SCALES[c.scale_rewards]),
        sequence_mean,
        maximize(partial(clipped, ratio=ratio, **clip(c), **penalty(c))),
        reference=c.beta > 0,
        penalty=in_reward(c),
    )
