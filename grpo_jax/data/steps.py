"""Where the steps of a completion end, on its tokens: nothing is decoded, and host and devices agree."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from grpo_jax.steps import ends_of_steps


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

    A step is a line with something in it; else as `grpo_jax.steps.ends_of_steps` says. `ends` are the end-of-sequence
    ids. Works on NumPy and on JAX arrays alike.
    """
    if isinstance(tokens, np.ndarray):
        xp: Any = np
    else:
        import jax.numpy as xp
    over = (tokens[..., None] == xp.asarray(ends, tokens.dtype)).any(-1)
    return ends_of_steps(xp.asarray(newline)[tokens] | over, mask)
