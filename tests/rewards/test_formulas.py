"""The grammar of formulas, their values at fixed points, and sets of real numbers."""

import time
from fractions import Fraction

import pytest

from grpo_jax.rewards.expression import letters, read_expression
from grpo_jax.rewards.normal import normalise
from grpo_jax.rewards.numerals import read_numeral
from grpo_jax.rewards.probing import TooLargeError, real_fraction, same_ratio, same_value
from grpo_jax.rewards.rationals import rational
from grpo_jax.rewards.realsets import INFINITY, Piece, read_real_set

VALUES = [
    (r"2\frac{1}{3}", Fraction(7, 3)), ("1/2*3", Fraction(3, 2)), ("-2^2", -4), ("2^{-3}", Fraction(1, 8)),
    ("2(3+4)", 14),
    ("1,234.5", Fraction(2469, 2)), ("--2", 2), ("2^3^2", 512), (r"\frac{1}{2}/2", Fraction(1, 4)),
    ("50%", Fraction(1, 2)),
]  # fmt: skip
REFUSED = ["", "2 3", "x2", "mol", "1..2", "f(", "(1", "1)", "1,2", "x;y", "a=b", "import os", "x.y", "__x__",
           r"\int x", r"\sum", "9!!!!", "5 +", "^2", "_", "é", "1" * 81, "(" * 100 + "1" + ")" * 100]  # fmt: skip
LARGE = ["9^{9^{9}}", "9^{9^{9}}!", "(1000!)!", "(100!)^{100}", "1001!", r"\exp(10^6)", r"\binom{2000}{1000}",
         r"\sin(10^{99})", "x^{x^{99999}}"]  # fmt: skip
SETS = [
    ("(1,3]", (Piece(1, False, 3, True),)), ("1<x\\le 3", (Piece(1, False, 3, True),)),
    ("x>3", (Piece(3, False, INFINITY, False),)),
    ("x\\ne 0", (Piece(-INFINITY, False, 0, False), Piece(0, False, INFINITY, False))),
    ("[1,2]\\cup[2,3]", (Piece(1, True, 3, True),)),
    ("[1,2)\\cup\\{2\\}", (Piece(1, True, 2, True),)), ("(1,2)\\cap(3,4)", ()),
    ("x>1, x\\ne 2", (Piece(1, False, 2, False), Piece(2, False, INFINITY, False))),
    ("\\{x|x<1\\}\\cup\\{5\\}", (Piece(-INFINITY, False, 1, False), Piece(5, True, 5, True))), ("\\emptyset", ()),
   
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_rational_values(text, value):
    assert rational(read_expression(normalise(text))) == value


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_formula(text):
    assert read_expression(text) is None


@pytest.mark.parametrize("text", LARGE)
def test_large_values_are_refused_before_they_are_computed(text):
    start = time.process_time()
    with pytest.raises(TooLargeError):
        same_value(read_expression(text), read_expression("x" if "x" in text and "exp" not in text else r"\pi"))
    assert time.process_time() - start < 5.0


def test_names_of_letters():
    assert letters(read_expression(r"x_1+\alpha e^{i}x_{10}")) == {"x_1", "\\alpha", "x_10"}


def test_ratio_of_equations():
    a, b = read_expression("2x-2y"), read_expression("y-x")
    assert same_ratio(a, b) is True
    assert same_ratio(a, b, positive=True) is False
    assert same_ratio(a, read_expression("x^2-y^2")) is False


def test_irrational_value_as_a_fraction():
    assert abs(real_fraction(read_expression(r"\sqrt{2}")) ** 2 - 2) < Fraction(1, 10**39)


@pytest.mark.parametrize(("text", "pieces"), SETS)
def test_sets_of_numbers(text, pieces):
    assert read_real_set(normalise(text)).pieces == pieces


@pytest.mark.parametrize(
    ("text", "value"),
    [("two hundred and five", 205), ("sixteen hundred", 1600), ("three and a half", Fraction(7, 2)),
     ("一万二千", 12000),
     ("两千零五", 2005), ("十分之三", Fraction(3, 10)), ("二〇二四", 2024), ("twenty eleven", 20), ("hundred", None)],
)  # fmt: skip
def test_numerals(text, value):
    found = read_numeral(text)
    assert (found and found[0]) == value
