"""One update of a reward model: binary cross-entropy at labelled places, or Bradley-Terry on pairs.

    process, outcome   -sum_i [y_i log r_i + (1 - y_i) log(1 - r_i)],  r = sigmoid(score)   (arXiv:2312.08935, eq. 1, 2)
    preference         -log sigmoid(score(chosen) - score(rejected))                        (arXiv:2203.02155, eq. 1)

The sign of the first is turned, as it is printed without the minus. Both are means over all labels (pairs) of the
batch, where the source sums over the steps of a solution: a solution then weighs by its labelled steps alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.scores import Candidates, sequence_scores
from grpo_jax.training.step import MicrobatchError, guarded_update
from grpo_jax.types import Sequences, TrainState, pytree


@pytree
class ScoreBatch:
    """Packed rows with the places whose scores are learnt."""

    sequences: Sequences  # [R, T]
    mask: Array  # [R, T] bool, True where a score is learnt; of a pair at the end of the rejected solution only
    targets: Array  # [R, T] f32, in 0 to 1
    partner: Array  # [R, T] i32, of a pair: the place in the row where the chosen solution ends


Objective = Callable[[Array, ScoreBatch], tuple[Array, Array]]


def cross_entropy(scores: Array, batch: ScoreBatch) -> tuple[Array, Array]:
    """Binary cross-entropy of each score with its target, and whether score and target are on one side: [R, T]."""
    losses = jax.nn.softplus(scores) - batch.targets * scores
    return losses, (scores > 0) == (batch.targets > 0.5)


def bradley_terry(scores: Array, batch: ScoreBatch) -> tuple[Array, Array]:
    """At the end of each rejected solution, the loss of its pair, and whether the chosen one scores higher: [R, T]."""
    margins = jnp.take_along_axis(scores, batch.partner, axis=1) - scores
    return jax.nn.softplus(-margins), margins > 0


def scoring_loss(
    params: Any,
    batch: ScoreBatch,
    weights: Array,
    *,
    model: Decoder,
    objective: Objective,
    candidates: Candidates | None = None,
) -> tuple[Array, Array]:
    """The weighted sum of the losses, and of what is right: two scalars. weights [R, T], 0 off the mask."""
    scores = sequence_scores(model, params, batch.sequences, candidates=candidates)
    losses, right = objective(scores, batch)
    # Off the mask a loss is of any size: it is left out before the weights, so that no infinity becomes NaN.
    return jnp.sum(weights * jnp.where(batch.mask, losses, 0.0)), jnp.sum(weights * right)


def scoring_step(
    state: TrainState,
    batch: ScoreBatch,
    *,
    model: Decoder,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    candidates: Candidates | None = None,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One update on packed rows; micro-batches cut the rows and change no gradient. Raises `MicrobatchError`."""
    R = batch.mask.shape[0]
    if R % microbatches:
        raise MicrobatchError(f"microbatches: {R} rows cannot be cut into {microbatches} equal parts")
    weights = batch.mask / jnp.maximum(batch.mask.sum(), 1).astype(jnp.float32)  # [R, T]

    def accumulate(carry, rows):
        grads, loss, right = carry
        (part, more_right), more = jax.value_and_grad(scoring_loss, has_aux=True)(
            state.params, *rows, model=model, objective=objective, candidates=candidates
        )
        return (jax.tree.map(jnp.add, grads, more), loss + part, right + more_right), None

    start = (jax.tree.map(jnp.zeros_like, state.params), jnp.float32(0.0), jnp.float32(0.0))
    parts = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(R // microbatches, microbatches, *x.shape[1:]), 0, 1), (batch, weights)
    )
    (grads, loss, right), _ = jax.lax.scan(accumulate, start, parts)
    new_state, metrics = guarded_update(state, grads, loss, optimizer=optimizer)
    counts = {"num_tokens": (batch.sequences.segments > 0).sum(), "num_labels": batch.mask.sum()}
    return new_state, {"loss": loss, "accuracy": right} | counts | metrics
