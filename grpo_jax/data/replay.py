"""Fresh labels with some of the old ones, for the reward model of iterative GRPO.

"We ... continually train the old reward model using a replay mechanism that incorporates 10 % of historical data"
(arXiv:2402.03300, section 4.1.4). 10 % of what is not said; here it is the share of old ones in the mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def replayed(fresh: int, share: float) -> int:
    """How many old ones make up `share` of a mixture with so many fresh ones: `fresh * share / (1 - share)`, rounded.

    Raises ValueError for a share off [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"replay: a share of {share} old ones leaves no room for fresh ones; choose from 0 to below 1")
    return round(fresh * share / (1 - share))


def with_replay(fresh: Sequence[T], old: Sequence[T], *, share: float = 0.1, seed: int, iteration: int) -> list[T]:
    """The fresh ones and, behind them, a share of old ones: different ones, drawn by (seed, iteration) alone.

    Where there are fewer old ones than the share asks for, all of them. Raises ValueError as `replayed`.
    """
    count = min(replayed(len(fresh), share), len(old))
    stream = np.random.Philox(key=np.array([seed, iteration], np.uint64))
    order = np.argsort(stream.random_raw(len(old)), kind="stable") if old else []
    return [*fresh, *(old[i] for i in sorted(order[:count]))]
