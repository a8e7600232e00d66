r"""Sets of real numbers, read from intervals and inequalities alike: (1,3], 1 < x \le 3, {x | 1 < x \le 3}, x \ne 2.

A set is a sorted tuple of pieces that neither touch nor overlap, with exact or 30-digit ends, so that two sets are
equal iff their tuples are. A comma between inequalities joins what is apart (x < 1, x > 2) and intersects what
overlaps (x > 0, x \ne 2).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from grpo_jax.rewards.expression import read_expression
from grpo_jax.rewards.probing import real_fraction
from grpo_jax.rewards.rationals import rational

MAX_PIECES = 16
INFINITY = float("inf")

End = Fraction | float


class Piece(NamedTuple):
    """An interval; a point has its two ends equal and closed."""

    low: End
    low_closed: bool
    high: End
    high_closed: bool


class RealSet(NamedTuple):
    """A union of pieces, and the letter it was written for, if any."""

    letter: str | None
    pieces: tuple[Piece, ...]


LINE = (Piece(-INFINITY, False, INFINITY, False),)
_MARK = re.compile(
    r"[<>]|\\leq|\\geq|\\ne |\\cup|\\infty|\\setminus|\\mathbb\{R\}|\\emptyset|\\in(?![a-z])|infinity|空集"
)
_LINE = re.compile(r"\\mathbb\{R\}|R|\(-\\infty,\+?\\infty\)|all reals?(?: numbers?)?|全体实数|一切实数|实数集")
_EMPTY = re.compile(r"\\emptyset|(?:the )?empty set|no (?:real )?solutions?|空集|无解|不存在实数解")
_OR = re.compile(r"\\cup|\\vee|(?<![a-zA-Z])or(?![a-zA-Z])|或者?")
_AND = re.compile(r"\\cap|\\wedge|(?<![a-zA-Z])and(?![a-zA-Z])|且")
_RELATION = re.compile(r"\\leq ?|\\geq ?|\\ne ?|[<>=]")
_LETTER = r"\\?[a-zA-Z]+(?:_[0-9a-z])?"
_MEMBER = re.compile(rf"(?P<letter>{_LETTER}) ?\\in ?(?![a-z])")
_BUILDER = re.compile(
    rf"\\\{{(?P<letter>{_LETTER})(?:\\in ?\\mathbb\{{R\}})?(?:\||:|,)(?P<condition>(?:(?!\\\}}).)*)\\\}}", re.DOTALL
)
_FLIP = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq", "=": "=", r"\ne": r"\ne"}


def is_real_set(text: str) -> bool:
    """Whether a normalised answer has a sign that only sets of numbers have."""
    return bool(_MARK.search(text) or _BUILDER.fullmatch(text) or _EMPTY.fullmatch(text) or _LINE.fullmatch(text))


@lru_cache(maxsize=256)
def read_real_set(text: str) -> RealSet | None:
    """Read a normalised answer as a set of real numbers with known ends; None: it is something else."""
    if len(text) > 400:
        return None
    letter = None
    if builder := _BUILDER.fullmatch(text):
        letter, text = builder["letter"], builder["condition"]
    elif (member := _MEMBER.match(text)) and "<" not in text:
        letter, text = member["letter"], text[member.end() :]
    letters = {letter} - {None}
    pieces = _joined(text.strip(), letters, 0)
    if pieces is None or len(pieces) > MAX_PIECES or len(letters) > 1:
        return None
    return RealSet(next(iter(letters), None), pieces)


def same_set(a: RealSet, b: RealSet) -> bool:
    """Whether two sets are one, of the same letter where both name one."""
    return a.pieces == b.pieces and (a.letter is None or b.letter is None or a.letter == b.letter)


def _joined(text: str, letters: set[str], depth: int) -> tuple[Piece, ...] | None:
    if depth > 4:
        return None
    for pattern, join in ((_OR, _union), (_AND, _intersection), (re.compile(r",|;"), _comma)):
        parts = _cut(text, pattern)
        if parts is None:
            return None
        if len(parts) > 1 and not (pattern.pattern == ",|;" and not all(map(_RELATION.search, parts))):
            sets = [_joined(part, letters, depth + 1) for part in parts]
            return None if None in sets else join(sets)
    parts = _cut(text, re.compile(r"\\setminus ?|(?<=\})-(?=\\\{)"))
    if parts is not None and len(parts) == 2:
        whole, gone = (_joined(part, letters, depth + 1) for part in parts)
        return None if whole is None or gone is None else _intersection([whole, _complement(gone)])
    return _single(text, letters)


def _single(text: str, letters: set[str]) -> tuple[Piece, ...] | None:
    if _LINE.fullmatch(text):
        return LINE
    if _EMPTY.fullmatch(text):
        return ()
    if builder := _BUILDER.fullmatch(text):
        letters.add(builder["letter"])
        return _joined(builder["condition"], letters, 3)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        points = [_end(part) for part in _cut(text[2:-2], re.compile(",")) or []]
        return None if None in points or not points else _union([(Piece(p, True, p, True),) for p in points])
    if text[:1] in ("(", "[", "]") and text[-1:] in (")", "]", "[") and not _RELATION.search(text):
        return _interval(text)
    if member := _MEMBER.match(text):
        letters.add(member["letter"])
        return _joined(text[member.end() :], letters, 3)
    return _inequality(text, letters)


def _interval(text: str) -> tuple[Piece, ...] | None:
    ends = _cut(text[1:-1], re.compile(","))
    if ends is None or len(ends) != 2:
        return None
    low, high = map(_end, ends)
    if low is None or high is None or low > high:
        return None
    return _union([(Piece(low, text[0] == "[", high, text[-1] == "]"),)])


def _inequality(text: str, letters: set[str]) -> tuple[Piece, ...] | None:
    signs = [sign.strip() for sign in _RELATION.findall(text)]
    sides = [side.strip() for side in _RELATION.split(text)]
    places = [i for i, side in enumerate(sides) if re.fullmatch(_LETTER, side) and _end(side) is None]
    if not signs or len(signs) > 2 or len(places) != 1:
        return None
    place = places[0]
    letters.add(sides[place])
    sets = []
    for i, sign in enumerate(signs):
        if place not in (i, i + 1):
            return None
        sets.append(_half(sides[i + 1] if place == i else sides[i], sign if place == i else _FLIP[sign]))
    return None if None in sets else _intersection(sets)


def _half(bound: str, sign: str) -> tuple[Piece, ...] | None:
    r"""Return the x for which `x sign bound`; x \ne 1, 2 excludes both."""
    if sign in (r"\ne", "="):
        points = [_end(part) for part in _cut(bound.replace(r"\pm", "+") + ("," + bound.replace(r"\pm", "-")
                  if r"\pm" in bound else ""), re.compile(r",|(?<![a-z])(?:and|or)(?![a-z])")) or []]  # fmt: skip
        if None in points or not points:
            return None
        found = _union([(Piece(p, True, p, True),) for p in points])
        return _complement(found) if sign != "=" else found
    end = _end(bound)
    if end is None:
        return None
    closed = sign in (r"\leq", r"\geq")
    if sign in ("<", r"\leq"):
        return _union([(Piece(-INFINITY, False, end, closed),)])
    return _union([(Piece(end, closed, INFINITY, False),)])


def _end(text: str) -> End | None:
    infinite = re.fullmatch(r"([+-]?)(?:\\infty ?|infinity|inf|oo|∞)", text.strip())
    if infinite:
        return -INFINITY if infinite[1] == "-" else INFINITY
    tree = read_expression(text.strip())
    if tree is None:
        return None
    exact = rational(tree)
    return exact if exact is not None else _rounded(real_fraction(tree))


def _rounded(value: Fraction | None) -> Fraction | None:
    return None if value is None else Fraction(round(value * 10**30), 10**30)


def _cut(text: str, pattern: re.Pattern[str]) -> list[str] | None:
    r"""Cut at a pattern outside all brackets; None: they do not match. An interval's ( may be closed by a ]."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        character = text[i]
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        match = pattern.match(text, i) if depth == 0 else None
        if match and match.end() > i:
            parts.append(text[start:i].strip())
            start = i = match.end()
        else:
            i += 1
    return [*parts, text[start:].strip()] if depth == 0 else None


def _union(sets: list[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """Join sets, and pieces that touch."""
    pieces = sorted(p for pieces in sets for p in pieces if _has_points(p))
    pieces.sort(key=lambda p: (p.low, not p.low_closed))
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and (piece.low < last.high or (piece.low == last.high and (piece.low_closed or last.high_closed))):
            high, closed = max((last.high, last.high_closed), (piece.high, piece.high_closed))
            merged[-1] = Piece(last.low, last.low_closed, high, closed)
        else:
            merged.append(piece)
    return tuple(merged)


def _has_points(p: Piece) -> bool:
    return p.low < p.high or (p.low == p.high and p.low_closed and p.high_closed and abs(p.low) != INFINITY)


def _intersection(sets: list[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    result = sets[0]
    for other in sets[1:]:
        result = _union([(_overlap(p, q),) for p in result for q in other])
    return result


def _overlap(p: Piece, q: Piece) -> Piece:
    low, low_open = max((p.low, not p.low_closed), (q.low, not q.low_closed))
    high, high_closed = min((p.high, p.high_closed), (q.high, q.high_closed))
    return Piece(low, not low_open, high, high_closed)


def _complement(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    result, low, closed = [], -INFINITY, False
    for piece in pieces:
        result.append((Piece(low, closed, piece.low, not piece.low_closed),))
        low, closed = piece.high, not piece.high_closed
    result.append((Piece(low, closed, INFINITY, False),))
    return _union(result)


def _comma(sets: list[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    common: tuple[Piece, ...] = _intersection(sets)
    return common or _union(sets)


Join = Callable[[list[tuple[Piece, ...]]], tuple[Piece, ...]]
