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
from grpo_jax.models.cache import Cache, of_rows
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logprobs import completion_logprobs, continued_logprobs, prefill
from grpo_jax.models.lora import attach
from grpo_jax.sharding import shards_in_context
from grpo_jax.training.buckets import padding_share, row_lengths, sort_rows, sorted_gradient, sorted_logprobs
from grpo_jax.training.statistics import mean_statistics, merge_statistics, token_statistics
from grpo_jax.types import Experience, Rollout, TrainState


class MicrobatchError(ValueError):
    """A batch that cannot be cut into so many equal parts."""


def group_cuts(prompts: int, num_generations: int, microbatches: int, *, rows: int = 1, shards: int = 1) -> int:
    """Into how many parts each group is cut when a batch is cut into so many equal micro-batches.

    As few as do: micro-batches hold whole groups (1 part) where these are enough, else parts of a multiple of `rows`
    completions; every one of the batch's `shards` has equally many parts in each micro-batch. Raises `MicrobatchError`
    naming the numbers that would do.
    """
    P, G, M = prompts, num_generations, microbatches
    for cut in range(1, G // rows + 1):
        if G % (cut * rows) == 0 and P * cut % M == 0 and P * cut // M % shards == 0:
            return cut
    over = f" over {shards} batch shards" if shards > 1 else ""
    raise MicrobatchError(
        f"microbatches: {P} prompts of {G} completions cannot be cut into {M} equal parts{over}; "
        f"choose a divisor of {P * (G // rows) // shards}"
    )


def split_rows(tree: Experience | Rollout, microbatches: int, *, rows: int = 1) -> Any:
    """Cut a batch into micro-batches, stacked on a new leading axis.

    Micro-batch m takes the prompts m, m + M, m + 2M, ... so that each device cuts its own rows; where groups are cut
    (`group_cuts`), the prompt goes with each part.
    """
    P = tree.prompts.index.shape[0]
    B = tree.completion_mask.shape[0]
    M, G = microbatches, B // P
    cut = group_cuts(P, G, M, rows=rows, shards=shards_in_context())

    def prompt_rows(x: Array) -> Array:  # [P, ...] -> [M, P*cut/M, ...]
        x = jnp.repeat(x, cut, axis=0)
        return jnp.swapaxes(x.reshape(P * cut // M, M, *x.shape[1:]), 0, 1)

    def completion_rows(x: Array) -> Array:  # [B, ...] -> [M, B/M, ...]
        x = x.reshape(P * cut // M, M, G // cut, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(M, B // M, *x.shape[3:])

    prompts = jax.tree.map(prompt_rows, tree.prompts)
    rest = jax.tree.map(completion_rows, tree.replace(prompts=None))
    return rest.replace(prompts=prompts)


def join_rows(x: Array, prompts: int, num_generations: int, *, rows: int = 1) -> Array:
    """Undo `split_rows` for an array by completion: [M, B/M, ...] -> [B, ...] in the batch's order."""
    M = x.shape[0]
    cut = group_cuts(prompts, num_generations, M, rows=rows, shards=shards_in_context())
    x = x.reshape(M, prompts * cut // M, num_generations // cut, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1).reshape(prompts * num_generations, *x.shape[3:])


def rollout_logprobs(
    params: Any,
    rollout: Rollout,
    *,
    model: Decoder,
    temperature: float,
    chunk: int,
    microbatches: int = 1,
    buckets: int = 1,
) -> Array:
    """Log-probabilities of a rollout's tokens under other weights: the reference, or the policy before its updates.

    With more than one of `buckets` the rows are sorted by length, as in `train_step`.

    -> [B, Tc] f32, 0 off the mask.
    """
    scoring = {"temperature": temperature, "chunk": chunk}
    P, B = rollout.prompts.index.shape[0], rollout.completion_mask.shape[0]
    group_cuts(P, B // P, microbatches, shards=shards_in_context())
    if buckets > 1:
        return sorted_logprobs(params, rollout, model=model, microbatches=microbatches, buckets=buckets, **scoring)

    def part(rows: Rollout) -> Array:
        logprobs, _ = completion_logprobs(model, params, rows.prompts, rows.completions, **scoring)
        return jnp.where(rows.completion_mask, logprobs, 0.0)

    if microbatches == 1:
        return part(rollout)
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
    buckets: int = 1,
    frozen: Any | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update; a gradient that is not finite changes nothing but the step count and is reported.

    Where the state holds adapters, `frozen` is the base that they are attached to: it is read, and has no gradient.
    With more than one of `buckets` the rows are sorted by length, each micro-batch is computed only as far as it
    reaches, in as many steps (`buckets.py`), and all prompts are computed once.
    -> the new state and metrics: `loss` (the sum over rows, hence the batch's loss), means over the chosen tokens,
    `num_trained_tokens` of them, `padding` (share of the computed completion tokens), `grad_norm` before clipping,
    `skipped_updates` 0 or 1.
    """

    scoring = {"temperature": temperature, "chunk": chunk, "entropy_gradient": bool(algorithm.entropy_bonus)}

    def loss_of(params: Any, rows: Experience) -> tuple[Array, Any]:
        scored = completion_logprobs(model, attach(frozen, params), rows.prompts, rows.completions, **scoring)
        return objective_of(algorithm, *scored, rows)

    def continued(params: Any, prefix: tuple[Array, Cache], rows: Experience, at: Array) -> tuple[Array, Any]:
        last, cache = of_rows(prefix[0], at), prefix[1].replace(rows=at)
        scored = continued_logprobs(model, attach(frozen, params), last, cache, rows.completions, **scoring)
        return objective_of(algorithm, *scored, rows)

    P, mask = experience.prompts.index.shape[0], experience.completion_mask
    group_cuts(P, mask.shape[0] // P, microbatches, rows=algorithm.rows, shards=shards_in_context())
    if buckets > 1:
        grads, loss, statistics, padding = sorted_gradient(
            lambda params: prefill(model, attach(frozen, params), experience.prompts),
            continued,
            state.params,
            experience,
            sort_rows(mask, prompts=P, microbatches=microbatches, buckets=buckets, rows=algorithm.rows),
        )
    else:
        padding = padding_share(row_lengths(mask), mask.size)
        grads, loss, statistics = gradient_of(loss_of, state.params, experience, microbatches, algorithm.rows)
    new_state, update_metrics = guarded_update(state, grads, loss, optimizer=optimizer)
    metrics = {"loss": loss, "padding": padding, "num_trained_tokens": statistics["tokens"]}
    metrics |= mean_statistics(statistics) | update_metrics
    return new_state, metrics


def objective_of(algorithm: Algorithm, logprobs: Array, entropy: Array, rows: Experience) -> tuple[Array, Any]:
    """The loss of some rows, a sum, and their statistics.

    An entropy bonus is `entropy_bonus H_t` in each token's objective, so that it is reduced as that is (TRL: a mean
    over tokens, whatever the loss); `entropy` must carry its gradient then.
    """
    loss, metrics = algorithm.loss(logprobs, rows)
    if algorithm.entropy_bonus:
        loss = loss - algorithm.entropy_bonus * jnp.sum(rows.weights * entropy)
    return loss, token_statistics(metrics | {"entropy": entropy}, logprobs, rows)


def gradient_of(loss_of, params: Any, experience: Experience, microbatches: int, rows: int) -> tuple[Any, Array, Any]:
    """The gradient, the loss and the statistics of a batch in micro-batches."""
    if microbatches == 1:
        (loss, statistics), grads = jax.value_and_grad(loss_of, has_aux=True)(params, experience)
        return grads, loss, statistics

    def accumulate(carry, rows):
        grads, loss, statistics = carry
        (part, more), more_grads = jax.value_and_grad(loss_of, has_aux=True)(params, rows)
        return (
            jax.tree.map(jnp.add, grads, more_grads),
            loss + part,
            merge_statistics(statistics, more),
        ), None

    parts = split_rows(experience, microbatches, rows=rows)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda r: loss_of(params, r), first))
    start = (jax.tree.map(jnp.zeros_like, params), *zeros)
    return jax.lax.scan(accumulate, start, parts)[0]


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
