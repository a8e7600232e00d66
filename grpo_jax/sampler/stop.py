"""Stop strings, decided on text: a string may span tokens, and a token may hold more than the string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from grpo_jax.types import Rollout


def cut_at_stop(
    rollout: Rollout, decode: Callable[[Sequence[int]], str], stop: Sequence[str], *, pad_id: int
) -> Rollout:
    """End each completion with the first token after which its text contains one of the strings.

    rollout with host arrays -> the same with later tokens masked, padded and their log-probabilities 0; a cut row is
    finished. The token that completes the string stays.
    """
    if not stop:
        return rollout
    tokens, mask, logprobs, finished, segments = (
        np.array(x)
        for x in (
            rollout.completions.tokens,
            rollout.completion_mask,
            rollout.logprobs,
            rollout.finished,
            rollout.completions.segments,
        )
    )
    for b, row in enumerate(tokens):
        length = int((segments[b] > 0).sum())  # with what a tool wrote, which the text contains too
        kept = stop_length(row[:length].tolist(), decode, stop)
        if kept is not None:
            tokens[b, kept:], mask[b, kept:], logprobs[b, kept:], segments[b, kept:] = pad_id, False, 0.0, 0
            finished[b] = True
    completions = rollout.completions.replace(tokens=tokens, segments=segments)
    return rollout.replace(completions=completions, completion_mask=mask, logprobs=logprobs, finished=finished)


def stop_length(tokens: Sequence[int], decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> int | None:
    """The number of leading tokens up to and with the one that completes a stop string; None if none does."""

    def stopped(count: int) -> bool:
        text = decode(tokens[:count])
        return any(string in text for string in stop)

    if not stopped(len(tokens)):
        return None
    low, high = 0, len(tokens)  # the text of a longer prefix contains that of a shorter one, so bisect
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if stopped(middle) else (middle, high)
    return high
