r"""Plain numbers, read exactly: integers, decimals, fractions, mixed numbers, percent, words, with a unit.

Nothing is evaluated: a fixed grammar turns digits into a `fractions.Fraction`. Policy in `policy.py`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from grpo_jax.rewards.numerals import read_numeral
from grpo_jax.rewards.units import MEASURE_WORDS, UNITS, singular

MAX_DIGITS = 400  # of one number; more is not read
MAX_EXPONENT = 400  # of ten
ROUNDED_PLACES = 4  # digits after the point from which a decimal may be a rounded value
ROUNDED_GOLD, ROUNDED_PREDICTION = 4, 6  # significant digits from which it may be
FLOAT_PLACES, FLOAT_DIGITS = 8, 12  # from which the last four digits may be the noise of a floating-point number


class Quantity(NamedTuple):
    """An exact value; `places` digits were written after the point (None: not a decimal)."""

    value: Fraction
    places: int | None = None
    percent: bool = False
    unit: str = ""


_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_DECIMAL = re.compile(
    rf"(?P<number>{_UNSIGNED})"
    r"(?:(?:[eE](?P<e>[+-]?[0-9]{1,3})"
    r"|(?:\\times ?|\\cdot ?|\*| ?x ?)10\^(?:\{(?P<braced>[+-]?[0-9]{1,3})\}|(?P<bare>[0-9])))(?![0-9]))?"
)
_FRACTION = re.compile(
    rf"\\frac\{{(?P<top>[+-]?(?:{_UNSIGNED}))\}}\{{(?P<bottom>[+-]?(?:{_UNSIGNED}))\}}"
    rf"|(?P<top2>{_UNSIGNED})/(?P<bottom2>{_UNSIGNED})(?![0-9.])"
)
_MIXED = re.compile(
    r"(?P<whole>[0-9]{1,9})(?: (?P<top2>[0-9]{1,9})/(?P<bottom2>[0-9]{1,9})"
    r"|\\frac\{(?P<top>[0-9]{1,9})\}\{(?P<bottom>[0-9]{1,9})\})(?![0-9.])"
)
_ABOUT = re.compile(r"^(?:about|approximately|approx\.?|roughly|around|nearly|\\approx|\\sim|大约|约) ?", re.IGNORECASE)
_NEGATIVE = re.compile(r"^(?:minus|negative) (?=[0-9a-z])", re.IGNORECASE)
_CURRENCY = re.compile(r"^(?:[€£¥]|Rs\.?|RMB|USD|EUR)")  # a dollar sign is gone from the normal form
_PERCENT = re.compile(r" ?(?:%|percent\b|per cent\b|percentage points?\b)")
_DEGREES = re.compile(r"\^\\circ(?: ?[CF](?![a-zA-Z]))?| ?degrees?\b(?: (?:Celsius|Fahrenheit|[CF])\b)?", re.IGNORECASE)
_WORDS = re.compile(r" ?[a-zA-Z\u4e00-\u9fff](?:[a-zA-Z\u4e00-\u9fff /'.()-]|\^[23])*")

_REPEATING = re.compile(
    r"(?P<whole>[0-9]{0,30})\.(?P<once>[0-9]{0,30})\\(?:overline|bar|dot)\{(?P<again>[0-9]{1,30})\}"
)
_COMPOUND = re.compile(
    r"([0-9]+(?:\.[0-9]+)?) ?([a-z]+|[\u4e00-\u9fff]+?),?(?: and)? ?([0-9]+(?:\.[0-9]+)?) ?([a-z\u4e00-\u9fff]+)"
)

_SCALE = re.compile(r" ?(?:(ten(?=th)|hundred|thousand|million|billion|trillion)(ths?)?\b|(万|亿))")
_BRACKETED = re.compile(r" ?\(((?:[a-z]{2,12}|[\u4e00-\u9fff]{1,6})(?:\^[23])?)\)")
_SCALES = {"ten": 1, "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}

# Words after a number that make it something else than so many of a thing.
_NOT_UNITS = frozenset(
    """pi sqrt sin cos tan log ln exp theta alpha beta or and plus minus times over mod half third quarter dozen
    factorial squared cubed choose to than between if not is are was i e x y z n k a b c d hundred thousand million
    billion trillion but either both infinity root out remainder rest residue tenth tenths hundredth hundredths
    thousandth
    thousandths millionth millionths mod pm am half halves thirds quarters
    one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty
    ninety zero""".split()  # noqa: SIM905
)


@lru_cache(maxsize=4096)
def read_quantity(text: str) -> Quantity | None:
    r"""Read a normalised answer as one plain number with at most a unit; None: it is something else."""
    if not text or sum(c.isdigit() for c in text) > MAX_DIGITS:
        return None
    rest = _CURRENCY.sub("", _ABOUT.sub("", text, count=1), count=1).lstrip()
    if rest.startswith("(") and rest.endswith(")") and rest.count("(") == 1 and "," not in rest:
        rest = rest[1:-1]
    rest = rest[1:].lstrip() if rest.startswith("=") else rest
    if compound := _read_compound(rest):
        return compound
    rest = _NEGATIVE.sub("-", rest, count=1)
    sign, rest = (-1, rest[1:].lstrip()) if rest.startswith("-") else (1, rest.removeprefix("+").lstrip())
    found = _read_unsigned(rest)
    if found is None:
        return None
    value, places, end, percent = found
    if percent or (not rest[0].isascii() and not rest[0].isdigit()):
        # 三个 is three of them, 三角形 is no number.
        measured = not rest[end:] or rest[end:] in UNITS or rest[end:] in MEASURE_WORDS
        return Quantity(sign * value, places, percent, rest[end:]) if measured else None
    return _with_unit(sign * value, places, rest[end:])


def _read_unsigned(text: str) -> tuple[Fraction, int | None, int, bool] | None:
    """Read a number at the start of `text`: its value, places, end, and whether its words say percent."""
    if match := _MIXED.match(text):
        top, bottom = int(match["top"] or match["top2"]), int(match["bottom"] or match["bottom2"])
        if 0 < top < bottom:
            return int(match["whole"]) + Fraction(top, bottom), None, match.end(), False
    if match := _FRACTION.match(text):
        top, bottom = _decimal(match["top"] or match["top2"]), _decimal(match["bottom"] or match["bottom2"])
        return (top / bottom, None, match.end(), False) if bottom else None
    if match := _REPEATING.match(text):
        once, again = match["once"], match["again"]
        value = Fraction(int(f"{match['whole']}{once}" or 0), 10 ** len(once))
        value += Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(once))
        return value, None, match.end(), False
    if (match := _DECIMAL.match(text)) and "分之" not in text[:24]:
        exponent = int(match["e"] or match["braced"] or match["bare"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        point = match["number"].find(".")
        places = None if point < 0 else max(0, len(match["number"]) - point - 1 - exponent)
        return _decimal(match["number"]) * Fraction(10) ** exponent, places, match.end(), False
    numeral = read_numeral(text) if text else None
    return (numeral[0], None, numeral[2], numeral[1]) if numeral else None


def _read_compound(text: str) -> Quantity | None:
    """Read "2 hours 30 minutes" as two and a half hours."""
    match = _COMPOUND.fullmatch(text[:60].lower())
    if not match or len(text) > 60:
        return None
    large, small = (UNITS.get(singular(match[i])) for i in (2, 4))
    if not large or not small or large[0] != small[0] or large[1] <= small[1]:
        return None
    return Quantity(Fraction(match[1]) + Fraction(match[3]) * small[1] / large[1], None, False, singular(match[2]))


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub("[, ]", "", text).rstrip(".") or "0")


def _with_unit(value: Fraction, places: int | None, rest: str) -> Quantity | None:
    if scale := _SCALE.match(rest.lower()):
        power = _SCALES[scale[1] or scale[3]]
        value, places, rest = value * Fraction(10) ** (-power if scale[2] else power), None, rest[scale.end() :]
    rest = re.sub(r"^(?:st|nd|rd|th)\b", "", rest) if places is None else rest
    if bracketed := _BRACKETED.fullmatch(rest):
        rest = " " + bracketed[1]
    percent, unit = False, ""
    if match := _PERCENT.match(rest):
        percent, rest = True, rest[match.end() :]
    elif match := _DEGREES.match(rest):
        unit, rest = "degree", rest[match.end() :]
    if not rest.strip(" ."):
        return Quantity(value, places, percent, unit)
    counted = _read_unit(rest)
    return None if counted is None else Quantity(value, places, percent, unit or counted)


def _read_unit(rest: str) -> str | None:
    """Read what follows a number as a unit or the things counted; None where it may be mathematics."""
    if len(rest) > 60 or not _WORDS.fullmatch(rest):
        return None
    whole = rest.strip(" .").lower()
    exact = singular(re.sub(" per ", "/", whole))
    if exact in UNITS and (len(exact) > 1 or rest[0] == " " or "\u4e00" <= exact <= "\u9fff"):
        return exact
    words = re.findall(r"[a-z\u4e00-\u9fff]+", whole)
    if not words or any(word in _NOT_UNITS for word in words):
        return None
    is_word = len(words[0]) >= 3 or "\u4e00" <= words[0][0] <= "\u9fff" or words[0] in UNITS
    return whole if is_word and (rest[0] == " " or words[0] not in UNITS) else None


def equal(a: Quantity, b: Quantity) -> bool:
    """Whether two quantities are one, by the policy of this module."""
    if (a.percent and b.unit) or (b.percent and a.unit):
        return False
    size_a = size_b = Fraction(1)
    if a.unit in UNITS and b.unit in UNITS:
        (dimension_a, size_a), (dimension_b, size_b) = UNITS[a.unit], UNITS[b.unit]
        if dimension_a != dimension_b:
            return False
    elif a.unit and b.unit and not _same_things(a.unit, b.unit):
        return False
    hundredth = Fraction(1, 100)
    readings = [(hundredth if a.percent else 1, hundredth if b.percent else 1)]
    if a.percent != b.percent:
        readings.append((1, 1))
    return any(close(a, b, size_a * x, size_b * y) for x, y in readings)


def _same_things(a: str, b: str) -> bool:
    """Whether all words of one unit are in the other: "apples" and "red apples", not "protons" and "neutrons"."""
    words_a, words_b = ({singular(w).removesuffix("s") for w in re.findall(r"[^ /.()-]+", text)} for text in (a, b))
    return words_a <= words_b or words_b <= words_a


def close(a: Quantity, b: Quantity, scale_a: Fraction | int = 1, scale_b: Fraction | int = 1) -> bool:
    """Whether a prediction `a` and a reference `b` are one number, up to rounding that shows in their decimals."""
    difference = abs(a.value * scale_a - b.value * scale_b)
    if difference == 0:
        return True
    if a.value == 0 or b.value == 0:
        return False
    tolerances = (_tolerance(a, ROUNDED_PREDICTION) * scale_a, _tolerance(b, ROUNDED_GOLD) * scale_b)
    return difference <= max(tolerances)


def _tolerance(q: Quantity, digits: int) -> Fraction:
    """How far the exact value may be from what was written: half of the last place if it may be rounded, else 0."""
    if q.places is None or q.places < ROUNDED_PLACES:
        return Fraction(0)
    significant = len(str(abs(int(q.value * 10**q.places))))
    if q.places >= FLOAT_PLACES and significant >= FLOAT_DIGITS:
        return Fraction(10**4, 10**q.places)
    return Fraction(1, 2 * 10**q.places) if significant >= digits else Fraction(0)
