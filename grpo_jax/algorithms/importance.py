"""Completions that another policy drew: older weights, rounded weights. Importance sampling corrects them.

The objective is a mean over completions of the policy at the start of the update. Where the sampler drew from another
policy, each token's term is multiplied by how much likelier the former makes it; the factor is bounded, which trades a
little bias for a bounded variance (truncated importance sampling, Ionides 2008; per token as in IMPALA's rho,
arXiv:1802.01561, eq. 1, and as TRL and verl correct their engines), or what is beyond the bound is left out (masked).
The factor is a token's own, or its completion's, which is without bias and of a variance that grows with the length.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.algorithms.objectives import Metrics, token_ratio
from grpo_jax.types import Experience


def token_importance(old_logprobs: Array, behaviour_logprobs: Array, mask: Array) -> Array:
    """How much likelier the trainer makes each token than its sampler did: `exp(old_t - behaviour_t)`. [B, Tc]."""
    return token_ratio(old_logprobs, behaviour_logprobs, mask)


def sequence_importance(old_logprobs: Array, behaviour_logprobs: Array, mask: Array) -> Array:
    """The same of the whole completion, at each of its tokens: `exp(sum_t(old_t - behaviour_t))`. [B, Tc].

    Rows must be whole. The sum is bounded as a single log-ratio is.
    """
    total = jnp.where(mask, old_logprobs - behaviour_logprobs, 0.0).sum(-1, keepdims=True)  # [B, 1]
    return token_ratio(jnp.broadcast_to(total, mask.shape), jnp.zeros(mask.shape), mask)


def truncated(ratio: Array, cap: float) -> Array:
    """`min(ratio, cap)`: the bias is towards the sampler."""
    return jnp.minimum(ratio, cap)


def masked(ratio: Array, cap: float) -> Array:
    """`ratio` up to the cap and 0 beyond: what the sampler cannot speak for is not learnt from."""
    return jnp.where(ratio > cap, 0.0, ratio)


MODES = {
    "token_truncate": (token_importance, truncated),
    "token_mask": (token_importance, masked),
    "sequence_truncate": (sequence_importance, truncated),
    "sequence_mask": (sequence_importance, masked),
}
"""Whose ratio, and what is done beyond the cap; the names are TRL's."""


def importance(
    old_logprobs: Array, behaviour_logprobs: Array, mask: Array, *, cap: float, mode: str = "token_truncate"
) -> Array:
    """How much each term counts, a constant to the gradient: by default `min(exp(old_t - behaviour_t), cap)`.

    `old` is the trainer's, under the policy at the start of the update; `behaviour` the sampler's own.
    [B, Tc] -> [B, Tc] f32; 1 off the mask (if the cap is not below 1).
    """
    ratio, bound = MODES[mode]
    return jax.lax.stop_gradient(bound(ratio(old_logprobs, behaviour_logprobs, mask), cap))


def importance_corrected(algorithm: Algorithm, *, cap: float, mode: str = "token_truncate") -> Algorithm:
    """The same method for completions drawn by another policy: every term's weight is multiplied by the ratio.

    The KL term is a mean over the same completions and is corrected with the rest. The ratio of the method itself,
    which is clipped, stays that of the policy to `old`. Needs `Experience.behaviour_logprobs`; a loss that is linear
    in `Experience.weights`, as `maximize` makes it. Metrics: the ratio's mean and largest value before the cap, and
    the share of tokens above it.
    """
    of_mode, _ = MODES[mode]

    def loss(logprobs: Array, experience: Experience) -> tuple[Array, Metrics]:
        mask, behaviour = experience.completion_mask, experience.behaviour_logprobs
        if behaviour is None:
            raise ValueError("importance_corrected: Experience.behaviour_logprobs is None; give the sampler's own")
        old = experience.old_logprobs
        old = jax.lax.stop_gradient(logprobs if old is None else old)
        correction = importance(old, behaviour, mask, cap=cap, mode=mode)
        value, metrics = algorithm.loss(logprobs, experience.replace(weights=experience.weights * correction))
        ratio = of_mode(old, behaviour, mask)
        return value, metrics | {
            "importance/mean": ratio,
            "importance/max": ratio,
            "importance/truncated": (ratio > cap).astype(jnp.float32),
        }

    return algorithm._replace(loss=loss)
