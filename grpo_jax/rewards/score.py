"""Ask all host rewards about a batch of completions: strings in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from grpo_jax.rewards.reward import Batch, Encoding, Part, Reward, RewardError

if TYPE_CHECKING:
    from grpo_jax.rewards.workers import Workers
    from grpo_jax.types import Problem


class Scored(NamedTuple):
    """The host rewards of a batch, in their order; NaN is "cannot judge"."""

    parts: np.ndarray  # [R, P, G] f32, R host rewards
    counts: dict[str, dict[str, int]]  # by the reward's name, then as in reward.COUNTS
    error: str | None = None  # the first error of the batch
    steps: Mapping[str, tuple[np.ndarray, np.ndarray]] = MappingProxyType({})  # by name: [P, G, Tc] f32, its mask


def score(
    problems: Sequence[Problem],
    completions: Sequence[str],
    rewards: Sequence[Reward],
    workers: Workers,
    *,
    num_generations: int,
    prompts: Sequence[Any] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    conversational: bool = False,
    step: int = 0,
    encoding: Encoding | None = None,
) -> Scored:
    """Score completions by the host rewards among `rewards`; array rewards are passed over.

    Args:
        problems: P of them.
        completions: B = P*G texts, a group contiguous.
        prompts: P strings or lists of messages, as the policy saw them; None: made from the problems.
        completion_ids: B rows of tokens.
        conversational: whether prompts are conversations; functions of the user then get messages.
        step: of training, which functions of the user see as `trainer_state.global_step`.
        encoding: for rewards that compare tokens.

    Raises:
        ValueError: the numbers of problems, prompts and completions do not fit.
        RewardError: a function returned what is no list of rewards, or failed on all completions.
    """
    groups, size = len(problems), num_generations
    _check_sizes(groups, size, completions=completions, completion_ids=completion_ids)
    if prompts is None:
        prompts = [_prompt(problem, conversational) for problem in problems]
    elif len(prompts) != groups:
        raise ValueError(f"score: {len(prompts)} prompts for {groups} problems")
    batch = Batch(
        [problem for problem in problems for _ in range(size)],
        completions,
        [prompt for prompt in prompts for _ in range(size)],
        completion_ids,
        conversational,
        step,
        encoding,
    )
    host = [reward for reward in rewards if reward.host is not None]
    parts = {reward.name: reward.host(batch, workers) for reward in host}
    values = [_row(name, part.values, groups * size) for name, part in parts.items()]
    return Scored(
        np.array(values, np.float32).reshape(len(host), groups, size),
        {name: part.counts for name, part in parts.items()},
        next((part.error for part in parts.values() if part.error), None),
        {name: _steps(name, part, groups, encoding) for name, part in parts.items() if part.steps is not None},
    )


def _steps(name: str, part: Part, groups: int, encoding: Encoding | None) -> tuple[np.ndarray, np.ndarray]:
    """The step rewards of a part as arrays [P, G, Tc]."""
    if encoding is None or len(part.steps) != len(part.values):
        raise RewardError(f"reward {name!r} judges steps, and says so of {len(part.steps)} completions without tokens")
    steps = np.zeros((len(part.steps), encoding.longest), np.float32)
    mask = np.zeros(steps.shape, bool)
    for row, judged in enumerate(part.steps):
        for place, reward in judged:
            steps[row, place], mask[row, place] = reward, True
    return steps.reshape(groups, -1, encoding.longest), mask.reshape(groups, -1, encoding.longest)


def _check_sizes(groups: int, size: int, **rows: Sequence[Any] | None) -> None:
    for name, values in rows.items():
        if values is not None and len(values) != groups * size:
            raise ValueError(
                f"score: {len(values)} {name} for {groups} problems x {size} generations = {groups * size} rows"
            )


def _row(name: str, values: Sequence[float], size: int) -> Sequence[float]:
    if len(values) != size:
        raise RewardError(f"reward {name!r} returned {len(values)} values for {size} completions")
    return values


def _prompt(problem: Problem, conversational: bool) -> Any:
    if not conversational:
        return problem.question
    return list(problem.messages or ({"role": "user", "content": problem.question},))
