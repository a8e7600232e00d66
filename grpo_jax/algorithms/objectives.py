"""Objectives by token, maximised: likelihood, ratios, clipping and estimates of the KL divergence.

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
Ratio = Callable[[Array, Array, Array], Array]  # (logprobs, other logprobs, mask) -> [B, Tc]


def token_ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> Array:
    """The ratio of the policy to the old policy at each token: `rho_t = exp(logp_t - old_t)`.

    [B, Tc] -> [B, Tc]; 1 off the mask. arXiv:2402.03300, eq. 1 and 3.
    """
    return jnp.exp(_bounded(logprobs - old_logprobs, mask))


def sequence_ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> Array:
    """The length-normalised ratio of a completion, at each of its tokens: `s = exp(mean_t(logp_t - old_t))`.

    [B, Tc] -> [B, Tc]. GSPO, arXiv:2507.18071, eq. 7; rows must be whole.
    """
    length = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean = _bounded(logprobs - old_logprobs, mask).sum(-1, keepdims=True) / length  # [B, 1]
    return jnp.broadcast_to(jnp.exp(mean), logprobs.shape)


def sequence_token_ratio(logprobs: Array, old_logprobs: Array, mask: Array) -> Array:
    """The same number with a token's own gradient: `s_t = stop(s) exp(logp_t - stop(logp_t))`.

    [B, Tc] -> [B, Tc]. GSPO-token, arXiv:2507.18071, eq. 14: with one advantage for all tokens it is `sequence_ratio`
    in value and in gradient; with an advantage for each token it is not.
    """
    whole = jax.lax.stop_gradient(sequence_ratio(logprobs, old_logprobs, mask))
    return whole * token_ratio(logprobs, jax.lax.stop_gradient(logprobs), mask)


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


KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def clipped(
    logprobs: Array,
    experience: Experience,
    *,
    ratio: Ratio = token_ratio,
    low: float = 0.2,
    high: float = 0.2,
    delta: float | None = None,
    beta: float = 0.0,
    kl: Ratio = kl_k3,
) -> tuple[Array, Metrics]:
    """The clipped surrogate less the KL penalty: `min(rho A, clip(rho, 1 - low, 1 + high) A) - beta kl`.

    logprobs [B, Tc] -> objective [B, Tc] and metrics [B, Tc], which the step averages over tokens.
    arXiv:2402.03300, eq. 3. With one update per exploration `old_logprobs` is None: the ratio is formed as
    `exp(logp - stop_gradient(logp))`, 1 in value with the right gradient. With `delta` the ratio itself is at most so
    much, which bounds the term where A < 0: `max(min(rho A, clip(rho) A), delta A)` (dual clip, arXiv:1912.09729,
    eq. 5; TRL: delta, verl: clip_ratio_c, there always 3).
    """
    mask, advantages = experience.completion_mask, experience.advantages
    rho = ratio(logprobs, _old(logprobs, experience), mask)
    bounded = rho if delta is None else jnp.minimum(rho, delta)
    objective = jnp.minimum(bounded * advantages, jnp.clip(rho, 1 - low, 1 + high) * advantages)
    low_clipped = (rho < 1 - low) & (advantages < 0)
    high_clipped = (rho > 1 + high) & (advantages > 0)
    metrics = {
        "ratio/mean": rho,
        "clip_ratio/low_mean": low_clipped.astype(jnp.float32),
        "clip_ratio/high_mean": high_clipped.astype(jnp.float32),
        "clip_ratio/region_mean": (low_clipped | high_clipped).astype(jnp.float32),
    }
    if delta is not None:
        metrics["clip_ratio/delta_mean"] = ((rho > delta) & (advantages < 0)).astype(jnp.float32)
    return less_kl(objective, metrics, logprobs, experience, beta=beta, kl=kl)


def clipped_weight(
    logprobs: Array,
    experience: Experience,
    *,
    low: float | None = None,
    high: float = 4.0,
    beta: float = 0.0,
    kl: Ratio = kl_k3,
) -> tuple[Array, Metrics]:
    """The likelihood, each token weighted by its clipped ratio: `stop(clip(rho, 1 - low, 1 + high)) A logp`.

    No token loses its gradient, as those beyond the clip of `clipped` do. [B, Tc] -> [B, Tc] and metrics.
    CISPO, arXiv:2506.13585, eq. 4 and 5; `low` None: no lower bound.
    """
    mask, advantages = experience.completion_mask, experience.advantages
    rho = token_ratio(logprobs, _old(logprobs, experience), mask)
    bounded = jnp.clip(rho, None if low is None else 1 - low, 1 + high)
    objective = jax.lax.stop_gradient(bounded) * advantages * jnp.where(mask, logprobs, 0.0)
    metrics = {"ratio/mean": rho, "clip_ratio/region_mean": (bounded != rho).astype(jnp.float32)}
    return less_kl(objective, metrics, logprobs, experience, beta=beta, kl=kl)


def likelihood(
    logprobs: Array, experience: Experience, *, beta: float = 0.0, kl: Ratio = kl_k3
) -> tuple[Array, Metrics]:
    """The likelihood weighted by the advantage, without a ratio: `A logp`, whose gradient coefficient is A.

    [B, Tc] -> [B, Tc] and metrics. REINFORCE, and with A = I(o) the paper's RFT (arXiv:2402.03300, eq. 8 and 11).
    """
    objective = experience.advantages * jnp.where(experience.completion_mask, logprobs, 0.0)
    return less_kl(objective, {}, logprobs, experience, beta=beta, kl=kl)


def less_kl(
    objective: Array, metrics: Metrics, logprobs: Array, experience: Experience, *, beta: float, kl: Ratio = kl_k3
) -> tuple[Array, Metrics]:
    """Subtract `beta` times an estimate of the KL divergence to the reference, if there is one.

    As metrics k3 and k1 are given in any case, so that runs can be compared.
    """
    ref, mask = experience.ref_logprobs, experience.completion_mask
    if ref is None:
        return objective, metrics
    penalty = kl(logprobs, ref, mask)
    shown = penalty if kl is kl_k3 else kl_k3(logprobs, ref, mask)
    return objective - beta * penalty, metrics | {"kl": shown, "kl/k1": kl_k1(logprobs, ref, mask)}


def _old(logprobs: Array, experience: Experience) -> Array:
    old = experience.old_logprobs
    return jax.lax.stop_gradient(logprobs) if old is None else old


def _bounded(log_ratio: Array, mask: Array) -> Array:
    return jnp.clip(jnp.where(mask, log_ratio, 0.0), -BOUND, BOUND)
