"""From completions to rewards [P, G]: functions of text on the host, functions of arrays on the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.rewards.combine import combine
from grpo_jax.rewards.reward import Reward, RewardError
from grpo_jax.rewards.score import Scored, score
from grpo_jax.sharding import agree, global_to_host
from grpo_jax.stages.run import Run
from grpo_jax.types import Problem, Rewards, Rollout


class Judged(NamedTuple):
    """The rewards of a rollout, by part and together."""

    rewards: Rewards  # on the mesh, groups over the batch axis
    parts: dict[str, np.ndarray]  # each [P, G] f32, NaN = cannot judge
    outcome: np.ndarray  # [P, G] f32, the weighted sum
    counts: dict[str, dict[str, int]]  # by reward: ungradable, timeout, error


def judge(
    run: Run,
    problems: Sequence[Problem],
    texts: list[str],
    rollout: Rollout,
    rewards: Sequence[Reward],
    *,
    step: int,
) -> Judged:
    """Judge all completions; rewards come in the order of the config.

    On several hosts each judges everything, and all go on with the numbers of the first.
    """
    on_host = [reward for reward in rewards if reward.host is not None]
    scored = score_text(run, problems, texts, rollout, on_host, step)
    of_text = dict(zip((reward.name for reward in on_host), agree(scored.parts), strict=True))
    parts = {
        reward.name: np.asarray(of_text[reward.name])
        if reward.host is not None
        else global_to_host(_array_reward(run, reward, problems, rollout))
        for reward in rewards
    }
    weights = np.array([reward.weight for reward in rewards], np.float32)
    optional = np.array([reward.optional for reward in rewards])
    outcome = _combine(jnp.asarray(np.stack(list(parts.values()))), weights, optional)  # [P, G]
    outcome = np.asarray(jax.device_get(outcome))
    return Judged(Rewards(run.place(outcome)), parts, outcome, scored.counts)


def score_text(
    run: Run, problems: Sequence[Problem], texts: list[str], rollout: Rollout, rewards: Sequence[Reward], step: int
) -> Scored:
    """The rewards that read text; what went wrong for the first time is told.

    A time limit may be met on one host and not on another, so whether to stop is the first host's word, as the
    numbers are: hosts that decided alone would wait for each other for ever.
    """
    tokens, mask = global_to_host((rollout.completions.tokens, rollout.completion_mask))
    size = len(texts) // len(problems)
    try:
        scored, failed = (
            score(
                problems,
                texts,
                rewards,
                run.workers,
                num_generations=size,
                prompts=[run.prompt_as_seen(problem) for problem in problems],
                completion_ids=[row[chosen].tolist() for row, chosen in zip(tokens, mask, strict=True)],
                conversational=run.conversational,
                step=step,
                encoding=run.encoding(tokens.shape[1]),
            ),
            None,
        )
    except RewardError as error:
        scored, failed = Scored(np.full((len(rewards), len(problems), size), np.nan, np.float32), {}), error
    if agree(failed is not None):
        raise failed or RewardError("a reward function failed on the first host; its message is there")
    if scored.error and scored.error not in _told:
        _told.add(scored.error)
        run.note(f"a reward function failed, its items are left out: {scored.error}")
    return scored


_combine = jax.jit(combine)
_compiled: dict[Reward, object] = {}
_told: set[str] = set()


def _array_reward(run: Run, reward: Reward, problems: Sequence[Problem], rollout: Rollout) -> jax.Array:
    if reward not in _compiled:
        _compiled[reward] = jax.jit(reward.array)
    if reward.columns is None:
        return _compiled[reward](rollout)
    known = reward.columns(problems, run.encoding(rollout.completion_mask.shape[1]))
    return _compiled[reward](rollout, run.place(known))
