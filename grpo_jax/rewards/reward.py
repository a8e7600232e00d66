"""What a reward is: a name, a weight, and a function of the host's strings, of the device's arrays, or both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from jax import Array

    from grpo_jax.rewards.workers import Workers
    from grpo_jax.types import Problem, Rollout

CANNOT_JUDGE = float("nan")
COUNTS = ("ungradable", "timeout", "error", "nonfinite", "fallback")
"""What is counted for each host reward: completions without a verdict, of which some met the time limit, some an error;
infinite values, taken for NaN; batches that had to be judged one by one."""


class RewardError(ValueError):
    """A reward function that cannot be used: not found, of wrong shape or type, or failing on every completion."""

    exit_code = 2


class Encoding(NamedTuple):
    """How this run writes text as tokens, for rewards that compare tokens."""

    encode: Callable[[str], list[int]]  # what the policy would write; control tokens in it are plain text
    ends: tuple[int, ...]  # tokens that end a completion
    longest: int  # tokens of a completion, Tc
    decode: Callable[[Sequence[int]], str] | None = None  # the text of tokens, without special ones


class Batch(NamedTuple):
    """What a host reward sees: B = P*G rows, a group contiguous."""

    problems: Sequence[Problem]  # [B]
    completions: Sequence[str]  # [B]
    prompts: Sequence[Any]  # [B], strings or lists of messages
    completion_ids: Sequence[Sequence[int]] | None = None  # [B]
    conversational: bool = False  # completions go to functions of the user as lists of one assistant message
    step: int = 0
    encoding: Encoding | None = None


class Part(NamedTuple):
    """What a host reward says: B numbers, NaN where it cannot judge, with counts and the text of its first error."""

    values: Sequence[float]  # [B]
    counts: dict[str, int]
    error: str | None = None
    steps: Sequence[Sequence[tuple[int, float]]] | None = None  # [B], of each step its last token and its reward


class StepRewards(NamedTuple):
    """What a reward of steps says on the devices (arXiv:2402.03300, section 4.1.3); NaN where it cannot judge."""

    outcome: Array  # [P, G] f32, one number for metrics, such as the mean over the steps
    steps: Array  # [P, G, Tc] f32, 0 off the mask
    step_mask: Array  # [P, G, Tc] bool, True on the last token of each step


class Learned(NamedTuple):
    """Which reward model is asked, and what becomes of its scores."""

    path: str | None  # of a run; None: the run's own
    microbatches: int
    value: Callable[[Array], Array]  # scores -> values
    whole: Callable[[Array, Array, Array], Array]  # values, mask, step ends [B, Tc] -> [B]
    unfinished: float | None  # reward of what the length limit cut; None: as of all others
    steps: bool = False  # whether each step has its own reward


class Reward(NamedTuple):
    """A reward function with its weight, of text, of arrays, or in both forms, which give the same numbers.

    `host(batch, workers) -> Part` runs outside of JAX and may use the killable workers. `array(rollout) -> [P, G]` is
    pure and jitted; where `columns` is there, it is `array(rollout, columns(problems, encoding))`: what it must know of
    each problem, as arrays [P, ...] of the same shapes at every step. Of both forms, steps one by one take the host's,
    fused steps (`training/fused.py`) the arrays'. A `learned` reward is given its `scorer(rollout) -> [P, G]` by the
    stage, which opens the model. `check(workers)`, if there, is called once at start and raises
    `RewardError`.

    With `steps` it judges steps: `array` returns `StepRewards`, and `host` a part with `steps` beside its values, which
    are each completion's outcome, for metrics. A step ends where `splitting.py` says, or at any token of its choice.
    """

    name: str
    weight: float
    host: Callable[[Batch, Workers], Part] | None = None
    array: Callable[..., Array] | None = None
    columns: Callable[[Sequence[Problem], Encoding], dict[str, np.ndarray]] | None = None
    check: Callable[[Workers], None] | None = None
    optional: bool = False  # whether NaN leaves the sum to the other rewards; else it makes the sum NaN
    learned: Learned | None = None
    scorer: Callable[[Rollout], Array] | None = None
    steps: bool = False  # whether it judges the steps of a completion


def load_reward(config: Any) -> Reward:
    """Build the reward of one entry of `rl.rewards`; its `kind` names the file.

    Raises `RewardError` if the kind's `build` returns anything else than a reward with a function.
    """
    from grpo_jax.configure import find

    reward = find("rewards", config.kind).build(config)
    if not isinstance(reward, Reward) or (reward.host is None and reward.array is None and reward.learned is None):
        raise RewardError(
            f"rewards: build() of kind {config.kind!r} returned {reward!r}; expected a Reward with host, array, or both"
        )
    return reward


def load_rewards(configs: Sequence[Any]) -> tuple[Reward, ...]:
    """Build all rewards; those of one name are numbered, so that each has its own metric."""
    rewards: list[Reward] = []
    seen: Counter[str] = Counter()
    for reward in map(load_reward, configs):
        seen[reward.name] += 1
        number = f"_{seen[reward.name]}" if seen[reward.name] > 1 else ""
        rewards.append(reward._replace(name=reward.name + number))
    return tuple(rewards)


def check_rewards(rewards: Sequence[Reward], workers: Workers) -> None:
    """Find out at start what can be found out: whether the user's functions exist and load."""
    for reward in rewards:
        if reward.check is not None:
            reward.check(workers)


def counted(**counts: int) -> dict[str, int]:
    """Fill in zeros for what did not happen."""
    return dict.fromkeys(COUNTS, 0) | counts
