"""Program of thought: a completion is a program, and its answer what the program computes (arXiv:2211.10435).

| prompt | program | answer |
|---|---|---|
| GSM8K's | the whole completion, which defines `solution` | the value of `solution()` |
| MATH's | of exactly two blocks the second, which imports, and the first | the variable `answer` |

The answer is Python's text of the value; of a list (sympy's solutions are one) its items, joined by commas. What the
program prints is none: it runs first, in silence. A program that fails or is not there has no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from grpo_jax.rewards.equivalent import MAX_LENGTH

FENCE = "```"
RESULT = "\n_value = {}\n"  # the last line of the program, not reached by one that fails
SHOW = "print(*(_value if isinstance(_value, (list, tuple, set)) else [_value]), sep=', ')"
FINE = ("ok", "truncated")  # how a program ends that did not fail

Ask = Callable[[str, Sequence[str]], "Future[Any]"]  # a program, and those that it goes on from


def program_of(text: str, result: str) -> str | None:
    """The program of a completion, with a last line that names its result; None: there is none."""
    if result == "answer":
        pieces = text.split(FENCE)
        return f"{pieces[3].strip()}\n{pieces[1].strip()}{RESULT.format(result)}" if len(pieces) == 5 else None
    return f"{text.strip()}{RESULT.format(result)}" if "def solution(" in text else None


def computed(texts: Sequence[str], result: str, ask: Ask) -> list[str | None]:
    """What the programs of completions compute, all of them run at once; None where there is no answer."""
    programs = [program_of(text, result) for text in texts]
    asked = {program: ask(SHOW, [program]) for program in dict.fromkeys(programs) if program is not None}
    found = {program: future.result() for program, future in asked.items()}
    return [None if program is None else _answer(found[program]) for program in programs]


def _answer(result: Any) -> str | None:
    text = result.text.strip()
    return text if result.status in FINE and text and len(text) <= MAX_LENGTH else None
