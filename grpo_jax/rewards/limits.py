r"""Static limits: what is refused before any parser sees it, because parsing or simplifying it may not end.

A refusal means "ungradable", never a guess. These limits are the first of two fences; the second is a process that is
killed, so they need not catch everything that is slow.
"""

from __future__ import annotations

import re

MAX_LENGTH = 1000  # characters
MAX_NESTING = 24  # of brackets
MAX_DIGIT_RUN = 80  # digits in a row
MAX_TOWER = 2  # exponents of exponents
MAX_COMMANDS = 120  # LaTeX commands
MAX_EXPONENT = 10_000  # of a plain power
MAX_FACTORIAL = 200

# "2 3" and "3 2", H2O: taken for products.
_SIDE_BY_SIDE = re.compile(r"(?<![_^0-9.])[0-9.]+ [0-9]+(?![0-9/])|(?<![\\a-zA-Z])[a-zA-Z]{1,2}[0-9]")
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|arcsin|arccos|arctan|log|exp|max|min|gcd|lcm|mod|sqrt|array|cases"
_WORD = re.compile(rf"(?<![\\a-zA-Z])(?!(?:{_FUNCTIONS})(?![a-zA-Z]))[a-zA-Z]{{3,}}")
_STRAY_PRIME = re.compile(r"(?<![a-zA-Z})\]'])'")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_DIGITS = re.compile(rf"[0-9]{{{MAX_DIGIT_RUN + 1},}}")
_EXPONENT = re.compile(r"(?:\^|\*\*)\s*\{?\s*[+-]?\s*([0-9]+)")
_CHAIN = re.compile(r"(?:\^[0-9a-zA-Z]+)+")  # unbraced: 2^2^2
_FACTORIAL = re.compile(r"([0-9]+)\s*!")
_NESTED_FACTORIAL = re.compile(r"![)}\]\s]*!")


def refusal(text: str) -> str | None:
    """Why `text` may not be parsed, in words; None: it may."""
    if len(text) > MAX_LENGTH:
        return f"{len(text)} characters, more than {MAX_LENGTH}"
    if _DIGITS.search(text):
        return f"more than {MAX_DIGIT_RUN} digits in a row"
    if len(_COMMAND.findall(text)) > MAX_COMMANDS:
        return f"more than {MAX_COMMANDS} commands"
    return _brackets(text) or _powers(text)


def misreading(text: str) -> str | None:
    """Why math-verify would read `text` as something else than it says, in words; None: it would not."""
    if not text.isascii():
        return "characters that are no LaTeX"
    if _SIDE_BY_SIDE.search(text):
        return "figures side by side, which a parser multiplies"
    if _STRAY_PRIME.search(text):
        return "a prime after no letter"
    if _WORD.search(text) and not text.startswith(r"\begin"):
        return "a word, whose letters a parser multiplies"
    return None


def _brackets(text: str) -> str | None:
    depth = deepest = 0
    for character in text.replace("\\\\", ""):
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    if deepest > MAX_NESTING or text.count("|") > MAX_NESTING or text.count(r"\left") > MAX_NESTING:
        return f"brackets nested deeper than {MAX_NESTING}"
    braces = re.sub(r"\\.", "", text, flags=re.DOTALL)
    if braces.count("{") != braces.count("}"):
        return "braces that do not match"
    return None


def _powers(text: str) -> str | None:
    if any(int(exponent) > MAX_EXPONENT for exponent in _EXPONENT.findall(text)):
        return f"an exponent above {MAX_EXPONENT}"
    if _tower(text) > MAX_TOWER:
        return f"a tower of more than {MAX_TOWER} exponents"
    if any(int(argument) > MAX_FACTORIAL for argument in _FACTORIAL.findall(text)):
        return f"a factorial of more than {MAX_FACTORIAL}"
    if _NESTED_FACTORIAL.search(text):
        return "a factorial of a factorial"
    return None


def _tower(text: str) -> int:
    """Count how deep exponents stand in exponents: 3 in `2^{2^{2^2}}` and in `2^2^2^2`."""
    text = re.sub(r"\s+", "", text).replace("**", "^")
    levels, deepest, previous = [0], 0, ""  # of the open groups: exponents around them
    for character in text:
        if character in "([{":
            levels.append(levels[-1] + (previous == "^"))
        elif character in ")]}" and len(levels) > 1:
            levels.pop()
        deepest = max(deepest, levels[-1] + (character == "^"))
        previous = character
    chains = (chain.count("^") for chain in _CHAIN.findall(text))
    return max(deepest, *chains, 0)
