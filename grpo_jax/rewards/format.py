r"""Whether a completion has the wanted form: exactly one non-empty box, or a regular expression found in it.

A user's expression may take exponential time on a policy's text, so it runs in a killable worker.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.config import config

if TYPE_CHECKING:
    from grpo_jax.rewards.reward import Batch, Part, Reward
    from grpo_jax.rewards.workers import Workers

TIME_LIMIT = 10.0  # seconds a step for a user's expression


@config
class Config:
    """The form of a completion."""

    weight: float = 1.0
    r"""Factor in the weighted sum of the rewards."""
    pattern: str | None = None
    r"""A regular expression that must be found (with ^ and $ for all of it; . matches newlines); None: exactly one
    \boxed{...} with something in it."""
    correct: float = 1.0
    """Reward of the wanted form."""
    wrong: float = 0.0
    """Reward of any other."""


def build(c: Config) -> Reward:
    """Make the reward; raises `RewardError` if `pattern` is no regular expression."""
    import re

    from grpo_jax.rewards.reward import Reward, RewardError

    if c.pattern is not None:
        try:
            re.compile(c.pattern, re.DOTALL)
        except re.error as error:
            raise RewardError(f"rewards: format: pattern {c.pattern!r} is no regular expression: {error}") from None
    return Reward("format", c.weight, host=partial(_judge, c=c))


def _judge(batch: Batch, workers: Workers, *, c: Config) -> Part:
    from grpo_jax.rewards.extract import find_boxes
    from grpo_jax.rewards.reward import CANNOT_JUDGE, Part, counted
    from grpo_jax.rewards.searched import search

    if c.pattern is None:
        boxes = [[content for _, content in find_boxes(text) if content.strip()] for text in batch.completions]
        return Part([c.correct if len(found) == 1 else c.wrong for found in boxes], counted())
    found = search(c.pattern, batch.completions, workers, total=TIME_LIMIT)
    values = [CANNOT_JUDGE if match is None else c.correct if match else c.wrong for match in found]
    late = sum(match is None for match in found)
    return Part(values, counted(ungradable=late, timeout=late))
