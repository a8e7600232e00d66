"""One supervised update: maximum likelihood of the demonstrated completions (arXiv:2402.03300, eq. 6)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logprobs import sequence_logprobs
from grpo_jax.models.lora import attach
from grpo_jax.training.step import MicrobatchError, guarded_update
from grpo_jax.types import Sequences, TrainState


def supervised_loss(
    params: Any, sequences: Sequences, weights: Array, *, model: Decoder, chunk: int, frozen: Any | None = None
) -> tuple[Array, Array]:
    """`-sum(weights * logp)` and the weighted entropy. sequences [B, T], weights [B, T] -> two scalars.

    `frozen` is the base of `params` where these are adapters.
    """
    logprobs, entropy = sequence_logprobs(model, attach(frozen, params), sequences, chunk=chunk)
    return -jnp.sum(weights * logprobs), jnp.sum(weights * entropy)


def supervised_step(
    state: TrainState,
    sequences: Sequences,
    loss_mask: Array,
    *,
    model: Decoder,
    optimizer: optax.GradientTransformation,
    chunk: int = 128,
    microbatches: int = 1,
    frozen: Any | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One update on packed rows; the loss is the mean over all tokens that are to be learnt.

    Where the state holds adapters, `frozen` is the base that they are attached to: it is read, and has no gradient.

    sequences [B, T], loss_mask [B, T] bool, True on completion tokens (their end included). The paper's eq. 6 averages
    within an example first; the mean over tokens is what its framework and all peers use for packed rows.
    """
    B = loss_mask.shape[0]
    if B % microbatches:
        raise MicrobatchError(f"microbatches: {B} rows cannot be cut into {microbatches} equal parts")
    weights = loss_mask / jnp.maximum(loss_mask.sum(), 1).astype(jnp.float32)  # [B, T]

    def accumulate(carry, rows):
        grads, loss, entropy = carry
        (part, more_entropy), more = jax.value_and_grad(supervised_loss, has_aux=True)(
            state.params, *rows, model=model, chunk=chunk, frozen=frozen
        )
        return (jax.tree.map(jnp.add, grads, more), loss + part, entropy + more_entropy), None

    parts = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(B // microbatches, microbatches, *x.shape[1:]), 0, 1),
        (sequences, weights),
    )
    start = (jax.tree.map(jnp.zeros_like, state.params), jnp.float32(0.0), jnp.float32(0.0))
    if microbatches == 1:
        (grads, loss, entropy), _ = accumulate(start, (sequences, weights))
    else:
        (grads, loss, entropy), _ = jax.lax.scan(accumulate, start, parts)
    new_state, metrics = guarded_update(state, grads, loss, optimizer=optimizer)
    return new_state, {"loss": loss, "entropy": entropy, "num_tokens": loss_mask.sum()} | metrics
