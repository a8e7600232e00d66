"""Pairs of completions: which of a group stand against one another, and the loss on them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.algorithms.objectives import Metrics
from grpo_jax.types import Experience


def best_with_worst(rewards: Array, *, pairs: int | None = None) -> tuple[Array, Array]:
    """Order each group in pairs (best, worst), (second best, second worst), ...: the order, and which rows count.

    A pair counts if the first has more reward, both could be judged, and it is among the first `pairs` of its group.
    rewards [P, G], G even -> order [P, G] i32, the row of the group that stands at each place, and [P, G] bool.
    """
    P, G = rewards.shape
    judged = ~jnp.isnan(rewards)
    count = judged.sum(-1, keepdims=True)  # [P, 1]
    descending = jnp.argsort(jnp.where(judged, -rewards, jnp.inf), axis=-1, stable=True)  # unjudged last
    rank = jnp.argsort(descending, axis=-1)  # [P, G]
    upper = (count + 1) // 2
    middle = upper + rank - count  # what cannot be judged stands between the better half and the worse
    place = jnp.where(rank < upper, rank, jnp.where(rank < count, rank + G - count, middle))
    by_reward = jnp.argsort(place, axis=-1)  # [P, G]
    order = jnp.stack([by_reward[:, : G // 2], by_reward[:, ::-1][:, : G // 2]], -1).reshape(P, G)
    first, second = jnp.moveaxis(jnp.take_along_axis(rewards, order, -1).reshape(P, G // 2, 2), -1, 0)
    counts = (first > second) & (jnp.arange(G // 2) < (G // 2 if pairs is None else pairs))  # NaN is not more
    return order.astype(jnp.int32), jnp.repeat(counts, 2, axis=-1)


def preference(logprobs: Array, experience: Experience, *, beta: float, length_average: bool) -> tuple[Array, Metrics]:
    """Minus the mean over pairs of `log sigma(h(o+) - h(o-))`, a sum over rows 2k (better) and 2k + 1 (worse).

    `h = beta * sum_t(logp - ref)`, over the number of tokens with `length_average`. A pair weighs what its rows weigh
    together, which with `sequence_mean` is one over the number of pairs. Metrics: the margin `h(o+) - h(o-)` and
    whether it is positive, at each token of the pair.
    """
    mask = experience.completion_mask
    ratios = jnp.where(mask, logprobs - experience.ref_logprobs, 0.0).sum(-1)  # [B]
    if length_average:
        ratios = ratios / jnp.maximum(mask.sum(-1), 1)
    better, worse = (beta * ratios).reshape(-1, 2).T
    margin = better - worse  # [B/2]
    weight = jnp.where(mask, experience.weights, 0.0).sum(-1).reshape(-1, 2).sum(-1)
    loss = -jnp.sum(weight * jax.nn.log_sigmoid(margin))

    def at_tokens(x: Array) -> Array:
        return jnp.broadcast_to(jnp.repeat(x, 2)[:, None], mask.shape).astype(jnp.float32)

    return loss, {"pairs/margin": at_tokens(margin), "pairs/accuracy": at_tokens(margin > 0)}
