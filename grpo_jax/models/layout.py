"""How a stacked parameter lies in the tensors of a file: which part of a file is which slice, and back.

A tensor's dimensions are written in our letters, merged ones joined: a Hugging Face query projection is `"nh
d"`, ours is `"dnh"`. Pure NumPy, no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Stored(NamedTuple):
    """Where a parameter is stored: the tensor's name, with `{layer}` if there is one a layer, and layouts."""

    name: str
    layout: str  # dimensions of the tensor, "nh d": rows are heads times head width
    ours: str  # dimensions of the parameter (of one layer), "dnh"

    @property
    def stacked(self) -> bool:
        """Whether the parameter is made of one tensor a layer."""
        return "{layer}" in self.name


def stored_shape(stored: Stored, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the tensor that holds a parameter (of one layer) of this shape."""
    sizes = dict(zip(stored.ours, shape, strict=True))
    return tuple(math.prod(sizes[letter] for letter in group) for group in stored.layout.split())


def stored_slices(stored: Stored, shape: Sequence[int], wanted: Sequence[slice]) -> tuple[slice, ...]:
    """The part of the tensor that holds the slice `wanted` of a parameter (of one layer) of this shape.

    Raises `ValueError` if a merged dimension is cut anywhere but in its first letter: heads can be split, one
    head cannot.
    """
    sizes = dict(zip(stored.ours, shape, strict=True))
    ranges = {l: w.indices(sizes[l])[:2] for l, w in zip(stored.ours, wanted, strict=True)}

    def part(group: str) -> slice:
        first, rest = group[0], group[1:]
        if any(ranges[l] != (0, sizes[l]) for l in rest):
            raise ValueError(f"{stored.name}: dimension {group!r} can be split along {first!r}, not {rest!r}")
        inner = math.prod(sizes[l] for l in rest)
        return slice(ranges[first][0] * inner, ranges[first][1] * inner)

    return tuple(part(group) for group in stored.layout.split())


def from_stored(stored: Stored, tensor: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A tensor, or a part of one, as the parameter (of one layer) of this shape."""
    letters = stored.layout.replace(" ", "")
    sizes = dict(zip(stored.ours, shape, strict=True))
    return tensor.reshape([sizes[l] for l in letters]).transpose([letters.index(l) for l in stored.ours])


def to_stored(stored: Stored, parameter: np.ndarray) -> np.ndarray:
    """The inverse of `from_stored`: a parameter (of one layer) as the contiguous tensor that a file holds."""
    letters = stored.layout.replace(" ", "")
    split = parameter.transpose([stored.ours.index(l) for l in letters])
    return np.ascontiguousarray(split.reshape(stored_shape(stored, parameter.shape)))
