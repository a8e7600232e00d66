"""The exact value of a formula of whole numbers, with bounded work: no number in between has more than 20000 bits."""

from __future__ import annotations

import math
from fractions import Fraction

from grpo_jax.rewards.expression import Tree

MAX_MAGNITUDE = 20_000  # of a value, as a power of two
MAX_FACTORIAL = 1000


def rational(tree: Tree) -> Fraction | None:
    """Evaluate a tree of +, -, *, /, whole powers, factorials and binomials exactly; None: it is more, or too large."""
    kind = tree[0]
    if kind == "number":
        return tree[1]
    if kind == "call" and tree[1] in _EXACT:
        kind, tree = tree[1], tree[1:]
    elif kind not in ("sum", "product", "quotient", "power"):
        return None
    parts = []
    for part in tree[1:]:
        parts.append(rational(part))
        if parts[-1] is None:
            return None
    return _combined(kind, parts)


def _combined(kind: str, parts: list[Fraction]) -> Fraction | None:
    if kind in _EXACT:
        return _EXACT[kind](*parts)
    value = parts[0]
    for part in parts[1:]:
        value = _pair(kind, value, part)
        if value is None or _bits(value) > MAX_MAGNITUDE:
            return None  # before the next part makes it larger
    return value


def _pair(kind: str, a: Fraction, b: Fraction) -> Fraction | None:
    if kind == "sum":
        return a + b
    if kind == "product":
        return a * b
    if kind == "quotient":
        return a / b if b else None
    if b.denominator != 1 or abs(b) > MAX_MAGNITUDE or not (a or b > 0):
        return None
    size = math.log2(abs(a.numerator) or 1) + math.log2(a.denominator)
    return a ** int(b) if abs(int(b)) * size <= MAX_MAGNITUDE else None


def _factorial(n: Fraction) -> Fraction | None:
    return Fraction(math.factorial(int(n))) if n.denominator == 1 and 0 <= n <= MAX_FACTORIAL else None


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if n.denominator != 1 or k.denominator != 1 or min(n, k) < 0 or max(n, k) > MAX_FACTORIAL:
        return None
    return Fraction(math.comb(int(n), int(k)))


_EXACT = {"factorial": _factorial, "binomial": _binomial}


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()
