r"""Are two formulas one function? Compared by value at fixed points, to 40 digits and with bounded work.

Numbers without letters are compared as exact fractions where they are rational. Else both trees are evaluated at points
that are the same in every run: positive, of either sign, and whole; over the reals first, where a root or logarithm of
a negative number is undefined and the point is passed over, then, if a formula has i in it or no real value, over the
complex numbers with principal values. Formulas that agree at all points where both are defined are one; one point
where they differ tells them apart. A point at which a sum loses a part, as 50! + 1 does its 1, shows no equality.
Values above 2^20000 are refused before they are computed.
"""

from __future__ import annotations

import zlib
from fractions import Fraction
from functools import cache

from grpo_jax.rewards.expression import Tree, has_constant, letters
from grpo_jax.rewards.rationals import MAX_FACTORIAL, MAX_MAGNITUDE, rational

DIGITS = 60  # carried; equal means equal to DIGITS - 20
POINTS = 12
MIN_POINTS = 3  # that both formulas must be defined at
LOST = 133  # of the parts of a sum, as a power of two: 40 digits
MAX_ANGLE = 100  # of an argument of sin, as a power of two


class TooLargeError(Exception):
    """A value above the bounds of this module."""


class UndefinedError(Exception):
    """A point at which a formula has no value."""


def same_value(a: Tree, b: Tree) -> bool | None:
    """Whether two formulas are one function of their letters; None: they have too few values in common to say.

    Raises:
        TooLargeError: a value is above the bounds of this module, or the digits carried cannot tell them apart.
    """
    exact = rational(a), rational(b)
    if None not in exact:
        return exact[0] == exact[1]
    accurate = not (letters(a) | letters(b)) and _is_not_zero(a) and _is_not_zero(b)
    verdict = _compared(a, b, _same_to_scale if accurate else _same)
    if verdict is None and not letters(a) | letters(b) and (value(a) is None) != (value(b) is None):
        return False  # 1/0 has no value
    return verdict


def same_ratio(a: Tree, b: Tree, *, positive: bool = False) -> bool | None:
    """Whether one formula is a constant times the other (a positive one): whether a = 0 and b = 0 say the same."""
    ratios: list = []

    def constant(x, y) -> bool:
        zero = [abs(v) < _context().mpf(10) ** (20 - DIGITS) for v in (x, y)]
        if any(zero):
            return all(zero)
        ratios.append(x / y)
        return _same(ratios[0], ratios[-1]) and (not positive or ratios[-1].real > 0)

    agreed = _compared(a, b, constant)
    return agreed if ratios or not agreed else None


def value(tree: Tree):
    """Evaluate a formula without letters to 40 digits; None: it has no value or too large a one."""
    if letters(tree):
        return None
    for evaluate in (_Real({}), _Complex({})):
        try:
            return evaluate(tree)
        except (UndefinedError, ZeroDivisionError, ValueError):
            continue
        except TooLargeError:
            return None
    return None


def real_fraction(tree: Tree) -> Fraction | None:
    """Evaluate a formula without letters to a fraction within 1e-40 of its real value."""
    number = value(tree)
    if number is None or abs(number.imag) > _context().mpf(10) ** (20 - DIGITS) or abs(number.real) > 10**30:
        return None
    size = _context().mag(number) if number and _is_not_zero(tree) else 0
    scale = 10 ** (40 + max(0, -size) * 3 // 10)  # 40 figures of a small value, too
    return Fraction(int(_context().nint(number.real * scale)), scale)


def _compared(a: Tree, b: Tree, agree) -> bool | None:
    names = sorted(letters(a) | letters(b))
    complex_only = has_constant(a, "i") or has_constant(b, "i")
    for kind in (_Complex,) if complex_only else (_Real, _Complex):
        points = [_point(names, k) for k in range(POINTS if names else 1)]
        defined = lost = 0
        for point in points:
            first, second = kind(point), kind(point)
            try:
                x, y = first(a), second(b)
            except (UndefinedError, ZeroDivisionError, ValueError):
                continue
            if not agree(x, y):
                return False
            defined += 1
            lost += first.lossy or second.lossy
        needed = MIN_POINTS if names else 1
        if defined - lost >= needed:
            return True
        if defined >= needed:
            raise TooLargeError
    return None


def _same(x, y) -> bool:
    return abs(x - y) <= _context().mpf(10) ** (20 - DIGITS) * max(1, abs(x), abs(y))


def _same_to_scale(x, y) -> bool:
    return abs(x - y) <= _context().mpf(10) ** (20 - DIGITS) * max(abs(x), abs(y))


def _is_not_zero(tree: Tree) -> bool:
    """Whether a small value is no zero with an error of rounding, as that of cos(pi/2) is."""
    kind, parts = (tree[1], tree[2:]) if tree[0] == "call" else (tree[0], tree[1:])
    if rational(tree) is not None or kind in ("constant", "exp"):
        return True
    if kind in ("product", "quotient"):
        return all(map(_is_not_zero, parts))
    return kind in ("power", "root") and _is_not_zero(parts[0])


def _point(names: list[str], k: int) -> dict:
    """Give every letter a value: 5 points above zero, 3 of either sign, 4 of different whole numbers above zero."""
    context = _context()
    if k >= 8:
        return {name: context.mpf(2 + (i * 3 + (k - 8) * (i + 2)) % 11 + (k % 2)) for i, name in enumerate(names)}
    values = {}
    for name in names:
        noise = context.mpf(zlib.crc32(f"{name} {k}".encode())) / 2**32
        values[name] = (noise * 2 + context.mpf(k + 1) / 7) * (1 if k < 5 or noise < 0.5 else -1)
    return values


@cache
def _context():
    import mpmath

    context = mpmath.MPContext()
    context.dps = DIGITS
    return context


class _Real:
    """Evaluates trees over the real numbers at one point."""

    def __init__(self, point: dict):
        self.point = point
        self.c = _context()
        self.lossy = False  # whether a sum has lost a part, or all its digits

    def __call__(self, tree: Tree):
        result = getattr(self, tree[0])(*tree[1:])
        if self.c.isnan(result) or self.c.isinf(result):
            raise UndefinedError
        if result and self.c.mag(result) > MAX_MAGNITUDE:
            raise TooLargeError
        return result

    def number(self, value: Fraction):
        return self.c.mpf(value.numerator) / value.denominator

    def letter(self, name: str):
        return self.point[name]

    def constant(self, name: str):
        if name == "i":
            raise UndefinedError
        return +getattr(self.c, name)

    def sum(self, *parts: Tree):
        values = list(map(self, parts))
        total = self.c.fsum(values)
        sizes = [self.c.mag(value) if value else None for value in values]
        self.lossy = self.lossy or self._loses(parts, sizes, self.c.mag(total) if total else None)
        return total

    def _loses(self, parts: tuple[Tree, ...], sizes: list[int | None], total: int | None) -> bool:
        """Whether digits of a sum that tell it from others are lost; sizes are powers of two, None that of 0.

        Of x^1000 + 1 they are not: other points show both parts. A part without letters stays as large or small.
        """
        known = [size for size in sizes if size is not None]
        if not known:
            return False
        low, high = min(known), max(known)
        if high > LOST // 2 and (total is None or total < high - LOST):
            return True
        if high - low <= LOST:
            return False
        for part, size in zip(parts, sizes, strict=True):
            if size is None or letters(part):
                continue
            if size > max(LOST // 2, low + LOST) or (size < min(-(LOST // 2), high - LOST) and _is_not_zero(part)):
                return True
        return False

    def product(self, *parts: Tree):
        return self.c.fprod(map(self, parts))

    def quotient(self, top: Tree, bottom: Tree):
        x, y = self(top), self(bottom)
        if abs(y) < self.c.mpf(10) ** (10 - DIGITS):
            raise UndefinedError
        return x / y

    def power(self, base: Tree, exponent: Tree):
        x, y, exact = self(base), self(exponent), rational(exponent)
        if not x:
            if y.real <= 0:
                raise UndefinedError
            return x
        if abs(y) * abs(self.c.log(abs(x), 2)) > MAX_MAGNITUDE:
            raise TooLargeError
        if exact is not None and exact.denominator == 1:
            return x ** int(exact)
        return self.fractional(x, y, exact)

    def fractional(self, x, y, exact: Fraction | None):
        if x > 0:
            return x**y
        if exact is not None and exact.denominator % 2:
            return (-1) ** (exact.numerator % 2) * (-x) ** y
        if y == self.c.nint(y):
            return x ** int(y)
        raise UndefinedError

    def call(self, name: str, *arguments: Tree):
        if name.startswith("unknown "):
            # Any fixed function that nobody writes down.
            x, seed = self(arguments[0]), self.c.mpf(zlib.crc32(name.encode())) / 2**32
            return self.c.cos(x * (1 + seed)) + seed * x
        if name == "root":
            return self.root(*arguments)
        if name == "log" and len(arguments) == 1:
            return self.log(self(arguments[0]))
        return getattr(self, name)(*map(self, arguments))

    def root(self, radicand: Tree, index: Tree):
        return self.power(radicand, ("quotient", ("number", Fraction(1)), index))

    def log(self, x, base=None):
        """The natural logarithm if no base is given."""
        if not x > 0 or (base is not None and (not base > 0 or base == 1)):
            raise UndefinedError
        return self.c.log(x) if base is None else self.c.log(x) / self.c.log(base)

    ln = log

    def lg(self, x):
        return self.log(x, self.c.mpf(10))

    def exp(self, x):
        if abs(x) > MAX_MAGNITUDE * 0.69:
            raise TooLargeError
        return self.c.exp(x)

    def abs(self, x):
        return abs(x)

    def floor(self, x):
        return self.c.floor(x)

    def ceil(self, x):
        return self.c.ceil(x)

    def degrees(self, x):
        return x * self.c.pi / 180

    def factorial(self, x):
        if abs(x) > MAX_FACTORIAL:
            raise TooLargeError
        if x < 0:
            raise UndefinedError
        return self.c.factorial(x)

    def binomial(self, n, k):
        if max(abs(n), abs(k)) > MAX_FACTORIAL:
            raise TooLargeError
        if n < 0 or k < 0:
            raise UndefinedError
        return self.c.binomial(n, k)


def _bounded(name: str, *, domain=None):
    """Make the method that applies one of mpmath's functions to arguments of bounded size."""

    def method(self, x):
        if x and self.c.mag(x) > MAX_ANGLE:
            raise TooLargeError
        if domain is not None and isinstance(self, _Real) and not isinstance(self, _Complex) and not domain(x):
            raise UndefinedError
        return getattr(self.c, name)(x)

    return method


for _name in ("sin", "cos", "tan", "cot", "sec", "csc"):
    setattr(_Real, _name, _bounded(_name))
for _name in ("sinh", "cosh", "tanh"):
    setattr(_Real, _name, lambda self, x, name=_name: self.exp(x) and getattr(self.c, name)(x))
for _name in ("sin", "cos"):
    setattr(_Real, "arc" + _name, _bounded("a" + _name, domain=lambda x: abs(x) <= 1))
_Real.arctan = _bounded("atan")


class _Complex(_Real):
    """Evaluates trees over the complex numbers, with principal values."""

    def constant(self, name: str):
        return self.c.mpc(0, 1) if name == "i" else super().constant(name)

    def fractional(self, x, y, exact):
        return self.c.mpc(x) ** y

    def log(self, x, base=None):
        if not x or base in (0, 1):
            raise UndefinedError
        return self.c.log(x) if base is None else self.c.log(x) / self.c.log(base)

    ln = log

    def floor(self, x):
        if x.imag:
            raise UndefinedError
        return self.c.floor(x)

    def ceil(self, x):
        return -self.floor(-x)

    def factorial(self, x):
        if x.imag:
            raise UndefinedError
        return super().factorial(x.real)

    def binomial(self, n, k):
        if n.imag or k.imag:
            raise UndefinedError
        return super().binomial(n.real, k.real)
