"""Steps of reinforcement as one program: sample, judge, score and update, many times over, with no host between them.

What a step does is given as functions, those that run one by one otherwise; here they are only put together. Whether
two steps share a program changes nothing but rounding: how many run is an argument of the program, so that a chunk of
any length up to that of its arrays is computed by the same compiled step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.algorithms.advantages import dead_groups
from grpo_jax.algorithms.algorithm import signals
from grpo_jax.rewards.combine import combine_all
from grpo_jax.sharding import constrain
from grpo_jax.types import Experience, Prompts, Rewards, Rollout, TrainState

Columns = tuple[dict[str, Array] | None, ...]
"""For each reward what it knows of the problems, arrays [P, ...]; None for one that needs nothing."""


class Parts(NamedTuple):
    """The parts of a step: pure functions, and static settings."""

    policy: Callable[[Any, Any], Any]  # what is frozen, what is trained -> what sampler and scoring take
    sample: Callable[[Any, Prompts, Array, Array], Rollout]  # policy, prompts, run key, step
    rewards: tuple[Callable[..., Array], ...]  # (rollout) or (rollout, columns) -> [P, G]
    weights: tuple[float, ...]  # of the rewards
    optional: tuple[bool, ...]  # whether a reward's NaN leaves the sum to the others
    logprobs: Callable[[Any, Rollout], Array]
    experience: Callable[..., Experience]  # rollout, rewards, log-probabilities old and of the reference, values
    update: Callable[..., tuple[TrainState, dict[str, Array]]]  # state, experience, frozen=...
    reference: bool  # whether the algorithm takes the reference's log-probabilities
    num_iterations: int  # updates on one rollout
    old: bool  # whether the log-probabilities of the old policy are computed before them
    values: Callable[[Any, Rollout], Array] | None = None  # of the value model, where there is one
    offline: Callable[[Any, Rollout], dict[str, Array]] | None = None  # where the reference samples: its own gap


class Told(NamedTuple):
    """What the host is told of a step; of several, with one more axis in front."""

    parts: Array  # [R, P, G] f32, the rewards one by one
    outcome: Array  # [P, G] f32, their weighted sum
    dead: Array  # [P] bool, groups without signal
    lengths: Array  # [B] i32, tokens chosen
    finished: Array  # [B] bool
    prompt_tokens: Array  # [] i32
    updates: dict[str, Array]  # each [mu] f32


class Kept(NamedTuple):
    """What is kept of a step for the report; fields of arrays that the host has, or does not show, are None."""

    rollout: Rollout
    experience: Experience


def fused_step(
    state: TrainState, reference: Any, prompts: Prompts, columns: Columns, step: Array, frozen: Any, *, parts: Parts
) -> tuple[TrainState, Told, Kept]:
    """One step: lines 7 to 11 of Algorithm 1 of arXiv:2402.03300, as `stages/rl.py` takes them one by one.

    prompts [P, Tp], columns of arrays [P, ...], step [] i32 from 0; `reference` are the reference's weights.
    """
    policy = parts.policy(frozen, state.params)
    sampler = policy if parts.offline is None else parts.policy(frozen, reference)
    rollout = parts.sample(sampler, prompts, state.key, step)  # line 7
    judged, rewards = judge_arrays(rollout, columns, parts)  # 8
    old = parts.logprobs(policy, rollout) if parts.old else None
    ref = parts.logprobs(parts.policy(frozen, reference), rollout) if parts.reference else None
    values = parts.values(state.critic.params, rollout) if parts.values else None
    experience = parts.experience(rollout, rewards, old, ref, values)  # 9
    updates = []
    for _ in range(parts.num_iterations):  # 10, 11
        state, metrics = parts.update(state, experience, frozen=frozen)
        updates.append(metrics if parts.offline is None else metrics | parts.offline(sampler, rollout))
    told = Told(
        parts=judged,
        outcome=rewards.outcome,
        dead=dead_groups(signals(rewards)),
        lengths=rollout.completion_mask.sum(-1, dtype=jnp.int32),
        finished=rollout.finished,
        prompt_tokens=prompts.sequences.segments.sum(dtype=jnp.int32),
        updates=jax.tree.map(lambda *values: jnp.stack(values), *updates),
    )
    return state, told, shown(rollout, experience)


def judge_arrays(rollout: Rollout, columns: Columns, parts: Parts) -> tuple[Array, Rewards]:
    """The rewards of a rollout, one by one -> [R, P, G] f32, and together."""
    each = zip(parts.rewards, columns, strict=True)
    values = [reward(rollout) if known is None else reward(rollout, known) for reward, known in each]
    return combine_all(values, jnp.asarray(parts.weights), jnp.asarray(parts.optional))


def shown(rollout: Rollout, experience: Experience) -> Kept:
    """What the report shows of a step, without what the host has itself and what is there twice."""
    return Kept(
        rollout.replace(prompts=None),
        experience.replace(
            prompts=None,
            completions=None,
            completion_mask=None,
            weights=None,
            behaviour_logprobs=None,
            old_logprobs=None,
        ),
    )


def fused_steps(
    state: TrainState,
    reference: Any,
    prompts: Prompts,
    columns: Columns,
    first: Array,
    count: Array,
    slots: Array,
    frozen: Any = None,
    *,
    parts: Parts,
    num_slots: int,
) -> tuple[TrainState, Told, Kept]:
    """The steps first .. first + count - 1, one after the other.

    A scan whose length is an argument, count <= n: XLA turns either into the same loop, and a chunk that ends early,
    at a checkpoint or an evaluation, needs no program of its own, nor other rounding.

    Args:
        prompts: arrays [n, P, ...], of which the first `count` are used; columns alike.
        first: [] i32, the step of the first.
        count: [] i32.
        slots: [n] i32, for each step the slot in which it is kept for the report, or num_slots: it is not.
        frozen: the base of adapters.

    Returns:
        The state; what is told of each step, [n, ...], 0 from `count` on; what is kept, [num_slots + 1, ...], the last
        of which means nothing.
    """

    def one(i: Array, state: TrainState) -> tuple[TrainState, Told, Kept]:
        now = jax.tree.map(lambda x: _rows(jax.lax.dynamic_index_in_dim(x, i, keepdims=False)), (prompts, columns))
        return fused_step(state, reference, *now, first + i, frozen, parts=parts)

    def body(i: Array, carry: tuple[TrainState, Told, Kept]) -> tuple[TrainState, Told, Kept]:
        state, told, kept = carry
        state, new_told, new_kept = one(i, state)
        return state, _put(told, new_told, i), _put(kept, new_kept, slots[i])

    _, told, kept = jax.eval_shape(one, jnp.int32(0), state)
    start = (state, _empty(told, slots.shape[0]), _empty(kept, num_slots + 1))
    return jax.lax.fori_loop(0, count, body, start)


def _rows(x: Array) -> Array:
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


def _empty(tree: Any, size: int) -> Any:
    return jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), tree)


def _put(tree: Any, new: Any, place: Array) -> Any:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, place, 0), tree, new)
