"""Objectives by token, maximised: ratios, clipping and estimates of the KL divergence.

All arrays are [B, Tc] f32. What stands off the mask is replaced before any exponential (a mask that multiplies
afterwards lets `0 * inf` into the gradient), and log-ratios are bounded by `BOUND` so that no exponential overflows.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.types import Experience

# exp(20) is 5e8: a token this far off has no meaningful ratio; beyond it values are held and carry no gradient.
BOUND = 20.0

Metrics = dict[str, Array]


def token_ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> Array:
    """The ratio of the policy to the old policy at each token: `rho_t = exp(logp_t - old_t)`.

    [B, Tc] -> [B, Tc]; 1 off the mask. arXiv:2402.03300, eq. 1 and 3.
    """
    return jnp.exp(_bounded(logprobs - old_logprobs, mask))


def kl_k1(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """`logp - ref`: unbiased and of high variance; for metrics and for rewards (arXiv:2402.03300, eq. 2).

    In a loss its gradient is the score function, whose mean on-policy is 0: it carries no information.
    """
    return _bounded(logprobs - ref_logprobs, mask)


def kl_k2(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """`(logp - ref)^2 / 2`: biased in value, its gradient on-policy is that of the divergence."""
    return 0.5 * _bounded(logprobs - ref_logprobs, mask) ** 2


def kl_k3(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    """`exp(d) - d - 1` with `d = ref - logp`: unbiased and never negative; its gradient is `1 - exp(d)`.

    arXiv:2402.03300, eq. 4. Exact for |d| below `BOUND`.
    """
    d = _bounded(ref_logprobs - logprobs, mask)
    return jnp.expm1(d) - d


def clipped(
    logprobs: Array,
    experience: Experience,
    *,
    ratio: Callable[[Array, Array, Array], Array] = token_ratio,
    low: float = 0.2,
    high: float = 0.2,
    beta: float = 0.0,
) -> tuple[Array, Metrics]:
    """The clipped surrogate less the KL penalty: `min(rho A, clip(rho, 1 - low, 1 + high) A) - beta k3`.

    logprobs [B, Tc] -> objective [B, Tc] and metrics [B, Tc], which the step averages over tokens.
    arXiv:2402.03300, eq. 3. With one update per exploration `old_logprobs` is None: the ratio is formed as
    `exp(logp - stop_gradient(logp))`, 1 in value with the right gradient.
    """
    mask, advantages = experience.completion_mask, experience.advantages
    old = experience.old_logprobs
    old = jax.lax.stop_gradient(logprobs) if old is None else old
    rho = ratio(logprobs, old, mask)
    objective = jnp.minimum(rho * advantages, jnp.clip(rho, 1 - low, 1 + high) * advantages)
    low_clipped = (rho < 1 - low) & (advantages < 0)
    high_clipped = (rho > 1 + high) & (advantages > 0)
    metrics = {
        "ratio/mean": rho,
        "clip_ratio/low_mean": low_clipped.astype(jnp.float32),
        "clip_ratio/high_mean": high_clipped.astype(jnp.float32),
        "clip_ratio/region_mean": (low_clipped | high_clipped).astype(jnp.float32),
    }
    if experience.ref_logprobs is not None:
        penalty = kl_k3(logprobs, experience.ref_logprobs, mask)
        objective = objective - beta * penalty
        metrics |= {"kl": penalty, "kl/k1": kl_k1(logprobs, experience.ref_logprobs, mask)}
    return objective, metrics


def _bounded(log_ratio: Array, mask: Array) -> Array:
    return jnp.clip(jnp.where(mask, log_ratio, 0.0), -BOUND, BOUND)
