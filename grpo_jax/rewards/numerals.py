"""Numbers in words, English and Chinese: "two hundred and five", "three quarters", 一百二十, 百分之五, 三分之一."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_LETTERS = 120  # of a number in words

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_SMALL = {word: i for i, word in enumerate(_ONES)} | {word: 10 * i for i, word in enumerate(_TENS, start=2)}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "twelfth": 12, "hundredth": 100, "thousandth": 1000, "millionth": 10**6,
}  # fmt: skip
_WORD = re.compile(r"[ -]?(?:,? ?and )?([a-z]+)(?![a-z])")

_DIGITS = {character: i for i, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_CHINESE = re.compile(r"负?(?:百分之)?[零〇一二两三四五六七八九十百千万亿]{1,24}(?:点[零〇一二三四五六七八九]{1,24})?")
_CHINESE_FRACTION = re.compile(
    r"(?:(?P<whole>[0-9]{1,9}|[一二两三四五六七八九十]{1,5})又)?"
    r"(?P<bottom>[0-9]{1,9}|[一二两三四五六七八九十百]{1,7})分之(?P<top>[0-9]{1,9}|[一二两三四五六七八九十百]{1,7})"
)


def read_numeral(text: str) -> tuple[Fraction, bool, int] | None:
    """Read a number in words at the start of `text`: its value, whether it is percent, and where it ends."""
    if text[:1].isascii() and "分之" not in text[:24]:
        found = _read_english(text[:MAX_LETTERS].lower())
        return (found[0], False, found[1]) if found else None
    return _read_chinese(text[:MAX_LETTERS])


def _read_english(text: str) -> tuple[Fraction, int] | None:
    """Read words from the left, as long as each may follow the one before."""
    total, group, last, end, i = 0, 0, 10**15, 0, 0
    previous = None  # the value of the word before, which says what may follow
    while match := _WORD.match(text, i):
        word = match[1]
        if word in _SMALL and _may_follow(previous, _SMALL[word]):
            group, previous = group + _SMALL[word], _SMALL[word]
        elif word == "hundred" and previous is not None and 0 < group < 100:
            group, previous = group * 100, 100
        elif word in _LARGE and group and _LARGE[word] < last:
            last = _LARGE[word]
            total, group, previous = total + group * last, 0, 1000
        else:
            return _with_parts(text, word, total + group, previous, end, match.end())
        i = end = match.end()
    return (Fraction(total + group), end) if previous is not None else None


def _may_follow(previous: int | None, small: int) -> bool:
    if previous is None:
        return True
    return (previous >= 100 and small > 0) or (20 <= previous < 100 and 0 < small < 10)


def _with_parts(text: str, word: str, number: int, previous: int | None, end: int, after: int):
    """Read "three quarters", "a half", "two and a half"."""
    whole = Fraction(number)
    part = _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))
    if part and previous is None and end == 0:
        return (Fraction(1, part), after) if word in ("half", "quarter") else None
    if part and " and " not in text[end:after]:
        return whole / part, after
    half = re.match(r" and (?:a|one|1) (half|quarter|third)(?![a-z])", text[end:])
    if previous is not None and half:
        return whole + Fraction(1, _PARTS[half[1]]), end + half.end()
    article = re.match(r"(?:a|one) (half|quarter|third|hundred|thousand|million)(?![a-z])", text) if end == 0 else None
    if article:
        sizes = {"hundred": Fraction(100)} | {name: Fraction(size) for name, size in _LARGE.items()}
        return sizes.get(article[1]) or Fraction(1, _PARTS[article[1]]), article.end()
    return (whole, end) if previous is not None else None


def _read_chinese(text: str) -> tuple[Fraction, bool, int] | None:
    if match := _CHINESE_FRACTION.match(text):
        whole, bottom, top = (_plain(match[name]) for name in ("whole", "bottom", "top"))
        if bottom and match["bottom"] != "百":
            return whole + Fraction(top, bottom), False, match.end()
    if text.startswith("百分之") and (digits := re.match(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", text[3:])):
        return Fraction(digits[0]), True, 3 + digits.end()
    if text.startswith("一半"):
        return Fraction(1, 2), False, 2
    match = _CHINESE.match(text)
    if not match:
        return None
    name, negative = match[0].removeprefix("负"), match[0].startswith("负")
    percent = name.startswith("百分之")
    whole, _, decimals = name.removeprefix("百分之").partition("点")
    value = _plain(whole)
    if value is None:
        return None
    value += sum(Fraction(_DIGITS[digit], 10**place) for place, digit in enumerate(decimals, start=1))
    return (-value if negative else value), percent, match.end()


def _plain(text: str | None) -> Fraction | None:
    """Read a whole number, in figures or Chinese: 一万二千, 十五, 二〇二四; None: not in the order of a number."""
    if not text:
        return Fraction(0)
    if text.isdigit():
        return Fraction(int(text))
    if len(text) > 1 and all(character in _DIGITS for character in text):
        return Fraction(int("".join(str(_DIGITS[character]) for character in text)))
    total = section = 0
    digit: int | None = None
    for character in text:
        if character in _DIGITS:
            if digit:
                return None
            digit = _DIGITS[character]
        elif character in _UNITS:
            section += (1 if digit is None else digit) * _UNITS[character]
            digit = None
        else:
            section, digit = section + (digit or 0), None
            total = (total + section) * (10**4 if character == "万" else 10**8)
            section = 0
    return Fraction(total + section + (digit or 0))
