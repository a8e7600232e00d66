"""The value model beside the policy, with a state of its own, and the update of both from one batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from grpo_jax.algorithms.values import clipped_value_loss
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.parameters import abstract_params
from grpo_jax.models.values import completion_values, value_params
from grpo_jax.sharding import shards_in_context
from grpo_jax.training.state import abstract_state, create_state, state_shardings
from grpo_jax.training.statistics import mean_statistics, token_statistics
from grpo_jax.training.step import gradient_of, group_cuts, guarded_update, join_rows, split_rows
from grpo_jax.types import Experience, Rollout, TrainState, pytree


@pytree
class ActorCritic(TrainState):
    """The state of a policy and, beside it, that of its value model."""

    critic: TrainState


def abstract_actor_critic(
    actor: TrainState, model: Decoder, optimizer: optax.GradientTransformation, mesh: Mesh
) -> ActorCritic:
    """Shapes, types and shardings of a policy's abstract state with a value model."""
    critic = abstract_state(abstract_params(model.config, mesh), optimizer, mesh)
    return ActorCritic(**vars(actor), critic=critic)


def with_critic(
    actor: TrainState, model: Decoder, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> ActorCritic:
    """Put a value model that starts on the policy's trunk beside a policy's state; what it keeps are copies."""
    shardings = state_shardings(abstract_params(model.config, mesh))
    make = jax.jit(partial(value_params, config=model.config), out_shardings=shardings)
    return ActorCritic(**vars(actor), critic=create_state(make(actor.params), optimizer, seed, mesh))


def rollout_values(params: Any, rollout: Rollout, *, model: Decoder, microbatches: int = 1) -> Array:
    """The value model's values of a rollout before its updates: [B, Tc] f32, 0 off the mask."""
    P, B = rollout.prompts.index.shape[0], rollout.completion_mask.shape[0]

    def part(rows: Rollout) -> Array:
        values = completion_values(model, params, rows.prompts, rows.completions)
        return jnp.where(rows.completion_mask, values, 0.0)

    if microbatches == 1:
        return part(rollout)
    return join_rows(jax.lax.map(part, split_rows(rollout, microbatches)), P, B // P)


def value_step(
    state: TrainState,
    experience: Experience,
    *,
    model: Decoder,
    optimizer: optax.GradientTransformation,
    clip: float | None,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of the value model towards `experience.returns`; metrics named `value/...`."""
    group_cuts(*_sizes(experience), microbatches, shards=shards_in_context())

    def loss_of(params: Any, rows: Experience) -> tuple[Array, Any]:
        values = completion_values(model, params, rows.prompts, rows.completions)
        loss, metrics = clipped_value_loss(values, rows, clip=clip)
        return loss, token_statistics(metrics, values, rows.replace(behaviour_logprobs=None))

    grads, loss, statistics = gradient_of(loss_of, state.params, experience, microbatches, 1)
    new_state, update = guarded_update(state, grads, loss, optimizer=optimizer)
    named = {f"value/{name}": number for name, number in ({"loss": loss} | update).items()}
    return new_state, named | mean_statistics(statistics)


def actor_critic_step(
    state: ActorCritic,
    experience: Experience,
    *,
    policy: Callable[..., tuple[Any, dict[str, Array]]],
    values: Callable[..., tuple[TrainState, dict[str, Array]]],
    frozen: Any | None = None,
) -> tuple[ActorCritic, dict[str, Array]]:
    """Update policy and value model from one batch; that either was skipped counts as skipped."""
    actor, metrics = policy(state, experience, frozen=frozen)
    critic, more = values(state.critic, experience)
    skipped = jnp.maximum(metrics["skipped_updates"], more.pop("value/skipped_updates"))
    return actor.replace(critic=critic), metrics | more | {"skipped_updates": skipped}


def _sizes(experience: Experience) -> tuple[int, int]:
    P, B = experience.prompts.index.shape[0], experience.completion_mask.shape[0]
    return P, B // P
