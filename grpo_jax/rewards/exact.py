r"""Whether a completion is token by token the reference answer: a rule that the devices can apply by themselves.

    r = correct   if the chosen tokens, one end of sequence at their end aside, are those of `form`
        wrong     otherwise

With `after` they need only end so, behind one of its tokens: `{kind: exact, after: ["\n", "="]}` finds 46 in a last
line 46 or 55-9=46, and not in 146. Tokens are what the run's tokenizer makes of a text that continues another; a policy
that cuts the same text into other tokens is wrong. With one token a character the two are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from grpo_jax.config import config

if TYPE_CHECKING:
    import numpy as np
    from jax import Array

    from grpo_jax.rewards.reward import Batch, Encoding, Part, Reward
    from grpo_jax.rewards.workers import Workers
    from grpo_jax.types import Problem, Rollout

ANSWER = "{answer}"


@config
class Config:
    """Right or wrong, by the tokens; on the devices too (`rl.fused_steps`)."""

    weight: float = 1.0
    """Factor in the weighted sum of the rewards."""
    form: str = ANSWER
    r"""What must be written, with {answer} once, such as "#### {answer}"."""
    after: tuple[str, ...] = ()
    r"""What may stand before it, each one token; anything may stand before that. None: it is all of the completion."""
    correct: float = 1.0
    """Reward of a match."""
    wrong: float = 0.0
    """Reward of anything else."""


def build(c: Config) -> Reward:
    """Make the reward; raises `RewardError` for a form without an answer."""
    from grpo_jax.rewards.reward import Reward, RewardError

    if c.form.count(ANSWER) != 1:
        raise RewardError(f"rewards: exact: form {c.form!r} has {c.form.count(ANSWER)} times {ANSWER}; write it once")
    return Reward(
        "exact", c.weight, host=partial(_judge, c=c), array=partial(_match, c=c), columns=partial(_columns, c=c)
    )


def _written(answer: str, encoding: Encoding, c: Config) -> list[int]:
    return encoding.encode(c.form.replace(ANSWER, answer))


def _before(encoding: Encoding, c: Config) -> list[int]:
    """The tokens that may stand before the answer; raises `RewardError` for one that is none, or several."""
    from grpo_jax.rewards.reward import RewardError

    tokens = [encoding.encode(text) for text in c.after]
    for text, ids in zip(c.after, tokens, strict=True):
        if len(ids) != 1:
            raise RewardError(f"rewards: exact: after {text!r} is {len(ids)} tokens; give texts that are one each")
    return [ids[0] for ids in tokens]


def _judge(batch: Batch, workers: Workers, *, c: Config) -> Part:
    from grpo_jax.rewards.reward import Part, RewardError, counted

    if batch.completion_ids is None or batch.encoding is None:
        raise RewardError("rewards: exact compares tokens, and here is text only; use accuracy")
    answers = [str(problem.answer) for problem in batch.problems]
    written = {answer: _written(answer, batch.encoding, c) for answer in set(answers)}
    before, values = _before(batch.encoding, c), []
    for answer, ids in zip(answers, batch.completion_ids, strict=True):
        wanted = written[answer]
        said = list(ids[:-1] if len(ids) and ids[-1] in batch.encoding.ends else ids)
        start = len(said) - len(wanted)
        fits = start == 0 or (start > 0 and said[start - 1] in before)
        values.append(c.correct if fits and said[start:] == wanted else c.wrong)
    return Part(values, counted())


def _columns(problems: Sequence[Problem], encoding: Encoding, *, c: Config) -> dict[str, np.ndarray]:
    """`tokens` [P, Tc] i32, -1 after their end; `length` [P] i32; `ends` [P, E] and `before` [P, A] i32, equal rows."""
    import numpy as np

    rows = [_written(str(problem.answer), encoding, c) for problem in problems]
    tokens = np.full((len(rows), encoding.longest), -1, np.int32)  # [P, Tc]
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids[: encoding.longest]
    length = np.array([len(ids) for ids in rows], np.int32)  # [P]; above Tc: no completion is so long
    ends, before = (np.tile(np.int32(ids), (len(rows), 1)) for ids in (encoding.ends, _before(encoding, c)))
    return {"tokens": tokens, "length": length, "ends": ends, "before": before}


def _match(rollout: Rollout, columns: dict[str, Array], *, c: Config) -> Array:
    """-> [P, G] f32; the mask of a completion is a prefix of its row."""
    import jax.numpy as jnp

    P = rollout.prompts.index.shape[0]
    said, mask = (x.reshape(P, -1, x.shape[-1]) for x in (rollout.completions.tokens, rollout.completion_mask))
    time = jnp.arange(said.shape[-1])
    count = mask.sum(-1)  # [P, G]
    ended = _one_of(_token(said, count - 1), columns["ends"])
    wanted = columns["length"][:, None]  # [P, 1]
    start = count - ended - wanted  # [P, G], of the answer in the completion
    fits = (start == 0) | ((start > 0) & _one_of(_token(said, start - 1), columns["before"]))
    place = jnp.clip(start[..., None] + time, 0, said.shape[-1] - 1)  # [P, G, Tc]
    same = jnp.take_along_axis(said, place, -1) == columns["tokens"][:, None]
    right = fits & (same | (time >= wanted[..., None])).all(-1)
    return jnp.where(right, jnp.float32(c.correct), jnp.float32(c.wrong))


def _token(said: Array, place: Array) -> Array:
    """The token at a place of each completion: said [P, G, Tc], place [P, G] -> [P, G]; -1 off its ends."""
    import jax.numpy as jnp

    return jnp.where(jnp.arange(said.shape[-1]) == place[..., None], said, -1).max(-1)


def _one_of(token: Array, ids: Array) -> Array:
    """Whether a token is one of its problem's: [P, G], [P, E] -> [P, G] bool."""
    return (token[..., None] == ids[:, None]).any(-1)
