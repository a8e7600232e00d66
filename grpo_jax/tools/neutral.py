"""Text of a program, made harmless for the prompt it goes back into."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# All but tab and newline; a terminal would obey some of them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MARK = "\ufffd"


def neutralise(text: str, special: Iterable[str]) -> str:
    """The text with a space after the first character of every special string in it, so that none is left.

    A tokenizer makes such a string, wherever it stands, into one token, and a program that prints it would speak as
    another turn. Control characters but tab and newline become U+FFFD.

    Args:
        text: output of a program.
        special: what may not stand in it: `special_strings(tokenizer)`, and "```" where a fence ends the output.
    """
    text = _CONTROL.sub(_MARK, text.replace("\r\n", "\n"))
    words = sorted({word for word in special if word.strip()}, key=len, reverse=True)
    if not words:
        return text
    pattern = re.compile("|".join(map(re.escape, words)))
    broken = pattern.sub(_broken, text)
    # A break may make another one (in "<<s>"): those lose their first character instead.
    while pattern.search(broken):
        broken = pattern.sub(lambda match: _MARK + match[0][1:], broken)
    return broken


def special_strings(tokenizer: Any) -> list[str]:
    """Every string that a tokenizer takes for one token as it stands, marked special or not (<think> often is not)."""
    added = tokenizer.get_added_vocab() if hasattr(tokenizer, "get_added_vocab") else {}
    return sorted({*added, *getattr(tokenizer, "all_special_tokens", ())})


def _broken(match: re.Match[str]) -> str:
    word = match[0]
    return f"{word[0]} {word[1:]}" if len(word) > 1 else _MARK
