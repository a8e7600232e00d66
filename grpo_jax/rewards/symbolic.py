"""Algebra, by math-verify: the last resort of the grader, and only ever run in a worker that can be killed.

The text is parsed by math-verify's LaTeX grammar alone. Its plain-expression reader is not used, since it hands the
text to `sympy.parse_expr`, which evaluates Python.
"""

from __future__ import annotations

from typing import Literal


def compare(pair: tuple[str, str]) -> tuple[Literal["right", "wrong", "ungradable"], str]:
    """Compare (prediction, gold), both LaTeX without delimiters; plain strings come back, which always pickle.

    The reference goes first: math-verify lets its kind decide what may match it.
    """
    from math_verify import verify
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import BooleanAtom

    prediction, gold = pair
    try:
        wanted = _parse(gold)
        if not wanted:
            return "ungradable", "the reference cannot be parsed"
        given = _parse(prediction)
        if not given:
            return "ungradable", "the prediction cannot be parsed"
        if all(isinstance(value, BooleanAtom | Relational) and not value.free_symbols for value in wanted + given):
            # All true statements about numbers are one to it: 9 + 72 = 81 and 72 - 9 = 63.
            return "ungradable", "statements without unknowns"
        if verify(wanted, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True):
            return "right", "equal by math-verify"
        return "wrong", "different by math-verify"
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        return "ungradable", f"math-verify raised {type(error).__name__}: {str(error)[:200]}"


def warm(_: object = None) -> None:
    """Load the parser and fill its tables, which the first comparison of a worker otherwise pays for."""
    compare((r"\frac{\sqrt{3}}{3}+x^2", r"\frac{1}{\sqrt{3}}+x^{2}"))


def _parse(text: str) -> list:
    from math_verify import LatexExtractionConfig, parse

    return parse(
        rf"\boxed{{{text}}}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
        raise_on_error=True,
    )
