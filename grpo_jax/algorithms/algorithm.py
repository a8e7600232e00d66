"""What a method is: four small functions in a tuple, and the one way from a rollout to the data of an update.

DeepSeekMath's unified view (arXiv:2402.03300, section 5.2.1, eq. 5): a method is a source of data, a reward function,
and an algorithm that turns rewards into a gradient coefficient for every token. The last is an `Algorithm`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.algorithms.advantages import dead_groups
from grpo_jax.algorithms.objectives import Metrics
from grpo_jax.algorithms.values import token_rewards
from grpo_jax.types import Experience, Rewards, Rollout


def all_groups(rewards: Array) -> Array:
    """Every group is worth training on. [P, G] -> [P] bool."""
    return jnp.ones(rewards.shape[:1], bool)


def mixed_outcomes(rewards: Array) -> Array:
    """Groups whose rewards differ: the others have no advantage. [P, G] -> [P] bool.

    DAPO, arXiv:2503.14476, eq. 11, where rewards are right or wrong: neither none of the group is right, nor all are.
    """
    return ~dead_groups(rewards)


def signals(rewards: Rewards) -> Array:
    """The numbers of each group whose spread is its signal: outcomes [P, G], or its steps, NaN where there is none."""
    if rewards.steps is None:
        return rewards.outcome
    return jnp.where(rewards.step_mask, rewards.steps, jnp.nan).reshape(rewards.outcome.shape[0], -1)


class Critic(NamedTuple):
    """What a method with a value model adds."""

    estimate: Callable[[Array, Array, Array], tuple[Array, Array]]  # rewards, values, mask -> advantages, returns
    clip: float | None  # of the values' loss
    optimizer: Any  # the settings of the value model's optimizer


class Algorithm(NamedTuple):
    """A method as a value; compose one from the functions of this package, or write your own four."""

    advantages: Callable[[Rewards], Array] | None  # -> [P, G] or [P, G, Tc]; None: the critic's
    weights: Callable[[Array], Array]  # mask [B, Tc] -> [B, Tc]
    loss: Callable[[Array, Experience], tuple[Array, Metrics]]  # logprobs [B, Tc] -> sum over rows, metrics [B, Tc]
    keep: Callable[[Array], Array] = all_groups  # rewards [P, n] (`signals`) -> [P] bool
    rows: int = 1  # rows that must stay together
    reference: bool = False  # whether `ref_logprobs` are needed
    penalty: Callable[[Array, Array, Array], Array] | None = None  # (logprobs, ref, mask) -> [B, Tc], off the reward
    entropy_bonus: float = 0.0  # added to each token's objective, times its entropy
    truncated: bool = True  # whether completions that the length limit cut are trained on
    steps: bool = False  # whether `advantages` takes step rewards
    baseline: bool = True  # whether rewards count by their differences within a group, so that equal ones say nothing
    sampler: Literal["policy", "reference", "data"] = "policy"  # who writes the completions
    distinct: bool = False  # whether equal completions of a group are trained on once
    critic: Critic | None = None  # a value model, learnt beside the policy
    arrange: Callable[[Array], tuple[Array, Array]] | None = None  # rewards [P, G] -> order of rows, which count


def of_outcome(function: Callable[[Array], Array]) -> Callable[[Rewards], Array]:
    """Adapt a function of outcome rewards [P, G] to `Algorithm.advantages`."""
    return lambda rewards: function(rewards.outcome)


def of_steps(function: Callable[[Array, Array], Array]) -> Callable[[Rewards], Array]:
    """Adapt a function of step rewards [P, G, Tc] and their mask to `Algorithm.advantages`."""
    return lambda rewards: function(rewards.steps, rewards.step_mask)


def of_either(outcome: Callable[[Array], Array], steps: Callable[[Array, Array], Array]) -> Callable[[Rewards], Array]:
    """Process supervision where there are step rewards, else outcome supervision."""
    return lambda rewards: (
        outcome(rewards.outcome) if rewards.steps is None else steps(rewards.steps, rewards.step_mask)
    )


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
    values: Array | None = None,
) -> Experience:
    """Advantages and weights of a rollout, over the global batch.

    A completion that could not be judged (reward NaN), every completion of a group that `algorithm.keep` refuses, and
    what was cut where `algorithm.truncated` is False leaves the mask: it has no weight, and the means are over the
    others. What was cut still counts in the baseline of its group, as in TRL. Of `algorithm.rows` that stay together
    all leave if one does.
    """
    B, G = rollout.completion_mask.shape[0], rewards.outcome.shape[-1]
    places = counts = None
    if algorithm.arrange is not None:
        order, counts = algorithm.arrange(rewards.outcome)  # [P, G] each
        places = (jnp.arange(B, dtype=jnp.int32).reshape(-1, G)[:, :1] + order).reshape(B)
        prompts, arrays = rollout.prompts, (rollout.replace(prompts=None), rewards, old_logprobs, ref_logprobs)
        rollout, rewards, old_logprobs, ref_logprobs = jax.tree.map(partial(in_order, order), arrays)
        rollout = rollout.replace(prompts=prompts)
    keep = algorithm.keep(signals(rewards))  # [P] bool
    kept = jnp.repeat(keep, G) & ~jnp.isnan(rewards.outcome).reshape(B)  # [B]
    if not algorithm.truncated:
        kept = kept & rollout.finished
    if algorithm.distinct:
        kept = kept & first_of_its_kind(rollout, G)
    if counts is not None:
        kept = kept & counts.reshape(B)
    kept = jnp.repeat(kept.reshape(-1, algorithm.rows).all(-1), algorithm.rows)
    mask = rollout.completion_mask & kept[:, None]  # [B, Tc]
    # A statistic of the batch is one of the groups that are trained on.
    rewards = rewards.replace(outcome=jnp.where(keep[:, None], rewards.outcome, jnp.nan))
    advantages, returns = estimated(algorithm, rollout, rewards, old_logprobs, ref_logprobs, values, mask)
    return Experience(
        prompts=rollout.prompts,
        completions=rollout.completions,
        completion_mask=mask,
        weights=algorithm.weights(mask),
        advantages=jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0)),
        behaviour_logprobs=None if algorithm.sampler == "data" else rollout.logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        returns=returns,
        places=places,
    )


def estimated(
    algorithm: Algorithm,
    rollout: Rollout,
    rewards: Rewards,
    old_logprobs: Array | None,
    ref_logprobs: Array | None,
    values: Array | None,
    trained: Array,
) -> tuple[Array, Array | None]:
    """Advantages [B, Tc], and what the value model is to learn, if there is one, at the tokens `trained` on [B, Tc].

    A KL penalty is taken off the outcome, or off each token's reward where there are values. With one update per
    exploration the sampler's log-probabilities are those of the old policy.
    """
    mask, penalty = rollout.completion_mask, jnp.zeros(rollout.completion_mask.shape)
    if algorithm.penalty is not None:
        old = rollout.logprobs if old_logprobs is None else old_logprobs
        penalty = jnp.where(mask, algorithm.penalty(old, ref_logprobs, mask), 0.0)
    if algorithm.critic is not None:
        return algorithm.critic.estimate(token_rewards(rewards, trained, penalty), values, trained)
    if algorithm.penalty is not None:
        rewards = less_penalty(rewards, penalty)
    advantages = algorithm.advantages(rewards)  # [P, G] or [P, G, Tc]
    return jnp.broadcast_to(advantages.reshape(mask.shape[0], -1), mask.shape), None


def in_order(order: Array, x: Array) -> Array:
    """Reorder within groups: order [P, G], x [B, ...] or [P, G, ...], each of which keeps its shape."""
    P, G = order.shape
    groups = x.reshape(P, G, -1)
    return jnp.take_along_axis(groups, order[..., None], axis=1).reshape(x.shape)


def first_of_its_kind(rollout: Rollout, num_generations: int) -> Array:
    """Whether no earlier completion of the group has the same tokens: -> [B] bool."""
    mask = rollout.completion_mask
    tokens = jnp.where(mask, rollout.completions.tokens, -1).reshape(-1, num_generations, mask.shape[-1])  # [P, G, Tc]
    same = (tokens[:, :, None] == tokens[:, None]).all(-1)  # [P, G, G]
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)
    return ~(same & earlier).any(-1).reshape(-1)


def less_penalty(rewards: Rewards, penalty: Array) -> Rewards:
    """Outcome rewards less the KL penalty [B, Tc] of the whole completion: `r_i - sum_t penalty_t`.

    Raises `ValueError` for step rewards: the paper has no such penalty, and what it would be normalised with is open.
    """
    if rewards.steps is not None:
        raise ValueError("a KL penalty in the reward and step rewards do not go together; set kl_in to loss")
    return rewards.replace(outcome=rewards.outcome - penalty.sum(-1).reshape(rewards.outcome.shape))
