"""Scored examples in rows of fixed length, packed as demonstrations are (`packing.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grpo_jax.data.labelled import Scored
from grpo_jax.types import Sequences


class ScoredRows(NamedTuple):
    """Rows as NumPy arrays; the arrays are those of `training.scoring.ScoreBatch`."""

    sequences: Sequences  # [R, T]
    mask: np.ndarray  # [R, T] bool
    targets: np.ndarray  # [R, T] f32
    partner: np.ndarray  # [R, T] i32


def scored_rows(examples: Sequence[Scored], rows: Sequence[Sequence[int]], *, max_length: int, pad: int) -> ScoredRows:
    """The examples `rows[r]` in row r, each solution a segment of its own, with positions from 0.

    A pair's two solutions are two segments of one row; its loss stands at the end of the rejected one, whose `partner`
    is the end of the chosen one.
    """
    shape = (len(rows), max_length)
    tokens, positions, segments = (np.full(shape, value, np.int32) for value in (pad, 0, 0))  # [R, T]
    mask, targets, partner = np.zeros(shape, bool), np.zeros(shape, np.float32), np.zeros(shape, np.int32)  # [R, T]
    for r, row in enumerate(rows):
        start, segment = 0, 0
        for number in row:
            example = examples[number]
            size = len(example.tokens)
            here = slice(start, start + size)
            tokens[r, here], mask[r, here], targets[r, here] = example.tokens, example.mask, example.targets
            borders = [0, example.second, size] if example.second else [0, size]
            for begin, end in itertools.pairwise(borders):
                segment += 1
                segments[r, start + begin : start + end] = segment
                positions[r, start + begin : start + end] = np.arange(end - begin)
            if example.second:
                mask[r, start + example.second - 1] = False
                partner[r, start + size - 1] = start + example.second - 1
            start += size
    return ScoredRows(Sequences(tokens, positions, segments), mask, targets, partner)
