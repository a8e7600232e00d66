"""From completions to rewards [P, G]: functions of text on the host, functions of arrays on the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.algorithms.advantages import dead_groups
from grpo_jax.algorithms.algorithm import signals
from grpo_jax.rewards.combine import combine_all
from grpo_jax.rewards.reward import COUNTS, Reward, RewardError, StepRewards
from grpo_jax.rewards.score import Scored, score
from grpo_jax.sharding import agree, constrain, global_to_host
from grpo_jax.stages.run import Run
from grpo_jax.types import Problem, Rewards, Rollout


class Judged(NamedTuple):
    """The rewards of a rollout, by part and together; on the devices, until `on_host` brings them."""

    rewards: Rewards  # on the mesh, groups over the batch axis
    parts: dict[str, Any]  # each [P, G] f32, NaN = cannot judge
    outcome: Any  # [P, G] f32, the weighted sum
    counts: dict[str, dict[str, int]]  # by reward: ungradable, timeout, error
    dead: Any  # [P] bool, groups without signal

    def on_host(self) -> Judged:
        """The same with NumPy arrays, for metrics and rollouts."""
        parts, outcome, dead = global_to_host((self.parts, self.outcome, self.dead))
        return self._replace(parts=parts, outcome=outcome, dead=dead)


class Told(NamedTuple):
    """What the host rewards say of some problems on this host, or what made them fail."""

    scored: Scored
    failed: RewardError | None = None


def score_text(
    run: Run,
    problems: Sequence[Problem],
    texts: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    rewards: Sequence[Reward],
    *,
    step: int,
) -> Told:
    """The rewards that read text, on this host alone: nothing runs on the devices, so that these go on meanwhile."""
    on_host = [reward for reward in rewards if reward.host is not None]
    size = len(texts) // len(problems)
    try:
        scored = score(
            problems,
            texts,
            on_host,
            run.workers,
            num_generations=size,
            prompts=[run.prompt_as_seen(problem) for problem in problems],
            completion_ids=completion_ids,
            conversational=run.conversational,
            step=step,
            encoding=run.encoding(run.config.rl.sampling.max_completion_length),
        )
    except RewardError as error:
        return Told(_nothing(on_host, len(problems), size, run.config.rl.sampling.max_completion_length), error)
    return Told(scored)


def _nothing(rewards: Sequence[Reward], groups: int, size: int, longest: int) -> Scored:
    """What a host that failed goes on with where the first one did not: of the shape of what the others have."""
    steps = np.zeros((groups, size, longest), np.float32)
    return Scored(
        np.full((len(rewards), groups, size), np.nan, np.float32),
        {reward.name: dict.fromkeys(COUNTS, 0) for reward in rewards},
        steps={reward.name: (steps, steps > 0) for reward in rewards if reward.steps},
    )


def judge(
    run: Run, problems: Sequence[Problem], rollout: Rollout, told: Sequence[Told], rewards: Sequence[Reward]
) -> Judged:
    """The rewards of a rollout from what the host's say of its parts, in the order of the config; waits for nothing.

    Part m of K holds the problems m, m + K, m + 2K, ... On several hosts each judges everything, and all go on with
    the numbers of the first. A time limit may be met on one host and not on another, so whether to stop is the first
    host's word, as the numbers are: hosts that decided alone would wait for each other for ever.
    """
    failed = next((part.failed for part in told if part.failed), None)
    values = np.stack([part.scored.parts for part in told], axis=2)  # [R, P/K, K, G]
    R, share, K, G = values.shape
    stop, values = agree((failed is not None, values.reshape(R, share * K, G)))  # [R, P, G]
    if stop:
        raise failed or RewardError("a reward function failed on the first host; its message is there")
    for error in [part.scored.error for part in told if part.scored.error]:
        if error not in _told:
            _told.add(error)
            run.note(f"a reward function failed, its items are left out: {error}")
    names = [reward.name for reward in rewards if reward.host is not None]
    of_text = dict(zip(names, values, strict=True))
    parts = {
        reward.name: run.place(_with_steps(reward, of_text[reward.name], told))
        if reward.host is not None
        else _array_reward(run, reward, problems, rollout)
        for reward in rewards
    }
    weights = np.array([reward.weight for reward in rewards], np.float32)
    optional = np.array([reward.optional for reward in rewards])
    total, dead = _combine(list(parts.values()), weights, optional)  # dead [P]
    parts = {name: part.outcome if isinstance(part, StepRewards) else part for name, part in parts.items()}
    counts = {
        name: {what: sum(part.scored.counts[name][what] for part in told) for what in counted}
        for name, counted in told[0].scored.counts.items()
    }
    return Judged(total, parts, total.outcome, counts, dead)


@jax.jit
def _combine(
    parts: list[jax.Array | StepRewards], weights: jax.Array, optional: jax.Array
) -> tuple[Rewards, jax.Array]:
    _, total = combine_all(parts, weights, optional)
    total = jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), total)
    return total, dead_groups(signals(total))


def _with_steps(reward: Reward, outcome: np.ndarray, told: Sequence[Told]) -> np.ndarray | StepRewards:
    """What a host reward says of all prompts [P, G], with its steps if it judges them."""
    if not reward.steps:
        return outcome
    parts = [part.scored.steps[reward.name] for part in told]
    steps, mask = (np.stack(x, axis=1) for x in zip(*parts, strict=True))  # [P/K, K, G, Tc]
    return StepRewards(outcome, *agree(tuple(x.reshape(*outcome.shape, x.shape[-1]) for x in (steps, mask))))


_compiled: dict[Reward, object] = {}
_told: set[str] = set()


def _array_reward(run: Run, reward: Reward, problems: Sequence[Problem], rollout: Rollout) -> jax.Array:
    if reward.scorer is not None:
        return reward.scorer(rollout)
    if reward not in _compiled:
        _compiled[reward] = jax.jit(reward.array)
    if reward.columns is None:
        return _compiled[reward](rollout)
    known = reward.columns(problems, run.encoding(rollout.completion_mask.shape[1]))
    return _compiled[reward](rollout, run.place(known))
