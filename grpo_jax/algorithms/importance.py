"""Completions that another policy drew: older weights, rounded weights. Truncated importance sampling corrects them.

The objective is a mean over completions of the policy at the start of the update. Where the sampler drew from another
policy, each token's term is multiplied by how much likelier the former makes it; the factor is bounded, which trades a
little bias for a bounded variance (truncated importance sampling, Ionides 2008; per token as in IMPALA's rho,
arXiv:1802.01561, eq. 1, and as TRL and verl correct their engines).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.algorithms.objectives import Metrics, token_ratio
from grpo_jax.types import Experience


def truncated_importance(old_logprobs: Array, behaviour_logprobs: Array, mask: Array, *, cap: float) -> Array:
    """How much each term counts: `min(exp(old_t - behaviour_t), cap)`, a constant to the gradient.

    `old` is the trainer's, under the policy at the start of the update; `behaviour` the sampler's own.
    [B, Tc] -> [B, Tc] f32; 1 off the mask (if the cap is not below 1).
    """
    ratio = token_ratio(old_logprobs, behaviour_logprobs, mask)
    return jax.lax.stop_gradient(jnp.minimum(ratio, cap))


def importance_corrected(algorithm: Algorithm, *, cap: float) -> Algorithm:
    """The same method for completions drawn by another policy: every term's weight is multiplied by the ratio.

    The KL term is a mean over the same completions and is corrected with the rest. The ratio of the method itself,
    which is clipped, stays that of the policy to `old`. Needs `Experience.behaviour_logprobs`; a loss that is linear
    in `Experience.weights`, as `maximize` makes it. Metrics: the ratio's mean and largest value before the cap, and
    the share of tokens above it.
    """

    def loss(logprobs: Array, experience: Experience) -> tuple[Array, Metrics]:
        mask, behaviour = experience.completion_mask, experience.behaviour_logprobs
        if behaviour is None:
            raise ValueError("importance_corrected: Experience.behaviour_logprobs is None; give the sampler's own")
        old = experience.old_logprobs
        old = jax.lax.stop_gradient(logprobs if old is None else old)
        correction = truncated_importance(old, behaviour, mask, cap=cap)
        value, metrics = algorithm.loss(logprobs, experience.replace(weights=experience.weights * correction))
        ratio = token_ratio(old, behaviour, mask)
        return value, metrics | {
            "importance/mean": ratio,
            "importance/max": ratio,
            "importance/truncated": (ratio > cap).astype(jnp.float32),
        }

    return algorithm._replace(loss=loss)
