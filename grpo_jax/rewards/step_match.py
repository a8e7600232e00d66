r"""Whether each written step is the same step of the reference solution: process supervision by a rule.

    r^j = right   if step j of the completion says what step j of the problem's solution says
          wrong   otherwise, and for a step too many

at the last token of step j (arXiv:2402.03300, section 4.1.3, with a rule in the place of the process reward model). In
the arithmetic source, where what follows rests on the last result alone, this is whether the right answer can still be
reached, which is what Math-Shepherd's labels estimate. A problem without a solution cannot be judged. Text is compared
without the blanks around it; with `split: tokens` tokens are, on the devices too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.config import config
from grpo_jax.rewards.splitting import Splitting

if TYPE_CHECKING:
    import numpy as np
    from jax import Array

    from grpo_jax.rewards.reward import Batch, Encoding, Part, Reward, StepRewards
    from grpo_jax.rewards.workers import Workers
    from grpo_jax.types import Problem, Rollout

NAME = "step_match"


@config
class Config(Splitting):
    """Right or wrong, by the step."""

    weight: float = 1.0
    """Factor in the weighted sum of the rewards."""
    right: float = 1.0
    """Reward of a right step."""
    wrong: float = 0.0
    """Reward of any other."""


def build(c: Config) -> Reward:
    """Make the reward; raises `RewardError` for a splitting that contradicts itself."""
    from grpo_jax.rewards.reward import Reward
    from grpo_jax.rewards.splitting import check_splitting

    check_splitting(c, NAME)
    on_devices = {"array": partial(_match, c=c), "columns": partial(_columns, c=c)} if c.split == "tokens" else {}
    return Reward(NAME, c.weight, host=partial(_judge, c=c), steps=True, **on_devices)


def _reference(problem: Problem, c: Config, encoding: Encoding, delimiters: Sequence[int]) -> list | None:
    """What each step of the solution says; None without a solution.

    Of tokens, a step that ends beyond the longest completion is None: it is never right, in either form.
    """
    from grpo_jax.rewards.splitting import text_steps, token_steps

    if problem.solution is None:
        return None
    if c.split == "tokens":
        steps = token_steps(encoding.encode(problem.solution), delimiters, encoding.ends)
        ends = itertools.accumulate(len(step.content) for step in steps)
        return [s.content if end <= encoding.longest else None for s, end in zip(steps, ends, strict=True)]
    return [content for content, _ in text_steps(problem.solution, c)]


def _judge(batch: Batch, workers: Workers, *, c: Config) -> Part:
    from grpo_jax.rewards.reward import CANNOT_JUDGE, Part, RewardError, counted
    from grpo_jax.rewards.splitting import delimiter_ids, steps_of

    if batch.completion_ids is None or batch.encoding is None:
        raise RewardError(f"rewards: {NAME} says at which token a step ends, and here is text only; use accuracy")
    delimiters = delimiter_ids(c, batch.encoding, NAME) if c.split == "tokens" else []
    distinct = {id(problem): problem for problem in batch.problems}
    known = {key: _reference(problem, c, batch.encoding, delimiters) for key, problem in distinct.items()}
    values, judged = [], []
    for problem, text, ids in zip(batch.problems, batch.completions, batch.completion_ids, strict=True):
        reference = known[id(problem)]
        steps = steps_of(text, list(ids), c, batch.encoding, delimiters)
        rewards = [
            CANNOT_JUDGE if reference is None else c.right if reference[j : j + 1] == [step.content] else c.wrong
            for j, step in enumerate(steps)
        ]
        judged.append([(step.end, reward) for step, reward in zip(steps, rewards, strict=True)])
        values.append(sum(rewards) / len(rewards) if rewards else CANNOT_JUDGE)
    return Part(values, counted(ungradable=sum(value != value for value in values)), steps=judged)


def _columns(problems: Sequence[Problem], encoding: Encoding, *, c: Config) -> dict[str, np.ndarray]:
    """What the devices must know of the solutions: the contents of their steps, one after the other.

    `tokens` [P, Tc] i32; `starts`, `lengths` [P, Tc] i32 of each step in it, length -1 where there is none;
    `delimiters` [P, N] and `ends` [P, E] i32, equal rows; `known` [P] bool.
    """
    import numpy as np

    from grpo_jax.rewards.splitting import delimiter_ids

    delimiters, shape = delimiter_ids(c, encoding, NAME), (len(problems), encoding.longest)
    tokens, starts, lengths = (np.full(shape, value, np.int32) for value in (-1, 0, -1))  # [P, Tc]
    references = [_reference(problem, c, encoding, delimiters) for problem in problems]
    for p, reference in enumerate(references):
        start = 0
        for j, content in enumerate((reference or [])[: encoding.longest]):  # no completion has more steps
            if content is not None:
                starts[p, j], lengths[p, j] = start, len(content)
                tokens[p, start : start + len(content)] = content
                start += len(content)
    rows = {"delimiters": delimiters, "ends": encoding.ends}
    equal = {name: np.tile(np.array(ids, np.int32), (len(problems), 1)) for name, ids in rows.items()}
    known = np.array([reference is not None for reference in references])
    return {"tokens": tokens, "starts": starts, "lengths": lengths, "known": known} | equal


def _match(rollout: Rollout, columns: dict[str, Array], *, c: Config) -> StepRewards:
    """The same on the devices; the mask of a completion is a prefix of its row."""
    import jax.numpy as jnp

    from grpo_jax.rewards.reward import StepRewards
    from grpo_jax.rewards.splitting import step_ends

    P, Tc = rollout.prompts.index.shape[0], rollout.completion_mask.shape[1]
    said, mask = (x.reshape(P, -1, Tc) for x in (rollout.completions.tokens, rollout.completion_mask))  # [P, G, Tc]
    stops = (columns[name][:, None] for name in ("delimiters", "ends"))
    ends, stop = step_ends(said, mask, *stops)
    number = jnp.cumsum(ends, -1) - ends  # of the step that each token is in
    content = mask & ~stop
    leading = (jnp.cumsum(content, -1) == 0).sum(-1, keepdims=True)  # delimiters before the first step
    begins = jnp.concatenate([jnp.zeros_like(ends[..., :1]), ends[..., :-1]], -1) | (jnp.arange(Tc) == leading)
    start = jnp.maximum.accumulate(jnp.where(begins, jnp.arange(Tc), 0), -1)  # of that step
    offset = jnp.arange(Tc) - start

    def of_reference(x: Array, place: Array) -> Array:  # [P, Tc] at places [P, G, Tc]
        return jnp.take_along_axis(jnp.broadcast_to(x[:, None], place.shape), jnp.clip(place, 0, Tc - 1), -1)

    length = of_reference(columns["lengths"], number)  # -1: no such step
    wanted = of_reference(columns["tokens"], of_reference(columns["starts"], number) + offset)
    off = content & ((said != wanted) | (offset >= length))
    so_far = jnp.cumsum(jnp.stack([content, off]), -1)  # [2, P, G, Tc]
    before = jnp.take_along_axis(so_far - jnp.stack([content, off]), jnp.broadcast_to(start, so_far.shape), -1)
    count, wrong = so_far - before  # of the step, up to each token
    right = (wrong == 0) & (count == length)
    rewards = jnp.where(ends, jnp.where(right, jnp.float32(c.right), jnp.float32(c.wrong)), 0.0)
    known = columns["known"][:, None]  # [P, 1]
    mean = rewards.sum(-1) / jnp.maximum(ends.sum(-1), 1)
    unknown = jnp.where(ends & ~known[..., None], jnp.nan, rewards)
    return StepRewards(jnp.where(known & ends.any(-1), mean, jnp.nan), unknown, ends)
