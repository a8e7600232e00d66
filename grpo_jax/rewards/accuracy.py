r"""Whether the final answer of a completion equals the reference answer.

The answer is found by `extract.py` (a box first) and judged by `equivalent.py` (exact rules first, math-verify behind
them in killable workers). A verdict has three outcomes; the third, ungradable, is counted in any case. By default it
is worth the same as wrong: were it to abstain, a policy could escape the penalty of a wrong answer by making its
answers unreadable. `abstain` takes such completions out of their group's baseline instead.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from grpo_jax.config import config

if TYPE_CHECKING:
    from grpo_jax.rewards.reward import Batch, Part, Reward
    from grpo_jax.rewards.workers import Workers

Seconds = Annotated[float, pydantic.Field(gt=0)]


@config
class Config:
    """Right or wrong, by the final answer."""

    weight: float = 1.0
    """Factor in the weighted sum of the rewards."""
    correct: float = 1.0
    """Reward of a right answer."""
    wrong: float = 0.0
    """Reward of a wrong answer, and of none."""
    ungradable: Literal["wrong", "abstain"] = "wrong"
    """Reward of an answer that cannot be judged: as of a wrong one, or none, which leaves the group's baseline."""
    time_limit: Seconds = 3.0
    """Seconds for one symbolic comparison."""
    step_time_limit: Seconds = 60.0
    """Seconds for all symbolic comparisons of a step; what is not done then is ungradable."""


def build(c: Config) -> Reward:
    """Make the reward."""
    from grpo_jax.rewards.reward import Reward

    return Reward("accuracy", c.weight, host=partial(_judge, c=c))


def _judge(batch: Batch, workers: Workers, *, c: Config) -> Part:
    from grpo_jax.rewards.equivalent import RIGHT, UNGRADABLE, grade_all
    from grpo_jax.rewards.extract import extract_answer
    from grpo_jax.rewards.reward import CANNOT_JUDGE, Part, counted

    pairs = [
        (extract_answer(completion), str(problem.answer))
        for completion, problem in zip(batch.completions, batch.problems, strict=True)
    ]
    verdicts = grade_all(pairs, workers, time_limit=c.time_limit, total=c.step_time_limit)
    values = {RIGHT: c.correct, UNGRADABLE: CANNOT_JUDGE if c.ungradable == "abstain" else c.wrong}
    counts = counted(
        ungradable=sum(verdict.grade is UNGRADABLE for verdict in verdicts),
        timeout=sum(verdict.fault == "timeout" for verdict in verdicts),
        error=sum(verdict.fault == "error" for verdict in verdicts),
    )
    first = next((verdict.reason for verdict in verdicts if verdict.fault == "error"), None)
    return Part([values.get(verdict.grade, c.wrong) for verdict in verdicts], counts, first)
