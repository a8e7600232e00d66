"""Where the steps of a completion end, on its tokens: nothing is decoded, and host and devices agree."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


@functools.lru_cache(maxsize=8)
def _newlines(tokenizer: Any, size: int) -> np.ndarray:
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))], skip_special_tokens=True)
    has = np.array(["\n" in text for text in texts], bool)
    has = np.pad(has, (0, size - len(has)))
    has.flags.writeable = False
    return has


def newline_tokens(tokenizer: Any, vocab_size: int) -> np.ndarray:
    """Which ids stand for text with a newline in it: [V] bool; a step may end inside a merged token such as ".\\n"."""
    return _newlines(tokenizer, vocab_size)


def step_ends(tokens: Any, mask: Any, newline: Any, ends: tuple[int, ...]) -> Any:
    """The last token of each step of each completion: tokens, mask [B, Tc], newline [V] bool -> [B, Tc] bool.

    A step is a line with something in it. It ends with the last of the newlines behind it; the last one ends with the
    completion, its end of sequence, or where it was cut. Newlines before the first step belong to it, those before
    the end of sequence to the last. Works on NumPy and on JAX arrays alike; `ends` are the end-of-sequence ids.
    """
    if isinstance(tokens, np.ndarray):
        xp: Any = np
    else:
        import jax.numpy as xp
    breaks = mask & xp.asarray(newline)[tokens]
    over = (tokens[..., None] == xp.asarray(ends, tokens.dtype)).any(-1)
    content = mask & ~breaks & ~over
    nothing = xp.zeros_like(mask[:, :1])
    follows, goes_on = (xp.concatenate([x[:, 1:], nothing], axis=1) for x in (content, mask))
    begun = xp.cumsum(content, axis=1) > 0
    return (breaks & begun & follows) | (mask & ~goes_on)
