"""Run a user's reward function on a batch in a worker; where that fails, on single rows, to spare the good ones."""

from __future__ import annotations

import math
import time
from typing import Any

from grpo_jax.rewards.functions import Answer, Request, call, load_and_forget, own_frames
from grpo_jax.rewards.reward import CANNOT_JUDGE, Batch, Part, RewardError, counted
from grpo_jax.rewards.workers import Outcome, Workers

SHARE_OF_ONE = 1 / 8  # of the time left for single rows, what one of them may take


def run(batch: Batch, workers: Workers, *, path: str, time_limit: float, memory: int) -> Part:
    """Call the function at `path` on a batch and return its values.

    Raises `RewardError` if what it returns is no list of one number a row, or if it fails on every row.
    """
    if not batch.completions:
        return Part([], counted())
    workers.prepare(load_and_forget, path)
    request = Request(path, columns(batch), len(batch.completions), batch.step)
    start = time.monotonic()
    whole = workers.map(call, [request], time_limit=time_limit / 2, memory=memory)[0]
    if whole.kind == "value":
        answer = _accepted(whole.value, path)
        counts = counted(ungradable=sum(map(math.isnan, answer.values)), nonfinite=answer.nonfinite)
        return Part(answer.values, counts)
    left = max(time_limit - (time.monotonic() - start), time_limit / 4)
    rows = [request.row(index) for index in range(request.size)]
    limit = max(left * SHARE_OF_ONE, min(1.0, left))
    outcomes = workers.map(call, rows, time_limit=limit, memory=memory, total=left)
    return _collect(outcomes, whole, path)


def _collect(outcomes: list[Outcome], whole: Outcome, path: str) -> Part:
    answers = [_accepted(o.value, path) if o.kind == "value" else None for o in outcomes]
    first = next((own_frames(o.text) for o in (*outcomes, whole) if o.kind == "error"), None)
    timeouts = sum(o.kind == "timeout" for o in outcomes)
    if not any(answers):
        cause = first or f"it took longer than its time_limit on {timeouts} of them"
        raise RewardError(
            f"reward function {path!r} failed on the batch and on each of its {len(outcomes)} completions:\n{cause}"
        )
    values = [answer.values[0] if answer else CANNOT_JUDGE for answer in answers]
    counts = counted(
        ungradable=sum(map(math.isnan, values)),
        timeout=timeouts,
        error=sum(o.kind == "error" for o in outcomes),
        nonfinite=sum(answer.nonfinite for answer in answers if answer),
        fallback=1,
    )
    return Part(values, counts, first or f"{path} took too long on a batch and on {timeouts} of its completions")


def _accepted(answer: Answer, path: str) -> Answer:
    if answer.refused:
        raise RewardError(f"reward function {path!r}: {answer.refused}")
    return answer


def columns(batch: Batch) -> dict[str, list[Any]]:
    """Lay a batch out as the keyword arguments of a TRL reward function."""
    problems = batch.problems
    names = dict.fromkeys(name for problem in problems for name in problem.columns)
    completions: list[Any] = list(batch.completions)
    if batch.conversational:
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    return {
        "question": [problem.question for problem in problems],
        "answer": [problem.answer for problem in problems],
        "solution": [problem.solution for problem in problems],
        **{name: [problem.columns.get(name) for problem in problems] for name in names},
        "prompts": list(batch.prompts),
        "completions": completions,
        "completion_ids": None if batch.completion_ids is None else [list(ids) for ids in batch.completion_ids],
    }
