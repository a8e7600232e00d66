r"""DeepSeek-Math's published rules of equality, with their known errors, for numbers that compare with the paper's.

Written from their description (what is normalised, which tolerances, which splits), not from their code. Known to be
wrong, and kept: a factor of 100 is forgiven (0.5 for 50), numbers within 0.001 are equal (0.0004 for 0), commas are
deleted (1,2 is 12), the kind of bracket does not matter, sets have an order, mixed numbers are products, `\cdot`
vanishes (2\cdot 3 is 23), "info" becomes "\inftyo". What they hand to sympy is read by `expression.py` and compared by
value within 0.001; what it cannot read is wrong, as a failure is there. Strict grading is in `equivalent.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from grpo_jax.rewards import probing
from grpo_jax.rewards.expression import Tree, letters, read_expression

TOLERANCE = 1e-3
MAX_LENGTH = 1000  # characters; a longer answer is only compared as text
MAX_DEPTH = 4  # of tuples in tuples
MAX_VALUE = 10**30

_REMOVED = [
    "\n",
    r"\!",
    r"\left",
    r"\right",
    r"^\circ",
    r"^{\circ}",
    r"\$",
    "$",
    r"x\in",
    r"\cdot",
    r"\mathbf",
    r"\mathrm",
    "{cm}",
    "{m}",
]
_UNIT = re.compile(r"\\text\{[^{}]*\}$")
_BOX = re.compile(r"\\mbox\{[^{}]*\}")
_MIXED = re.compile(r"(?<=[0-9])(?=\\frac)")  # a mixed number is a product
_DECIMAL = re.compile(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_MATRIX = re.compile(r"\\begin\{(?:[pb]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{(?:[pb]?matrix|array)\}", re.DOTALL)


def normalise(answer: str) -> str:
    r"""Write an answer in the published normal form, e.g. `x \in \left(\tfrac12, 3.00\right)` as `(\frac{1}{2},3)`."""
    text = answer.strip()[:MAX_LENGTH].rstrip(".").replace(" ", "")
    text = _UNIT.sub("", text) if not text.startswith(r"\text") else text
    for piece in _REMOVED:
        text = text.replace(piece, "")
    text = _BOX.sub("", text)
    text = re.sub(r"\\[tdc]frac", r"\\frac", text)
    text = re.sub(r"(?<!\\)inf(?:inity)?", r"\\infty", text)
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"([0-9]+)\.0+(?![0-9])", r"\1", text)
    text = re.sub(r"(?<![0-9])\.([0-9])", r"0.\1", text)
    text = re.sub(r"\\sqrt([^{\[\\])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac([0-9a-zA-Z])([0-9a-zA-Z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac([0-9a-zA-Z])\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\{[^{}]*\})([0-9a-zA-Z])", r"\1{\2}", text)
    return re.sub(r"^(-?[0-9]+)/(-?[0-9]+)$", r"\\frac{\1}{\2}", text)


def same(prediction: str, gold: str) -> bool:
    """Whether two answers are one by the published rules."""
    a, b = (_float(text.replace(",", "")) for text in (prediction, gold))
    if a is not None and b is not None and abs(a - b) < TOLERANCE:
        return True
    return prediction == gold or _equal(prediction, gold, 0)


def same_lists(predictions: Sequence[str], golds: Sequence[str]) -> bool:
    """Whether each of the last predictions matches some reference and each reference some prediction (MATH)."""
    wanted = list(dict.fromkeys(golds))
    given = list(dict.fromkeys(predictions))[-len(wanted) :] if wanted else []
    covered = all(any(same(p, g) for g in wanted) for p in given)
    return bool(given) and covered and all(any(same(p, g) for p in given) for g in wanted)


def _equal(prediction: str, gold: str, depth: int) -> bool:
    if prediction.lower() == gold.lower():
        return True
    if depth > MAX_DEPTH or max(len(prediction), len(gold)) > MAX_LENGTH:
        return False
    numbers = [_number(text) for text in (prediction, gold)]
    if None not in numbers:
        return any(
            abs(numbers[0] - reference) < TOLERANCE for reference in (numbers[1] / 100, numbers[1], numbers[1] * 100)
        )
    if r"\cup" in gold or r"\cup" in prediction:
        parts = [text.split(r"\cup") for text in (prediction, gold)]
        return _all_found(*parts, depth) and _all_found(*reversed(parts), depth)
    matrices = [_matrix(text) for text in (prediction, gold)]
    if None not in matrices:
        return _elementwise(*matrices, depth)
    tuples = [_tuple(text) for text in (prediction, gold)]
    if None not in tuples:
        return _elementwise(*tuples, depth)
    if "=" in prediction or "=" in gold:
        return _equations(prediction, gold, depth)
    return _values(prediction, gold)


def _number(text: str) -> float | None:
    """Read a number; "12%" is 0.12."""
    plain = text.replace(",", "")
    value = _float(plain.removesuffix("%").removesuffix("\\"))
    return None if value is None else value / 100 if plain.endswith("%") else value


def _float(text: str) -> float | None:
    return float(text) if _DECIMAL.fullmatch(text.strip()) and len(text) < 300 else None


def _all_found(these: list[str], those: list[str], depth: int) -> bool:
    return all(any(_equal(a, b, depth + 1) for b in those[:16]) for a in these[:16])


def _elementwise(these: list[str], those: list[str], depth: int) -> bool:
    return len(these) == len(those) and all(_equal(a, b, depth + 1) for a, b in zip(these, those, strict=True))


def _tuple(text: str) -> list[str] | None:
    """Split (a,b), [a,b] and (a,b] at their commas outside of braces and brackets."""
    if text[:1] not in "([" or text[-1:] not in ")]" or len(text) < 3:
        return None
    parts, depth, start = [], 0, 1
    for i in range(1, len(text) - 1):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if text[i] == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:-1]] if parts else None


def _matrix(text: str) -> list[str] | None:
    match = _MATRIX.fullmatch(text)
    return [cell for row in match[1].split(r"\\") for cell in row.split("&") if row] if match else None


def _equations(prediction: str, gold: str, depth: int) -> bool:
    """Compare "x = v" with v if the left side is short, and two equations by the difference of their sides."""
    sides = [text.split("=") for text in (prediction, gold)]
    if max(map(len, sides)) > 2:
        return False
    if len(sides[0]) == len(sides[1]) == 2:
        differences = [f"({left})-({right})" for left, right in sides]
        return _values(*differences) or _values(f"-({differences[0]})", differences[1])
    (left, right), other = (sides[0], gold) if len(sides[0]) == 2 else (sides[1], prediction)
    return len(left.strip()) <= 2 and _equal(right, other, depth + 1)


def _values(prediction: str, gold: str) -> bool:
    a, b = (read_expression(_MIXED.sub("*", text)) for text in (prediction, gold))
    if a is None or b is None:
        return False
    try:
        return probing.same_value(a, b) is True or _close(a, b)
    except probing.TooLargeError:
        return _close(a, b)


def _close(a: Tree, b: Tree) -> bool:
    if letters(a) or letters(b):
        return False
    values = [probing.value(tree) for tree in (a, b)]
    return None not in values and abs(values[0] - values[1]) < TOLERANCE and abs(values[0]) < MAX_VALUE
