"""A keyed permutation of range(n) that is computed one index at a time, for n of any size."""

from __future__ import annotations

import hashlib
import math

ROUNDS = 6


def permute(index: int, size: int, key: str) -> int:
    """Return where the permutation of range(size) chosen by `key` sends `index`.

    A Feistel network on Z_a x Z_b with a*b just above `size`, walked along its cycle until it is back in
    range: a bijection by construction, so that unequal indices never meet. Raises `IndexError` off the range.
    """
    if not 0 <= index < size:
        raise IndexError(f"{index} is not in range({size})")
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    secret = key.encode()
    index = _scramble(index, a, b, secret)
    while index >= size:
        index = _scramble(index, a, b, secret)
    return index


def unit_interval(key: str) -> float:
    """Return a number in [0, 1) that depends on `key` only."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest()) / 2**56


def choice(options, key: str):
    """Return one of the options, chosen by `key` only."""
    return options[int(unit_interval(key) * len(options))]


def _scramble(index: int, a: int, b: int, secret: bytes) -> int:
    left, right = divmod(index, b)
    for number in range(0, ROUNDS, 2):
        left = (left + _noise(number, right, secret)) % a
        right = (right + _noise(number + 1, left, secret)) % b
    return left * b + right


def _noise(number: int, value: int, secret: bytes) -> int:
    text = b"%d/%d/%b" % (number, value, secret)
    return int.from_bytes(hashlib.blake2b(text, digest_size=32).digest())
