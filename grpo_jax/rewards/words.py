"""Answers in words: "Thursday", "no solution", "12 over 11"; compared word by word, never read as algebra.

A parser of formulas takes "listen" for a product of six letters, equal to "silent", and "more than 0" for 0.
"""

from __future__ import annotations

import re
from functools import lru_cache

from grpo_jax.rewards.units import UNITS

_COMMAND = re.compile(r"\\[a-zA-Z]+")
_JOINTS = re.compile(r"或者?|和|且")
_RUN = re.compile(r"[a-zA-Z]+|[\u4e00-\u9fff]+")
_TOKEN = re.compile(r"\\?[a-zA-Z]+|[\u4e00-\u9fff]+|[0-9]+(?:\.[0-9]+)?|\S")
_LETTERS_ONLY = re.compile(r"[a-zA-Z]+(?:[ '-][a-zA-Z]+)*")
_UNIT_WORDS = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
_TRAILING_UNITS = re.compile(
    rf"(?: ?(?<![a-zA-Z])(?:square|cubic|units?|per|degrees?|(?:{_UNIT_WORDS})s?)(?:\^[23])?(?![a-zA-Z])[ /.]*)+$"
)
_SHORT_WORDS = frozenset(
    """yes no odd even true false red both none dne mon tue sun am pm is not the or if and""".split()  # noqa: SIM905
)
_ARTICLES = frozenset(["the", "a", "an"])
_FUNCTIONS = frozenset(
    """sqrt cbrt sinh cosh tanh coth arcsin arccos arctan asin acos atan sech csch floor ceil frac cdot infty infinity
    theta alpha beta gamma delta sigma lambda omega kappa zeta iota epsilon times undefined cases
    matrix""".split()  # noqa: SIM905
)


@lru_cache(maxsize=512)
def read_words(text: str) -> tuple[str, ...] | None:
    """Split a normalised answer into words, figures and signs, if it has words in it; None: it is a formula."""
    if r"\begin" in text or not _has_words(_TRAILING_UNITS.sub("", text)):
        return None
    return tuple(word for word in map(_folded, _TOKEN.findall(text)) if word not in _ARTICLES)


def without_units(text: str) -> str:
    """Take away units of measurement at the end of a normalised answer."""
    return _TRAILING_UNITS.sub("", text)


def _has_words(text: str) -> bool:
    runs = _RUN.findall(_JOINTS.sub(" ", _COMMAND.sub(" ", text)))
    if any(_is_word(run) for run in runs):
        return True
    # Names and codes: CBF, Bb BB; a product of small letters, xyz, is none.
    return bool(_LETTERS_ONLY.fullmatch(text)) and any(len(run) > 1 and not run.islower() for run in runs)


def _is_word(run: str) -> bool:
    if not run.isascii() or run.lower() in _SHORT_WORDS:
        return True
    if len(run) < 4 or run.lower() in _FUNCTIONS:
        return False
    return len(run) > 4 or bool(re.search("[aeiou]", run.lower()))


def _folded(word: str) -> str:
    """Ignore case, but not in the middle of a word or in codes: "BbEe" and "Bb" are genotypes."""
    plain = word.isupper() or word[1:] == word[1:].lower()
    return word.casefold() if word.lower() in _SHORT_WORDS or (len(word) > 2 and plain) else word
