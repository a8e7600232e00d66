"""Every method twice: as the package builds it, and written out with NumPy from its paper, in loops and in float64.

`plain` methods know nothing of the package. An objective is a function of the log-probabilities x and of `at`, which
stands where the papers stop the gradient, so that finite differences in x are the gradient that is meant.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.algorithms import cispo, dapo, dpo, dr_grpo, grpo, gspo, online_rft, ppo, reinforce_plus_plus, rft, rloo

P, G, TC = 4, 4, 6


class Batch(NamedTuple):
    """What a method is given, as NumPy arrays: rows [B, Tc] of P groups of G."""

    logprobs: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    mask: np.ndarray
    rewards: np.ndarray  # [P, G]
    values: np.ndarray


def golden_batch() -> Batch:
    """Lengths from 1 to 6, ratios in and out of every clip, a group of equal rewards and one without 0 and 1."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, TC + 1, P * G)
    lengths[:2] = 1, TC
    mask = np.arange(TC) < lengths[:, None]
    logprobs = np.log(rng.uniform(0.05, 0.95, mask.shape))
    old = logprobs + rng.normal(0, 0.25, mask.shape)
    ref = logprobs + rng.normal(0, 0.4, mask.shape)
    rewards = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.9, 0.4, 1.0], [1, 0, 1, 1]], float)
    values = np.where(mask, rng.normal(0.4, 0.3, mask.shape), 0.0)
    return Batch(*(np.where(mask, x, 0.0) for x in (logprobs, old, ref)), mask, rewards, values)


# --- advantages of a group, and of the batch: [P, G] -> [P, G] ---


def normalized(r):
    out = np.zeros_like(r)
    for p, group in enumerate(r):
        if group.std() > 0:
            out[p] = (group - group.mean()) / group.std()
    return out


def centered(r):
    return r - r.mean(1, keepdims=True)


def without_each(r):
    return np.array([[group[g] - np.delete(group, g).mean() for g in range(len(group))] for group in r])


def over_the_batch(r):
    a = centered(r)
    return (a - a.mean()) / a.std()


def indicator(r):
    return (r > 0.5).astype(float)


# --- weights: mask [B, Tc] -> [B, Tc] ---


def by_sequence(mask):
    return np.array([[m / (len(mask) * row.sum()) for m in row] for row in mask])


def by_token(mask):
    return mask / mask.sum()


def by_constant(length):
    return lambda mask: mask / (len(mask) * length)


# --- objectives of a token: x, at, old, ref [B, Tc], A [B, 1], mask -> [B, Tc] ---


def surrogate(low, high, beta=0.0, kl="k3"):
    def objective(x, at, old, ref, A, mask):
        out = np.zeros_like(x)
        for b, t in np.argwhere(mask):
            rho, d = np.exp(x[b, t] - old[b, t]), ref[b, t] - x[b, t]
            penalty = {"k1": -d, "k2": d * d / 2, "k3": np.exp(d) - d - 1}[kl]
            out[b, t] = min(rho * A[b, t], min(max(rho, 1 - low), 1 + high) * A[b, t]) - beta * penalty
        return out

    return objective


def surrogate_of_sequences(low, high):
    def objective(x, at, old, ref, A, mask):
        out = np.zeros_like(x)
        for b, row in enumerate(mask):
            s = np.exp((x[b] - old[b])[row].mean())
            out[b, row] = min(s * A[b, 0], min(max(s, 1 - low), 1 + high) * A[b, 0])
        return out

    return objective


def weighted_likelihood(high):
    def objective(x, at, old, ref, A, mask):
        return np.where(mask, np.minimum(np.exp(at - old), 1 + high) * A * x, 0.0)

    return objective


def log_likelihood(x, at, old, ref, A, mask):
    return np.where(mask, A * x, 0.0)


class Variant(NamedTuple):
    """A method of the package, and the same by hand."""

    module: Any
    settings: dict[str, Any]
    advantages: Callable[[np.ndarray], np.ndarray] | None
    weights: Callable[[np.ndarray], np.ndarray] | None
    objective: Callable[..., np.ndarray] | None
    coefficient: Callable[..., np.ndarray]  # on-policy: (x, ref, A) -> [B, Tc], the paper's GC
    mixed_only: bool = False  # groups of equal rewards are left out
    reward_beta: float = 0.0  # of k1 in the reward

    @property
    def algorithm(self):
        return self.module.build(self.module.Config(**self.settings))


def advantage(x, ref, A):
    return A + 0 * x


VARIANTS = {
    "grpo": Variant(
        grpo,
        {"beta": 0.04},
        normalized,
        by_sequence,
        surrogate(0.2, 0.2, 0.04),
        lambda x, ref, A: A + 0.04 * (np.exp(ref - x) - 1),
    ),
    "dr_grpo": Variant(dr_grpo, {"length": TC}, centered, by_constant(TC), surrogate(0.2, 0.2), advantage),
    "dapo": Variant(dapo, {}, normalized, by_token, surrogate(0.2, 0.28), advantage, mixed_only=True),
    "gspo": Variant(
        gspo,
        {"epsilon": 0.05, "epsilon_high": 0.08},
        normalized,
        by_sequence,
        surrogate_of_sequences(0.05, 0.08),
        advantage,
    ),
    "cispo": Variant(cispo, {"epsilon_high": 0.3}, normalized, by_token, weighted_likelihood(0.3), advantage),
    "rloo": Variant(rloo, {"beta": 0.05}, without_each, by_constant(1), log_likelihood, advantage, reward_beta=0.05),
    "reinforce_plus_plus": Variant(
        reinforce_plus_plus,
        {"beta": 0.1},
        over_the_batch,
        by_token,
        surrogate(0.2, 0.2, 0.1, "k2"),
        lambda x, ref, A: A - 0.1 * (x - ref),
    ),
    "online_rft": Variant(online_rft, {}, indicator, by_sequence, log_likelihood, advantage),
    "rft": Variant(rft, {}, indicator, by_sequence, log_likelihood, advantage),
    "ppo": Variant(ppo, {"beta": 0.1, "lam": 0.9}, None, by_sequence, surrogate(0.2, 0.2), advantage),
    "dpo": Variant(dpo, {"beta": 0.5}, None, None, None, None),
}


def plain_advantages(v: Variant, batch: Batch, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Advantages [B, 1] or [B, Tc] and the mask of what is trained on."""
    if v.module is ppo:
        return plain_gae(batch, old, beta=v.settings["beta"], lam=v.settings["lam"]), batch.mask
    penalty = v.reward_beta * (old - batch.ref).sum(1).reshape(P, G)
    mask = batch.mask.copy()
    if v.mixed_only:
        mask &= np.repeat(batch.rewards.min(1) < batch.rewards.max(1), G)[:, None]
    return v.advantages(batch.rewards - penalty).reshape(-1, 1), mask


def plain_loss(name: str, batch: Batch, x: np.ndarray, *, at: np.ndarray, old: np.ndarray) -> float:
    """The loss of a variant at x; what is stopped, advantages included, is at `at` and `old`."""
    if name == "dpo":
        return plain_dpo(batch, x)
    v = VARIANTS[name]
    A, mask = plain_advantages(v, batch, old)
    live, A = mask.any(1), np.broadcast_to(A, x.shape)
    weights = np.zeros(mask.shape)
    weights[live] = v.weights(mask[live])
    return -(weights * v.objective(x, at, old, batch.ref, A, mask)).sum()


def plain_gae(batch: Batch, old: np.ndarray, *, beta: float, lam: float) -> np.ndarray:
    """The reward at the last token, k1 of the old policy at each, and GAE by its sum (arXiv:1506.02438, eq. 16)."""
    out = np.zeros(batch.mask.shape)
    for b, row in enumerate(batch.mask):
        n = row.sum()
        r = -beta * (old[b, :n] - batch.ref[b, :n])
        r[-1] += batch.rewards.reshape(-1)[b]
        V = np.append(batch.values[b, :n], 0.0)
        delta = [r[t] + V[t + 1] - V[t] for t in range(n)]
        for t in range(n):
            out[b, t] = sum(lam ** (u - t) * delta[u] for u in range(t, n))
    return out


def plain_pairs(batch: Batch) -> list[tuple[int, int]]:
    """Of each group the best with the worst, then the second best with the second worst, while they differ."""
    pairs = []
    for p, group in enumerate(batch.rewards):
        order = sorted(range(G), key=lambda g, group=group: -group[g])
        pairs += [
            (p * G + a, p * G + b) for a, b in zip(order[: G // 2], order[::-1], strict=False) if group[a] > group[b]
        ]
    return pairs


def plain_dpo(batch: Batch, x: np.ndarray, beta: float = 0.5) -> float:
    h = [beta * (x[b] - batch.ref[b])[row].mean() for b, row in enumerate(batch.mask)]
    return float(np.mean([np.log1p(np.exp(-(h[a] - h[b]))) for a, b in plain_pairs(batch)]))


def slopes(function: Callable[[np.ndarray], float], x: np.ndarray, mask: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Central differences of a function of x at its tokens."""
    out = np.zeros_like(x)
    for b, t in np.argwhere(mask):
        step = np.zeros_like(x)
        step[b, t] = h
        out[b, t] = (function(x + step) - function(x - step)) / (2 * h)
    return out
