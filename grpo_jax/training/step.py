"""One update of the policy from one batch of experience, and the log-probabilities it rests on.

The loss is linear in rows (the weights are made over the global batch), so micro-batches may cut the batch anywhere,
within groups too: they sum to one gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logprobs import completion_logprobs
from grpo_jax.models.lora import attach
from grpo_jax.types import Experience, Rollout, TrainState


class MicrobatchError(ValueError):
    """A batch that cannot be cut into so many equal parts."""


def group_cuts(prompts: int, num_generations: int, microbatches: int, *, rows: int = 1) -> int:
    """Into how many parts each group is cut when a batch is cut into so many equal micro-batches.

    Up to P micro-batches are made of whole groups (1 part); beyond that, each holds a part of one group, of a multiple
    of `rows` completions. Raises `MicrobatchError` naming the numbers that would do.
    """
    P, G, M = prompts, num_generations, microbatches
    if P % M == 0:
        return 1
    if M % P == 0 and G % (M // P) == 0 and (G // (M // P)) % rows == 0:
        return M // P
    raise MicrobatchError(
        f"microbatches: {P} prompts of {G} completions cannot be cut into {M} equal parts; "
        f"choose a divisor of {P}, or {P} times a divisor of {G // rows}"
    )


def split_rows(tree: Experience | Rollout, microbatches: int, *, rows: int = 1) -> Any:
    """Cut a batch into micro-batches, stacked on a new leading axis.

    Micro-batch m takes the prompts m, m + M, m + 2M, ... so that each device cuts its own rows; where groups are cut
    (`group_cuts`), the prompt goes with each part.
    """
    P = tree.prompts.index.shape[0]
    B = tree.completion_mask.shape[0]
    M, G = microbatches, B // P
    cut = group_cuts(P, G, M, rows=rows)

    def prompt_rows(x: Array) -> Array:  # [P, ...] -> [M, P*cut/M, ...]
        x = jnp.repeat(x, cut, axis=0)
        return jnp.swapaxes(x.reshape(P * cut // M, M, *x.shape[1:]), 0, 1)

    def completion_rows(x: Array) -> Array:  # [B, ...] -> [M, B/M, ...]
        x = x.reshape(P * cut // M, M, G // cut, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(M, B // M, *x.shape[3:])

    prompts = jax.tree.map(prompt_rows, tree.prompts)
    rest = jax.tree.map(completion_rows, tree.replace(prompts=None))
    return rest.replace(prompts=prompts)


def join_rows(x: Array, prompts: int, num_generations: int) -> Array:
    """Undo `split_rows` for an array by completion: [M, B/M, ...] -> [B, ...] in the batch's order."""
    M = x.shape[0]
    cut = max(M // prompts, 1)
    x = x.reshape(M, prompts * cut // M, num_generations // cut, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1).reshape(prompts * num_generations, *x.shape[3:])


def rollout_logprobs(
    params: Any, rollout: Rollout, *, model: Decoder, temperature: float, chunk: int, microbatches: int = 1
) -> Array:
    """Log-probabilities of a rollout's tokens under other weights: the reference, or the policy before its updates.

    -> [B, Tc] f32, 0 off the mask.
    """

    def part(rows: Rollout) -> Array:
        logprobs, _ = completion_logprobs(
            model, params, rows.prompts, rows.completions, temperature=temperature, chunk=chunk
        )
        return jnp.where(rows.completion_mask, logprobs, 0.0)

    if microbatches == 1:
        return part(rollout)
    P, B = rollout.prompts.index.shape[0], rollout.completion_mask.shape[0]
    return join_rows(jax.lax.map(part, split_rows(rollout, microbatches)), P, B // P)


def train_step(
    state: TrainState,
    experience: Experience,
    *,
    model: Decoder,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    temperature: float = 1.0,
    chunk: int = 128,
    microbatches: int = 1,
    frozen: Any | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update; a gradient that is not finite changes nothing but the step count and is reported.

    Where the state holds adapters, `frozen` is the base that they are attached to: it is read, and has no gradient.
    -> the new state and metrics: `loss` (the sum over rows, hence the batch's loss), means over the chosen tokens,
    `grad_norm` before clipping, `skipped_updates` 0 or 1.
    """

    def loss_of(params: Any, rows: Experience) -> tuple[Array, dict[str, Array]]:
        logprobs, entropy = completion_logprobs(
            model, attach(frozen, params), rows.prompts, rows.completions, temperature=temperature, chunk=chunk
        )
        loss, metrics = algorithm.loss(logprobs, rows)
        metrics |= {"entropy": entropy}
        return loss, token_statistics(metrics, logprobs, rows)

    def accumulate(carry, rows):
        grads, loss, statistics = carry
        (part, more), more_grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, rows)
        return (
            jax.tree.map(jnp.add, grads, more_grads),
            loss + part,
            merge_statistics(statistics, more),
        ), None

    if microbatches == 1:
        (loss, statistics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, experience)
    else:
        parts = split_rows(experience, microbatches, rows=algorithm.rows)
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda r: loss_of(state.params, r), first))
        start = (jax.tree.map(jnp.zeros_like, state.params), *zeros)
        (grads, loss, statistics), _ = jax.lax.scan(accumulate, start, parts)
    new_state, update_metrics = guarded_update(state, grads, loss, optimizer=optimizer)
    return new_state, {"loss": loss} | mean_statistics(statistics) | update_metrics


def guarded_update(
    state: TrainState, grads: Any, loss: Array, *, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Array]]:
    """Apply a gradient if it and the loss are finite; otherwise keep parameters and optimizer state bit for bit."""
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    metrics = {"grad_norm": grad_norm, "skipped_updates": 1.0 - finite.astype(jnp.float32)}
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


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
