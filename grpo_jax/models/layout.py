"""How a stacked parameter lies in the tensors of files: which part of which tensor is which slice, and back.

A tensor's dimensions are written in our letters, merged ones joined: a Hugging Face query projection is `"nh
d"`, ours is `"dnh"`. Pure functions of shapes and arrays (NumPy's or JAX's), no files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

NUMBERED = ("{layer}", "{expert}")  # in a tensor's name; the parameter has a leading dimension for each


class Stored(NamedTuple):
    """Where a parameter is stored: the name of its tensor, or of each of them, and the layouts there and here.

    With `{layer}` in the name there is one tensor a layer and the parameter is [L, ...]; with `{layer}` and
    `{expert}` there is one tensor an expert and the parameter is [L, E, ...].
    """

    name: str
    layout: str  # dimensions of the tensor, "nh d": rows are heads times head width
    ours: str  # dimensions of the parameter but for the numbered ones, "dnh"

    @property
    def stacked(self) -> int:
        """The number of leading dimensions along which tensors are stacked: 0, 1 or 2."""
        return sum(number in self.name for number in NUMBERED)

    @property
    def order(self) -> tuple[int, ...]:
        """The parameter's dimensions in the order of the file, stacked ones first."""
        letters = self.layout.replace(" ", "")
        return (*range(self.stacked), *(self.stacked + self.ours.index(l) for l in letters))

    def tensor(self, place: Sequence[int] = ()) -> str:
        """The name of the tensor for this layer, or this layer and expert."""
        name = self.name
        for number, index in zip(NUMBERED, place, strict=False):
            name = name.replace(number, str(index))
        return name


def stored_tensors(stored: Stored, shape: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor that holds a part of a parameter of this shape."""
    own = stored_shape(stored, shape[stored.stacked :])
    for place in itertools.product(*map(range, shape[: stored.stacked])):
        yield stored.tensor(place), own


def stored_shape(stored: Stored, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the tensor that holds a parameter (of one layer, of one expert) of this shape."""
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


def to_stored(stored: Stored, parameter: Any) -> Any:
    """A parameter (of one layer, of one expert) as the tensor that a file holds."""
    letters = stored.layout.replace(" ", "")
    split = parameter.transpose([stored.ours.index(l) for l in letters])
    return split.reshape(stored_shape(stored, parameter.shape))


def boxes(stored: Stored, shape: Sequence[int], limit: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Cut a parameter of this shape into boxes of one size, of about `limit` numbers at most.

    Returns the box and where each one starts. Layers are parted first, then experts, then the rows of the
    file; one row is never cut. Where the size does not divide the shape the last boxes overlap those before.
    """
    box = list(shape)
    for dimension in stored.order[: stored.stacked + 1]:
        inner = math.prod(box) // box[dimension]
        pieces = -(-box[dimension] // max(limit // inner, 1))
        box[dimension] = -(-box[dimension] // pieces)
    ranges = [range(0, size, step) for size, step in zip(shape, box, strict=True)]
    last = [size - step for size, step in zip(shape, box, strict=True)]
    starts = [tuple(map(min, start, last)) for start in itertools.product(*ranges)]
    return tuple(box), starts
