r"""Formulas, equations, inequalities, sets of numbers and matrices: compared by value, in milliseconds, right here.

The last rule of `structure.decide` for what strings and exact numbers cannot tell apart. Texts are read by the grammars
of `expression.py` and `realsets.py`; what these do not read is left to math-verify in a worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from grpo_jax.rewards import probing
from grpo_jax.rewards.expression import Tree, letters, read_expression
from grpo_jax.rewards.quantity import Quantity, close, read_quantity
from grpo_jax.rewards.rationals import rational
from grpo_jax.rewards.realsets import is_real_set, read_real_set, same_set
from grpo_jax.rewards.structure import read_items
from grpo_jax.rewards.words import without_units

Decide = Callable[[str, str], bool | None]

MAX_CELLS = 100
_RELATION = re.compile(r"\\leq ?|\\geq ?|\\ne ?|[<>=]")
_SIGN = {"<": -1, r"\leq": -1, ">": 1, r"\geq": 1}
_STRICT = frozenset(["<", ">"])
_MATRIX = re.compile(
    r"\\begin\{(?P<kind>[bpvBV]?matrix|array)\}(?:\{[lcr|]*\})?(?P<body>.*)\\end\{(?P=kind)\}", re.DOTALL
)
_MATRIX_FENCES = re.compile(r"^[(\[](\\begin\{array\}.*\\end\{array\})[)\]]$", re.DOTALL)
_DEGREES = re.compile(r"(.+)\^\\circ", re.DOTALL)


def same(prediction: str, gold: str, decide: Decide) -> bool | None:
    """Whether two normalised answers say the same; None: they cannot be read here, or cannot be told apart."""
    if r"\begin" in prediction or r"\begin" in gold:
        return _same_matrix(prediction, gold, decide)
    if is_real_set(gold) or is_real_set(prediction):
        a, b = read_real_set(prediction), read_real_set(gold)
        if a is not None and b is not None:
            return same_set(a, b)
        if (a is None) != (b is None) and read_expression(prediction if a is None else gold) is not None:
            return False
    if _RELATION.search(gold) or _RELATION.search(prediction):
        return _same_relation(prediction, gold, decide)
    kinds = [_is_one_value(text) for text in (prediction, gold)]
    if kinds[0] != kinds[1] and None not in kinds:
        return False
    return _same_expression(prediction, gold)


def _is_one_value(text: str) -> bool | None:
    """Whether an answer is one formula, as against a list, an interval or a set of numbers; None: neither."""
    if read_expression(text) is not None:
        return True
    return False if read_items(text) is not None or read_real_set(text) is not None else None


def _same_expression(prediction: str, gold: str) -> bool | None:
    a, b = read_expression(prediction), read_expression(gold)
    if a is not None and b is not None:
        a = _in_letters_of(a, b)
    verdict = None if a is None or b is None else _same_tree(prediction, a, gold, b)
    bare = [without_units(text) for text in (prediction, gold)]
    if verdict or bare == [prediction, gold] or _two_units(prediction, gold, bare):
        return verdict
    a, b = map(read_expression, bare)
    return verdict if a is None or b is None else probing.same_value(a, b) or verdict


def _two_units(prediction: str, gold: str, bare: list[str]) -> bool:
    """Whether both have a unit, and not the same."""
    units = [text[len(short) :].strip() for text, short in zip((prediction, gold), bare, strict=True)]
    return all(units) and units[0] != units[1]


def _in_letters_of(tree: Tree, other: Tree) -> Tree:
    """Read I and E of a program's output as i and e, where the other formula has no such letters."""
    names = {("letter", "I"): ("constant", "i"), ("letter", "E"): ("constant", "e")}
    if not letters(tree) & {"I", "E"} or letters(other) & {"I", "E"}:
        return tree
    return names.get(tree) or tuple(_in_letters_of(p, other) if isinstance(p, tuple) else p for p in tree)


def _same_tree(prediction: str, a: Tree, gold: str, b: Tree) -> bool | None:
    verdict = probing.same_value(a, b)
    if verdict is False:
        return _rounded(prediction, a, gold, b) or _as_angles(prediction, gold) or _logarithms(a, b)
    return verdict


def _rounded(prediction: str, a: Tree, gold: str, b: Tree) -> bool:
    """Whether one is a number with enough decimals and what the other rounds to."""
    quantities = []
    for text, tree in ((prediction, a), (gold, b)):
        quantity = read_quantity(text)
        if quantity is None:
            exact = rational(tree)
            value = probing.real_fraction(tree) if exact is None else exact
            if value is None:
                return False
            quantity = Quantity(value)
        quantities.append(quantity)
    return close(*quantities)


def _as_angles(prediction: str, gold: str) -> bool:
    r"""Whether one is in degrees, the other a multiple of \pi: 60^\circ and \pi/3."""
    found = [_DEGREES.fullmatch(text) for text in (prediction, gold)]
    if (found[0] is None) == (found[1] is None) or r"\pi" not in prediction + gold:
        return False
    trees = [
        read_expression(match[1] if match else text) for match, text in zip(found, (prediction, gold), strict=True)
    ]
    if None in trees:
        return False
    turned = [("call", "degrees", tree) if match else tree for match, tree in zip(found, trees, strict=True)]
    return probing.same_value(*turned) is True


def _logarithms(a: Tree, b: Tree) -> bool:
    """Whether the two agree if log, where no base is given, is the decimal one; as the natural one they do not."""
    decimal = _with_decimal_logarithm(a), _with_decimal_logarithm(b)
    return decimal != (a, b) and probing.same_value(*decimal) is True


def _with_decimal_logarithm(tree: Tree) -> Tree:
    if tree[:2] == ("call", "log") and len(tree) == 3:
        return ("call", "lg", _with_decimal_logarithm(tree[2]))
    return tuple(_with_decimal_logarithm(part) if isinstance(part, tuple) else part for part in tree)


def _same_relation(prediction: str, gold: str, decide: Decide) -> bool | None:
    given, wanted = _chain(prediction), _chain(gold)
    if wanted is None or given is None:
        return _last_side(prediction, gold, decide) if wanted is None else False
    if len(given[1]) != len(wanted[1]) or len(wanted[1]) > 2:
        return False
    if len(wanted[1]) == 2:
        return _same_chain(given, wanted)
    if wanted[1] == ["="] and given[1] == ["="]:
        return _same_equation(given[0], wanted[0])
    return _same_inequality(given, wanted)


def _chain(text: str) -> tuple[list[str], list[str]] | None:
    """Split "a < b < c" into sides and signs; None: no sign in it."""
    signs = [sign.strip() for sign in _RELATION.findall(text)]
    return ([side.strip() for side in _RELATION.split(text)], signs) if signs else None


def _last_side(prediction: str, gold: str, decide: Decide) -> bool | None:
    """Judge "2 + 3 = 5" for 5: all sides must be the value, or names but for the last."""
    sides, signs = _chain(prediction) or ([], [])
    if set(signs) != {"="} or len(sides) > 6 or not all(sides):
        return False if signs else None
    verdicts = [True if i + 1 < len(sides) and is_name(side) else decide(side, gold) for i, side in enumerate(sides)]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def is_name(text: str) -> bool:
    r"""Whether a text names a thing, as the left side of "A = 5" does: x, f(x), \angle ABC, AB, \frac{dy}{dx}."""
    return bool(_NAME.fullmatch(text))


_ATOM = r"\\?[a-zA-Z]+(?:_(?:[0-9a-zA-Z]|\{[0-9a-zA-Z,]{1,12}\}))?'{0,3}"
_DERIVATIVE = rf"\\frac\{{d{_ATOM}?\}}\{{d{_ATOM}\}}"
_NAME = re.compile(
    rf"(?:\\(?:angle|triangle|overline|vec|bar|hat|mathbf|measuredangle) ?)?\{{?(?:{_ATOM}|{_DERIVATIVE}"
    r"|(?:the )?(?!not |no )[a-z]+(?: (?!not )[a-z]+){1,3}|\|[a-zA-Z ]{1,6}\|)\}?"
    r"(?:\((?:[a-zA-Z0-9,]{1,12}|\\?[a-zA-Z]+)\))?"
)


def _same_equation(given: list[str], wanted: list[str]) -> bool | None:
    """Two equations are one if their differences of sides are, up to a constant factor."""
    a, b = _difference(given), _difference(wanted)
    if a is None or b is None:
        return None
    if not letters(a) or not letters(b):
        return None if not letters(a) and not letters(b) else False
    verdict = probing.same_ratio(a, b)
    if verdict is False and is_name(given[0]) and is_name(wanted[0]) and given[0] != wanted[0]:
        return False
    return verdict


def _difference(sides: list[str]) -> Tree | None:
    left, right = map(read_expression, sides)
    if left is None or right is None:
        return None
    return ("sum", left, ("product", ("number", Fraction(-1)), right))


def _same_inequality(given: tuple, wanted: tuple) -> bool | None:
    (sides_a, signs_a), (sides_b, signs_b) = given, wanted
    if signs_a[0] not in _SIGN or signs_b[0] not in _SIGN:
        return False if signs_a != signs_b else _same_equation(sides_a, sides_b)
    if (signs_a[0] in _STRICT) != (signs_b[0] in _STRICT):
        return False
    a, b = _difference(sides_a), _difference(sides_b)
    if a is None or b is None:
        return None
    if _SIGN[signs_a[0]] != _SIGN[signs_b[0]]:
        b = ("product", ("number", Fraction(-1)), b)
    return probing.same_ratio(a, b, positive=True)


def _same_chain(given: tuple, wanted: tuple) -> bool | None:
    (sides_a, signs_a), (sides_b, signs_b) = given, wanted
    if all(sign in (">", r"\geq") for sign in signs_a):
        sides_a, signs_a = sides_a[::-1], [{">": "<", r"\geq": r"\leq"}[sign] for sign in signs_a[::-1]]
    if all(sign in (">", r"\geq") for sign in signs_b):
        sides_b, signs_b = sides_b[::-1], [{">": "<", r"\geq": r"\leq"}[sign] for sign in signs_b[::-1]]
    if signs_a != signs_b:
        return False
    verdicts = [_same_expression(a, b) for a, b in zip(sides_a, sides_b, strict=True)]
    return all(verdicts) if None not in verdicts else None


def _same_matrix(prediction: str, gold: str, decide: Decide) -> bool | None:
    wanted, given = read_matrix(gold), read_matrix(prediction)
    if wanted is None:
        return None
    if given is None:
        given = _as_vector(prediction, wanted)
    if given is None:
        return None if r"\begin" in prediction or re.search(r"\\[a-zA-Z]", prediction) else False
    if [len(row) for row in given] != [len(row) for row in wanted]:
        return False
    verdicts = [decide(a, b) for row, other in zip(given, wanted, strict=True) for a, b in zip(row, other, strict=True)]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def read_matrix(text: str) -> list[list[str]] | None:
    """Read a normalised matrix as rows of cells; None: it is none, or a determinant."""
    fenced = _MATRIX_FENCES.fullmatch(text)
    match = _MATRIX.fullmatch(fenced[1] if fenced else text)
    if not match or match["kind"] in ("vmatrix", "Vmatrix") or r"\begin" in match["body"]:
        return None
    rows = [[cell.strip() for cell in row.split("&")] for row in match["body"].split(r"\\")]
    rows = [row for row in rows if row != [""]]
    return rows if rows and sum(map(len, rows)) <= MAX_CELLS else None


def _as_vector(text: str, wanted: list[list[str]]) -> list[list[str]] | None:
    """Read (1,2,3) as the column or row that is wanted, and [[1,2],[3,4]] as a matrix."""
    text = text.removeprefix("Matrix(").removesuffix(")") if text.startswith("Matrix(") else text
    if not re.fullmatch(r"[(\[].*[)\]]", text, re.DOTALL) or len(text) > 1000:
        return None
    inner = text[1:-1]
    if inner.startswith("[") and inner.endswith("]"):
        return [[cell.strip() for cell in row.split(",")] for row in re.split(r"\],\[", inner[1:-1])]
    if re.search(r"[(){}\[\]]", re.sub(r"\\(?:frac|sqrt)(?:\{[^{}]*\})+", "", inner)):
        return None
    cells = [cell.strip() for cell in inner.split(",")]
    if len(wanted) == 1:
        return [cells]
    return [[cell] for cell in cells] if all(len(row) == 1 for row in wanted) else None
