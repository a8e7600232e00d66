"""Several examples in a row of fixed length, kept apart by segment ids; the plan is a pure function of (seed,
step).

The paper's SFT "randomly concatenates until reaching a maximum context length of 4K" (arXiv:2402.03300,
section 3.2); here, in addition, the examples of a row do not see one another.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from grpo_jax.data.demonstrations import Example
from grpo_jax.data.order import batch_indices, permutation
from grpo_jax.types import Sequences


class PackingError(ValueError):
    """An example that does not fit a row."""


def pack(lengths: Sequence[int] | np.ndarray, max_length: int) -> list[tuple[int, int]]:
    """Return the rows as ranges [start, stop) of examples: each goes in the row at hand, or opens the next.

    Raises `PackingError` if one is longer than `max_length`.
    """
    borders, used = [0], 0
    for i, length in enumerate(map(int, lengths)):
        if length > max_length:
            raise PackingError(f"example {i}: {length} tokens do not fit a row of {max_length}")
        if used + length > max_length and i > borders[-1]:
            borders.append(i)
            used = 0
        used += length
    borders.append(len(lengths))
    return [(start, stop) for start, stop in itertools.pairwise(borders) if stop > start]


class PackingPlan:
    """Which examples are in which row of which step: an endless row of epochs, each packed in its own
    shuffled order.

    Without `packing` a row holds one example. Nothing is drawn from a state: a plan made anew gives the same
    rows.
    """

    def __init__(self, lengths: Sequence[int], *, max_length: int, batch_size: int, seed: int, packing: bool = True):
        self.lengths = np.asarray(lengths, np.int64)  # [N]
        self.max_length, self.batch_size, self.seed, self.packing = max_length, batch_size, seed, packing
        self._starts = [0]  # the number of rows before each epoch, as far as it is known
        self._epoch = functools.lru_cache(maxsize=4)(self._pack_epoch)
        if not len(self.lengths):
            raise PackingError("no examples to pack: the source is empty, or every example was left out")
        if self.lengths.max() > max_length:
            longest = int(self.lengths.argmax())
            raise PackingError(f"example {longest}: {self.lengths[longest]} tokens do not fit a row of {max_length}")

    def rows(self, step: int) -> list[np.ndarray]:
        """Return the example numbers of each of the step's `batch_size` rows."""
        if not self.packing:
            return list(batch_indices(len(self.lengths), self.batch_size, seed=self.seed, step=step)[:, None])
        return [self._row(i) for i in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def fill(self, step: int) -> float:
        """Return the share of the step's tokens that are no padding."""
        used = sum(int(self.lengths[row].sum()) for row in self.rows(step))
        return used / (self.batch_size * self.max_length)

    def _row(self, number: int) -> np.ndarray:
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
        epoch = bisect_right(self._starts, number) - 1
        return self._epoch(epoch)[number - self._starts[epoch]]

    def _pack_epoch(self, epoch: int) -> list[np.ndarray]:
        order = permutation(len(self.lengths), self.seed, epoch)
        return [order[start:stop] for start, stop in pack(self.lengths[order], self.max_length)]


def packed_batch(examples: Sequence[Example], plan: PackingPlan, step: int, pad: int) -> tuple[Sequences, np.ndarray]:
    """Return the step's rows as NumPy arrays: sequences [R, T] and loss_mask [R, T] bool, T = `max_length`.

    The examples of a row have segments 1, 2, ..., and positions from 0 in each; padding has segment 0 and
    loss_mask False. The first token of a segment has nothing before it and is never learnt.
    """
    shape = (plan.batch_size, plan.max_length)
    tokens = np.full(shape, pad, np.int32)  # [R, T]
    positions = np.zeros(shape, np.int32)  # [R, T]
    segments = np.zeros(shape, np.int32)  # [R, T]
    loss_mask = np.zeros(shape, bool)  # [R, T]
    for r, row in enumerate(plan.rows(step)):
        start = 0
        for segment, number in enumerate(row, start=1):
            example = examples[number]
            stop = start + len(example.tokens)
            tokens[r, start:stop] = example.tokens
            positions[r, start:stop] = np.arange(stop - start)
            segments[r, start:stop] = segment
            loss_mask[r, start + 1 : stop] = example.loss_mask[1:]
            start = stop
    return Sequences(tokens, positions, segments), loss_mask
