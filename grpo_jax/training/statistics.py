"""What is told of the tokens of an update: sums, counts and extremes, which merge over micro-batches without error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.types import Experience


def token_statistics(metrics: dict[str, Array], logprobs: Array, rows: Experience) -> dict[str, Any]:
    """Sums, counts and extremes over the chosen tokens: what can be merged over micro-batches without error.

    Of a metric named `.../max`, which must not be negative, the largest value is kept; of others, the sum.
    """
    mask = rows.completion_mask
    chosen = {name: jnp.where(mask, value, 0.0) for name, value in metrics.items()}
    sums = {name: value.sum() for name, value in chosen.items() if not name.endswith("/max")}
    largest = {name: value.max() for name, value in chosen.items() if name.endswith("/max")}
    statistics = {"sums": sums, "tokens": mask.sum().astype(jnp.float32), "largest": largest}
    if rows.behaviour_logprobs is not None:
        gap = jnp.where(mask, jnp.abs(logprobs - rows.behaviour_logprobs), 0.0)
        sums["logprob_gap/mean"] = gap.sum()
        statistics["largest"]["logprob_gap/max"] = gap.max()
    return jax.lax.stop_gradient(statistics)


def merge_statistics(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The statistics of two sets of rows together."""
    return {
        "sums": jax.tree.map(jnp.add, a["sums"], b["sums"]),
        "tokens": a["tokens"] + b["tokens"],
        "largest": jax.tree.map(jnp.maximum, a["largest"], b["largest"]),
    }


def mean_statistics(statistics: dict[str, Any]) -> dict[str, Array]:
    """Means over tokens, and the extremes as they are."""
    tokens = jnp.maximum(statistics["tokens"], 1.0)
    return {name: total / tokens for name, total in statistics["sums"].items()} | statistics["largest"]
