"""RFT: likelihood of right completions, written by the policy the stage began with (arXiv:2402.03300, eq. 8 to 10).

    J = mean over completions of  I(o)  mean_t logp_t,   I(o) = 1 if r > threshold else 0,   o ~ the reference

Who samples is all that tells it from `online_rft`. The reference is the policy at the start of an outer iteration, so
that `rl.iterations` 1 is RFT, and more are the self-taught loop of expert iteration. Yuan et al. (arXiv:2308.01825)
leave out solutions that a question has twice; `distinct` does, by tokens and within a step, where they compare lists of
equations. The paper does not say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_jax.algorithms import online_rft
from grpo_jax.config import config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(online_rft.Config):
    """RFT."""

    distinct: bool = False
    """Count equal completions of a group once."""


def build(c: Config) -> Algorithm:
    """RFT as a value."""
    return online_rft.build(c)._replace(sampler="reference", distinct=c.distinct)
