"""A reward function of the user's, as TRL and Tunix call it, unchanged.

    def reward(prompts, completions, completion_ids=None, **columns) -> list[float | None]

All arguments are lists with one entry a completion: `prompts` strings or lists of messages, as the prompt's format is;
`completions` strings, or for conversations lists of one assistant message; `question`, `answer`, `solution`, and the
other columns of the problem's row, which win over these three. A function without **kwargs gets what it names.

It runs in a killable worker, on the whole batch. If that raises or hangs, it runs on each completion alone, so that
only the bad ones go without a reward. What it prints is thrown away; the accelerator is not its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import pydantic

from grpo_jax.config import Positive, config

if TYPE_CHECKING:
    from grpo_jax.rewards.reward import Reward
    from grpo_jax.rewards.workers import Workers


@config
class Config:
    """A function by its path."""

    path: str
    """package.module:function, package.module.function, or file.py:function."""
    weight: float = 1.0
    """Factor in the weighted sum of the rewards."""
    time_limit: Annotated[float, pydantic.Field(gt=0)] = 60.0
    """Seconds a step may take here: half of it on the whole batch, and if that fails the rest on single completions."""
    memory_gb: Positive = 16
    """Address space it may take."""


def build(c: Config) -> Reward:
    """Make the reward; the function itself is only ever imported in workers.

    Raises `RewardError` if the path has no form of a path.
    """
    from grpo_jax.rewards.batched import run
    from grpo_jax.rewards.functions import NotFound, split_path
    from grpo_jax.rewards.reward import Reward, RewardError

    try:
        _, name = split_path(c.path)
    except NotFound as error:
        raise RewardError(f"rewards: path: {error}") from None
    memory = c.memory_gb << 30
    host = partial(run, path=c.path, time_limit=c.time_limit, memory=memory)
    return Reward(name, c.weight, host=host, check=partial(_check, path=c.path, memory=memory), optional=True)


def _check(workers: Workers, *, path: str, memory: int) -> None:
    """Load the function in a worker and say what is wrong with it before anything costly starts."""
    from grpo_jax.rewards.functions import load_and_forget, own_frames
    from grpo_jax.rewards.reward import RewardError
    from grpo_jax.rewards.workers import START_LIMIT

    outcome = workers.map(load_and_forget, [path], time_limit=START_LIMIT, memory=memory)[0]
    workers.prepare(load_and_forget, path)
    if outcome.kind == "timeout":
        raise RewardError(f"rewards: path {path!r}: not imported within {START_LIMIT:.0f} s")
    if outcome.kind == "error":
        *frames, reason = own_frames(outcome.text).strip().splitlines()
        where = next((f" ({line.strip()})" for line in reversed(frames) if line.startswith("  File ")), "")
        places = "; modules are looked for on PYTHONPATH and in the working directory"
        error = RewardError(f"rewards: path {path!r}: {reason}{where}{places if 'No module' in reason else ''}")
        error.add_note(outcome.text)  # --debug shows it
        raise error
