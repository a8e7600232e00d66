r"""Where the steps of a completion end, as tokens see it on the devices and as text reads on the host.

A step ends at the last token of a run of delimiters, and the last one at the completion's last token, whatever that is:
the end of sequence, so that an answer line without a newline is a step too, or where the length limit cut. Delimiters
with nothing before them belong to the first step, those with nothing behind them but the end of sequence to the last.
The paper does not say what a step is; a line is what its authors' data and Math-Shepherd's have (arXiv:2312.08935,
section 3.4).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from grpo_jax.config import config

if TYPE_CHECKING:
    from jax import Array

    from grpo_jax.rewards.reward import Encoding

SENTENCE = r"(?<=[.!?])\s+(?=[A-Z\\$])|(?<=[。！？])|\n+"
"""Behind a full stop and before a capital letter, TeX or a formula, as DeepSeekMath's loader cuts MATH solutions."""


@config
class Splitting:
    """What a step is."""

    split: Literal["newline", "sentence", "regex", "tokens"] = "newline"
    """Lines, sentences, pieces behind each match of `pattern`, or runs of tokens up to one of `delimiters` or
    `delimiter_ids`; only tokens can be told on the devices (`rl.fused_steps`)."""
    pattern: str | None = None
    """Of split regex: what ends a step, itself included."""
    delimiters: tuple[str, ...] = ("\n",)
    """Of split tokens: texts that end a step, each one token."""
    delimiter_ids: tuple[int, ...] = ()
    """Of split tokens: more such tokens, by id."""


class Step(NamedTuple):
    """A step of a completion: what it says, without what ends it, and the place of its last token."""

    content: str | tuple[int, ...]
    end: int


def check_splitting(c: Splitting, name: str) -> None:
    """Raise `RewardError` for a pattern that is missing, cannot be read, or is not asked for."""
    from grpo_jax.rewards.reward import RewardError

    if (c.split == "regex") != (c.pattern is not None):
        raise RewardError(f"rewards: {name}: split is {c.split} and pattern is {c.pattern!r}; give regex its pattern")
    try:
        re.compile(c.pattern or "")
    except re.error as error:
        raise RewardError(f"rewards: {name}: pattern {c.pattern!r} is no regular expression: {error}") from error


def delimiter_ids(c: Splitting, encoding: Encoding, name: str) -> list[int]:
    """The ids of the delimiters; raises `RewardError` for one that is not one token."""
    from grpo_jax.rewards.reward import RewardError

    tokens = [encoding.encode(text) for text in c.delimiters]
    for text, ids in zip(c.delimiters, tokens, strict=True):
        if len(ids) != 1:
            raise RewardError(
                f"rewards: {name}: delimiter {text!r} is {len(ids)} tokens; give texts that are one each, or split "
                "newline"
            )
    return sorted({ids[0] for ids in tokens} | set(c.delimiter_ids))


def text_steps(text: str, c: Splitting) -> list[tuple[str, int]]:
    """The steps of a text and where each ends, in characters: blank ones belong to the step before, the last to all."""
    pattern = {"newline": r"\n+", "sentence": SENTENCE, "regex": c.pattern}[c.split]
    borders = [match.end() for match in re.finditer(pattern, text)]
    pieces, start = [], 0
    for end in [*borders, len(text)]:
        if text[start:end].strip() and (end == len(text) or text[end:].strip()):
            pieces.append((text[start:end].strip(), end))
            start = end
    if text[start:].strip():
        pieces.append((text[start:].strip(), len(text)))
    return pieces


def token_steps(ids: Sequence[int], delimiters: Sequence[int], ends: Sequence[int]) -> list[Step]:
    """The steps of tokens: `step_ends` for one completion on the host."""
    import numpy as np

    from grpo_jax.steps import ends_of_steps

    row = np.array(ids, np.int64)
    stop = np.isin(row, [*delimiters, *ends])
    steps, start = [], 0
    for end in np.flatnonzero(ends_of_steps(stop, np.ones(len(row), bool))).tolist():
        content = row[start : end + 1][~stop[start : end + 1]]
        steps.append(Step(tuple(content.tolist()), end))
        start = end + 1
    return steps


def steps_of(
    text: str, ids: Sequence[int], c: Splitting, encoding: Encoding, delimiters: Sequence[int] = ()
) -> list[Step]:
    """The steps of a completion, whose tokens `ids` read as `text`; the last one ends at the last token.

    The end of a text's step may be within a token, which it then takes whole; steps that end in one token are one.
    """
    if c.split == "tokens":
        return token_steps(ids, delimiters, encoding.ends)
    steps: list[Step] = []
    pieces = text_steps(text, c) or [("", len(text))]
    for number, (content, end) in enumerate(pieces):
        last = number == len(pieces) - 1
        place = len(ids) - 1 if last else _token_at(ids, end, encoding.decode, steps[-1].end if steps else -1)
        if steps and place <= steps[-1].end:
            steps[-1] = Step(f"{steps[-1].content}\n{content}", place)
        else:
            steps.append(Step(content, place))
    return steps


def _token_at(ids: Sequence[int], end: int, decode: Callable[[Sequence[int]], str], after: int) -> int:
    """The first token with which the text reaches `end`, by halving: a text grows with its tokens."""
    low, high = after + 1, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if len(decode(ids[: middle + 1])) >= end:
            high = middle
        else:
            low = middle + 1
    return low


def step_ends(tokens: Array, mask: Array, delimiters: Array, ends: Array) -> tuple[Array, Array]:
    """Where steps end, and which tokens are delimiters or ends of sequence: tokens, mask [..., Tc] -> two bool.

    delimiters, ends [..., N] i32 with the leading axes of `tokens`, or broadcast against them.
    """
    import jax.numpy as jnp

    from grpo_jax.steps import ends_of_steps

    stops = jnp.concatenate([delimiters, ends], -1)
    stop = mask & (tokens[..., None] == stops[..., None, :]).any(-1)
    return ends_of_steps(stop, mask), stop
