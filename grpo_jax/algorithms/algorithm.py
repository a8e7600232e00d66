"""What a method is: four small functions in a tuple, and the one way from a rollout to the data of an update.

DeepSeekMath's unified view (arXiv:2402.03300, section 5.2.1, eq. 5): a method is a source of data, a reward function,
and an algorithm that turns rewards into a gradient coefficient for every token. The last is an `Algorithm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.algorithms.objectives import Metrics
from grpo_jax.types import Experience, Rewards, Rollout


def all_groups(rewards: Array) -> Array:
    """Every group is worth training on. [P, G] -> [P] bool."""
    return jnp.ones(rewards.shape[:1], bool)


class Algorithm(NamedTuple):
    """A method as a value; compose one from the functions of this package, or write your own four."""

    advantages: Callable[[Rewards], Array]  # -> [P, G] or [P, G, Tc]
    weights: Callable[[Array], Array]  # mask [B, Tc] -> [B, Tc]
    loss: Callable[[Array, Experience], tuple[Array, Metrics]]  # logprobs [B, Tc] -> sum over rows, metrics [B, Tc]
    keep: Callable[[Array], Array] = all_groups  # rewards [P, G] -> [P] bool
    rows: int = 1  # rows that must stay together
    reference: bool = False  # whether `ref_logprobs` are needed


def of_outcome(function: Callable[[Array], Array]) -> Callable[[Rewards], Array]:
    """Adapt a function of outcome rewards [P, G] to `Algorithm.advantages`."""
    return lambda rewards: function(rewards.outcome)


def of_steps(function: Callable[[Array, Array], Array]) -> Callable[[Rewards], Array]:
    """Adapt a function of step rewards [P, G, Tc] and their mask to `Algorithm.advantages`."""
    return lambda rewards: function(rewards.steps, rewards.step_mask)


def maximize(
    objective: Callable[[Array, Experience], tuple[Array, Metrics]],
) -> Callable[[Array, Experience], tuple[Array, Metrics]]:
    """Turn an objective by token into a loss: `-sum(weights * objective)`, a sum over rows."""

    def loss(logprobs: Array, experience: Experience) -> tuple[Array, Metrics]:
        value, metrics = objective(logprobs, experience)
        return -jnp.sum(experience.weights * value), metrics

    return loss


def make_experience(
    algorithm: Algorithm,
    rollout: Rollout,
    rewards: Rewards,
    old_logprobs: Array | None = None,
    ref_logprobs: Array | None = None,
) -> Experience:
    """Advantages and weights of a rollout, over the global batch.

    A completion that could not be judged (reward NaN), and every completion of a group that `algorithm.keep` refuses,
    leaves the mask: it has no weight, and the means are over the others.
    """
    B, Tc = rollout.completion_mask.shape
    G = rewards.outcome.shape[-1]
    kept = jnp.repeat(algorithm.keep(rewards.outcome), G) & ~jnp.isnan(rewards.outcome).reshape(B)  # [B]
    mask = rollout.completion_mask & kept[:, None]  # [B, Tc]
    advantages = algorithm.advantages(rewards)  # [P, G] or [P, G, Tc]
    advantages = jnp.broadcast_to(advantages.reshape(B, -1), (B, Tc))
    return Experience(
        prompts=rollout.prompts,
        completions=rollout.completions,
        completion_mask=mask,
        weights=algorithm.weights(mask),
        advantages=jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0)),
        behaviour_logprobs=rollout.logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
    )
