r"""Answers with parts: lists, sets, tuples, intervals, choices, words, "x = ..."; compared part by part.

Each rule decides only what it can be sure of and otherwise says None, "not decided": then `algebra.py` and
`symbolic.py` are asked.
Policy in `policy.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from grpo_jax.rewards.normal import normalise
from grpo_jax.rewards.quantity import equal, read_quantity
from grpo_jax.rewards.words import read_words

MAX_ITEMS = 64  # of lists that are compared
MAX_SIGNED = 400  # characters of answers with \pm
MAX_DEPTH = 4  # of lists in lists


class Items(NamedTuple):
    """A list with its brackets, ("", "") for a bare one."""

    opening: str
    items: tuple[str, ...]
    closing: str

    @property
    def ordered(self) -> bool:
        """Whether the order of the items matters."""
        return self.opening not in ("", r"\{")


Decide = Callable[[str, str], bool | None]
Leaf = Callable[[str, str, Decide], bool | None]

_SEPARATOR = re.compile(r"[,;、]|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|或者?|和|且")
_ASSIGNMENT = re.compile(
    r"(?P<name>\([a-z](?:,[a-z])+\)(?==)|\\?[a-zA-Z][a-zA-Z]{0,9}(?:_[0-9a-zA-Z])?(?:\^\{-1\}|'{1,3})?(?:\([a-z]\))?)"
    r"(?:=|\\in |\\in(?=[\[({\\]))"
)
_CHOICE = re.compile(r"(?:(?i:option|choice|answer) ?|选项? ?)?\(?([A-J])[).:]?")
_CHOICE_AND_TEXT = re.compile(r"\(?([A-J])[).:].*", re.DOTALL)
_RATIO = re.compile(r"[^:]{1,40}(?::[^:]{1,40}){1,5}")
_TIME = re.compile(r"[0-9]{1,2}:[0-9]{2}")
_INEQUALITY = re.compile(r"[<>]|\\[lg]eq|\\ne ")
_POINT = re.compile(r"[A-Z](?=\([^()]*,[^()]*\)$)")
_CIRCLED = re.compile(r"\\textcircled\{?([0-9]{1,2})\}?")
_CHOICES = re.compile(r"[A-H]{2,6}")
_BASE = re.compile(r"(?P<digits>[0-9A-F]{1,60})_(?:\{(?P<braced>[0-9]{1,2})\}|(?P<bare>[0-9]))(?![0-9])")


def decide(prediction: str, gold: str, depth: int = 0, leaf: Leaf | None = None) -> bool | None:
    """Whether two normalised answers are one; None: these rules cannot tell.

    The reference's kind decides what may match it, so the order of the arguments matters.

    Args:
        leaf: asked where these rules cannot tell, with a function for parts of its own.
    """
    if prediction == gold:
        return True
    if bool(_POINT.match(prediction)) != bool(_POINT.match(gold)):
        prediction, gold = _POINT.sub("", prediction), _POINT.sub("", gold)  # the point A(1,2) is (1,2)
    if gold == "" or prediction == "" or depth > MAX_DEPTH:
        return None

    def decide_part(a: str, b: str) -> bool | None:
        return decide(a, b, depth + 1, leaf)

    for rule in (_by_choice, _by_number, _by_ratio, _by_words, _by_base):
        verdict = rule(prediction, gold)
        if verdict is not None:
            return verdict
    for rule in (_by_signs, _by_assignment, _by_items):
        verdict = rule(prediction, gold, decide_part)
        if verdict is not None:
            return verdict
    return leaf(prediction, gold, decide_part) if leaf else None


def _by_signs(prediction: str, gold: str, decide: Decide) -> bool | None:
    r"""Read \pm as two values: x = \pm 2 is x = 2, x = -2."""
    if r"\pm" not in prediction + gold or len(prediction + gold) > MAX_SIGNED:
        return None
    return decide(_with_both_signs(prediction), _with_both_signs(gold))


def _with_both_signs(text: str) -> str:
    if r"\pm" not in text:
        return text
    found = read_items(text)
    items = found.items if found and found.opening in ("", r"\{") else (text,)
    return ",".join(
        form
        for item in items
        for form in ((_signed(item, "+", "-"), _signed(item, "-", "+")) if r"\pm" in item else (item,))
    )


def _signed(text: str, plus: str, minus: str) -> str:
    text = re.sub(r"\\pm ?", plus, re.sub(r"\\mp ?", minus, text))
    return re.sub(r"(?<![0-9a-zA-Z)\]}])\+", "", text)


def _by_choice(prediction: str, gold: str) -> bool | None:
    wanted = _CHOICE.fullmatch(gold)
    if wanted:
        given = _CHOICE.fullmatch(prediction) or _CHOICE_AND_TEXT.fullmatch(prediction)
        return prediction.strip("()") == wanted[1].lower() or bool(given and given[1] == wanted[1])
    with_text = _CHOICE_AND_TEXT.fullmatch(gold)
    if with_text and (given := _CHOICE.fullmatch(prediction) or _CHOICE_AND_TEXT.fullmatch(prediction)):
        return given[1] == with_text[1]
    circled = [_CIRCLED.findall(text) for text in (prediction, gold)]
    if circled[1] and not _CIRCLED.sub("", gold).strip(" ,"):
        return sorted(circled[0]) == sorted(circled[1]) and not _CIRCLED.sub("", prediction).strip(" ,")
    if _CHOICES.fullmatch(gold) and list(gold) == sorted(set(gold)):
        letters = re.sub(r"[^A-Za-z]|and", "", prediction)
        return sorted(letters) == list(gold) if re.fullmatch(r"[A-H]+", letters) else None
    return None


def _by_number(prediction: str, gold: str) -> bool | None:
    wanted = read_quantity(gold)
    if wanted is None:
        return None
    given = read_quantity(prediction)
    if given is not None:
        return equal(given, wanted)
    items = read_items(prediction)
    if items is not None and len(items.items) > 1:
        return False
    is_assignment = "=" in prediction or r"\in" in prediction
    return False if not is_assignment and read_words(prediction) else None


def _by_words(prediction: str, gold: str) -> bool | None:
    wanted, given = read_words(gold), read_words(prediction)
    if wanted is None or given is None or gold.startswith(r"\{"):
        return None  # a set of words has no order
    return wanted == given


def _by_base(prediction: str, gold: str) -> bool | None:
    wanted, given = _BASE.fullmatch(gold), _BASE.fullmatch(prediction)
    if wanted and given:
        bases = [match["braced"] or match["bare"] for match in (wanted, given)]
        return bases[0] == bases[1] and wanted["digits"] == given["digits"]
    if wanted and re.fullmatch(r"[0-9A-F]+", prediction):
        return wanted["digits"] == prediction
    if given and re.fullmatch(r"[0-9A-F]+", gold):
        return given["digits"] == gold
    return None


def _by_assignment(prediction: str, gold: str, decide: Decide) -> bool | None:
    wanted, given = _ASSIGNMENT.match(gold), _ASSIGNMENT.match(prediction)
    if not (wanted or given):
        return None
    if given and given["name"].startswith("(") and wanted and not wanted["name"].startswith("("):
        return decide(prediction[given.end() :], gold) if _names(gold) == given["name"][1:-1].split(",") else False
    right_gold = gold[wanted.end() :] if wanted else gold
    right_prediction = prediction[given.end() :] if given else prediction
    if re.search(r"=|\\leq|\\geq|\\ne |[<>]", right_gold + right_prediction):
        return None
    if wanted and given and wanted["name"] != given["name"] and not _are_one_function(wanted["name"], given["name"]):
        return None
    return decide(right_prediction, right_gold)


def _are_one_function(a: str, b: str) -> bool:
    """Whether y and f(x) name the same."""
    return "y" in (a, b) and bool(re.fullmatch(r"[fgh]\(x\)", a if b == "y" else b))


def _names(text: str) -> list[str]:
    """Return the names of a list "a = 1, b = 2"."""
    found = read_items(text)
    return [match["name"] for item in (found.items if found else ()) if (match := _ASSIGNMENT.match(item))]


def read_items(text: str) -> Items | None:
    r"""Split a normalised list, set, tuple or interval at its top-level separators; None: it is no list."""
    opening, closing, inner = "", "", text
    if text.startswith(r"\{") and re.search(r"[|:]|\\in[^f]", text[:24]):
        return None  # {x | x > 1}
    for left, right in ((("(", "["), (")", "]")), ((r"\{",), (r"\}",))):
        if text.startswith(left) and text.endswith(right):
            inner = text[len(left[0]) : -len(right[0])]
            opening, closing = text[: len(left[0])], text[-len(right[0]) :]
            break
    parts = _split(inner)
    if parts is None and opening:
        # "(1,2),(3,4)" starts and ends with brackets that are not one pair.
        opening, closing = "", ""
        parts = _split(text)
    if parts is None or (len(parts) < 2 and opening != r"\{"):
        return None
    return Items(opening, tuple(normalise(part) for part in parts), closing)


def _split(text: str) -> list[str] | None:
    """Cut at separators outside all brackets; None: the brackets do not match."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        character = text[i]
        if character == "\\" and text[i : i + 2] not in (r"\{", r"\}"):
            i += 2
            continue
        if character == "\\":
            i += 1
            character = text[i]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0 and (match := _SEPARATOR.match(text, i)):
            if not _is_thousands(text, i):
                parts.append(text[start:i])
                start = match.end()
            i = match.end() - 1
        i += 1
    if depth != 0:
        return None
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def _is_thousands(text: str, comma: int) -> bool:
    """Whether a bare comma stands between thousands: 1,000 but not 1,00."""
    return bool(
        text[comma] == ","
        and re.search(r"(?<![0-9.])[0-9]{1,3}(?:,[0-9]{3})*$", text[max(0, comma - 24) : comma])
        and re.match(r"[0-9]{3}(?![0-9])", text[comma + 1 : comma + 5])
    )


def _by_items(prediction: str, gold: str, decide: Decide) -> bool | None:
    wanted, given = read_items(gold), read_items(prediction)
    if wanted is None or given is None or max(len(wanted.items), len(given.items)) > MAX_ITEMS:
        return None
    if wanted.opening == "" and (given.opening, given.closing) == ("(", ")") and _are_named(wanted.items):
        return len(wanted.items) == len(given.items) and _all(map(decide, given.items, wanted.items))
    if wanted.opening in ("", r"\{") and _are_named(wanted.items) and len({*_names(gold)}) > 1:
        named = [bool(_ASSIGNMENT.match(item)) for item in given.items]
        if not any(named):  # 1, 2 for a = 1, b = 2
            ordered = given.opening != r"\{" and len(wanted.items) == len(given.items)
            return ordered and _all(map(decide, given.items, wanted.items))
    if any(_INEQUALITY.search(item) for item in wanted.items) != any(map(_INEQUALITY.search, given.items)):
        return None
    in_words = wanted.opening == given.opening == "" and any(map(read_words, wanted.items))
    if not wanted.ordered and not given.ordered and not in_words:
        if wanted.opening == given.opening == r"\{":
            return _same_set(given.items, wanted.items, decide)
        return _same_list(given.items, wanted.items, decide)
    if wanted.opening and given.opening:
        # Two tuples or intervals, or one of them and a set in braces.
        same_kind = (wanted.opening, wanted.closing) == (given.opening, given.closing)
        if not same_kind or len(wanted.items) != len(given.items):
            return False
    elif len(wanted.items) != len(given.items):
        return False
    elif (wanted.opening, wanted.closing) != ("(", ")") and not in_words:
        return None
    return _all(decide(a, b) for a, b in zip(given.items, wanted.items, strict=True))


def _are_named(items: tuple[str, ...]) -> bool:
    """Whether items are "x = 1", "y = 2", each of another letter, in the order of the alphabet."""
    names = [match["name"] for item in items if (match := _ASSIGNMENT.match(item))]
    return len(names) == len(items) and names == sorted(set(names))


def _all(verdicts) -> bool | None:
    verdicts = list(verdicts)
    if any(verdict is False for verdict in verdicts):
        return False
    return True if all(verdicts) else None


def _same_set(given: tuple[str, ...], wanted: tuple[str, ...], decide: Decide) -> bool | None:
    """Whether each item of one is in the other."""
    table = [[decide(a, b) for b in wanted] for a in given]
    rows = [_any(row) for row in table]
    columns = [_any(column) for column in zip(*table, strict=True)]
    return _all(rows + columns)


def _same_list(given: tuple[str, ...], wanted: tuple[str, ...], decide: Decide) -> bool | None:
    """Whether two lists are one in some order, each item as often."""
    if len(given) != len(wanted):
        return False
    rest, undecided = list(wanted), False
    for item in given:
        verdicts = [decide(item, other) for other in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        elif None in verdicts:
            undecided = True
        else:
            return False
    return None if undecided else True


def _by_ratio(prediction: str, gold: str) -> bool | None:
    """Judge 2:4 for 1:2; a time of day, 4:30, is compared figure by figure."""
    if ":" in gold:
        prediction = prediction.replace(" to ", ":")
    sides = [text.split(":") for text in (prediction, gold)]
    if len(sides[1]) < 2 or not all(map(_RATIO.fullmatch, (prediction, gold))):
        return None
    values = [[quantity.value if (quantity := read_quantity(side)) else None for side in part] for part in sides]
    if None in values[0] + values[1] or len(values[0]) != len(values[1]) or 0 in values[1]:
        return None if None in values[0] + values[1] else values[0] == values[1]
    if _TIME.fullmatch(gold):
        return values[0] == values[1]
    return len({a / b for a, b in zip(*values, strict=True)}) == 1


def _any(verdicts) -> bool | None:
    verdicts = list(verdicts)
    if any(verdicts):
        return True
    return None if None in verdicts else False
