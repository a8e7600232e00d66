"""DPO on pairs of completions, one better than the other (arXiv:2402.03300, eq. 12 to 14; arXiv:2305.18290, eq. 7).

    J = mean over pairs of  log sigma(h(o+) - h(o-)),   h(o) = beta * mean or sum over tokens of (logp_t - ref_t)

The paper's h is the mean (eq. 12), its source's and TRL's the sum; `length_average` says which. The gradient
coefficient is beta sigma(h(o-) - h(o+)), plus on o+, minus on o-; the paper's eq. 13 leaves out the factor beta. In a
group the best completion is paired with the worst, the second best with the second worst, and so on while their rewards
differ; a group of equal rewards gives none. The paper's pairs are of the policy that the stage began with; `pairs_from`
takes the present policy's, or those of a file.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from grpo_jax.config import Positive, config

if TYPE_CHECKING:
    from jax import Array

    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config:
    """DPO."""

    beta: Annotated[float, pydantic.Field(gt=0.0)] = 0.1
    """What log-ratios to the reference are multiplied by (not in the paper; TRL 0.1)."""
    length_average: bool = True
    """Average a completion's log-ratios over its tokens (the paper; TRL: loss_type sigmoid_norm), or sum them."""
    pairs: Positive | None = None
    """At most so many pairs of one prompt, those that differ most; None: num_generations / 2."""
    pairs_from: Literal["reference", "policy", "data"] = "reference"
    """Who writes them: the policy that the stage began with (the paper), the present one, or the source, which then has
    a solution and a column `rejected` (with reward `preferred` and num_generations 2)."""


def build(c: Config) -> Algorithm:
    """DPO as a value."""
    import jax.numpy as jnp

    from grpo_jax.algorithms.algorithm import Algorithm
    from grpo_jax.algorithms.pairs import best_with_worst, preference
    from grpo_jax.algorithms.weights import sequence_mean

    def signs(rewards) -> Array:
        """1 for the better of each pair, -1 for the other: shown in the report, and not used."""
        return jnp.where(jnp.arange(rewards.outcome.shape[1]) % 2, -1.0, 1.0) * jnp.ones_like(rewards.outcome)

    return Algorithm(
        signs,
        sequence_mean,
        partial(preference, beta=c.beta, length_average=c.length_average),
        rows=2,
        reference=True,
        arrange=partial(best_with_worst, pairs=c.pairs),
        sampler=c.pairs_from,
    )
