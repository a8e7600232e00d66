"""Where the steps of a completion end, told from which of its tokens end steps; host and devices agree.

What a step is, lines or runs of tokens, is for others to say: the labels of reward models (`data/steps.py`), rewards by
the step (`rewards/splitting.py`). That the rest is the same for both is what this module is for.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def ends_of_steps(stops: Any, mask: Any) -> Any:
    """The last token of each step: stops, mask [..., T] bool -> [..., T] bool.

    `stops` are delimiters and ends of sequence, `mask` the completion's tokens. A step has something in it; it ends
    with the last of the stops behind it, and the last one with the completion, be it at its end of sequence or where it
    was cut. Stops before the first step belong to it, those before the end of sequence to the last. Works on NumPy and
    on JAX arrays alike.
    """
    if isinstance(stops, np.ndarray):
        xp: Any = np
    else:
        import jax.numpy as xp
    content = mask & ~stops
    nothing = xp.zeros_like(mask[..., :1])
    follows, goes_on = (xp.concatenate([x[..., 1:], nothing], axis=-1) for x in (content, mask))
    begun = xp.cumsum(content, axis=-1) > 0
    return (mask & stops & begun & follows) | (mask & ~goes_on)
