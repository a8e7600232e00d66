"""Online RFT: likelihood of right completions, written by the policy itself (arXiv:2402.03300, eq. 10 and 11).

    J = mean over completions of  I(o)  mean_t logp_t,   I(o) = 1 if r > threshold else 0

A wrong completion stays in the mean with weight 0, as in the paper's expectation; leaving it out would only change the
scale of a step. `rft` is the same with completions of the policy that the stage began with. The paper has no KL penalty
here; with beta there is one in the loss, on wrong completions too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.algorithms.settings import AlgorithmError, Penalty, penalty
from grpo_jax.config import NonNegative, config

if TYPE_CHECKING:
    from grpo_jax.algorithms.algorithm import Algorithm


@config
class Config(Penalty):
    """Online RFT."""

    beta: NonNegative = 0.0
    """Coefficient of the KL penalty to the reference (the paper has none; 0: no reference is kept)."""
    threshold: float = 0.5
    """A completion with more reward than this is right."""


def build(c: Config) -> Algorithm:
    """Online RFT as a value."""
    from grpo_jax.algorithms.advantages import correct_only
    from grpo_jax.algorithms.algorithm import Algorithm, maximize, of_outcome
    from grpo_jax.algorithms.objectives import likelihood
    from grpo_jax.algorithms.weights import sequence_mean

    if c.beta and c.kl_in == "reward":
        raise AlgorithmError(
            "rl.algorithm.kl_in is reward, and a completion is right or wrong by its reward alone; set kl_in to loss"
        )
    return Algorithm(
        of_outcome(partial(correct_only, threshold=c.threshold)),
        sequence_mean,
        maximize(partial(likelihood, **penalty(c))),
        reference=c.beta > 0,
        baseline=False,
    )
