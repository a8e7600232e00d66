r"""The final answer of a completion.

The first rule that finds something decides:

1. the last non-empty `\boxed{...}`; several different ones in its paragraph: no answer (boxing every candidate is
   hedging);
2. what follows the last `####`;
3. what follows the last "the answer is", "final answer:", "答案是" and the like;
4. the last line, if it is a plain number;
5. the last number.

Text before a closing `</think>` is not searched. All rules take linear time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from grpo_jax.rewards.normal import normalise
from grpo_jax.rewards.quantity import read_quantity

MAX_TEXT = 200_000  # characters from the end that are searched
MAX_BOX = 10_000  # characters in a box

_BRACE = re.compile(r"\\\\|\\[{}]|[{}]")  # also the escaped ones, to pass over them
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s?(?=[{0-9a-zA-Z-])")
MARKED = re.compile(
    r"(?:answer\*{0,2}\s?(?:is|are|was|=|:|：)|(?:^|\n)\s?\*{0,2}A:|(?:option|choice)\*{0,2}\s?(?:is|:)|(?:^|\n)\s?答[:：]|故选\s?[:：]?|答案\s?(?:是|为|應為|应为|：|:))\*{0,2}:?",
    re.IGNORECASE,
)
_MATH = re.compile(r"\$\$([^$]{1,4000})\$\$|\$([^$\n]{1,4000})\$|\\\(([^\n]{1,4000}?)\\\)|\\\[([^\n]{1,4000}?)\\\]")
_SENTENCE_END = re.compile(r"\.(?=\s|$)|。|\n")
_FIGURE = r"(?:(?:[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
_FIGURE += r"(?:\s?/\s?[0-9]+(?![0-9.]))?(?:\s?\\?%)?"
# A minus belongs to the number unless it stands between two things: 5, -3 but 8-3.
_NUMBER = re.compile(rf"(?<![0-9a-zA-Z)\]}}])-?(?:US|HK)?\\?\$?-?{_FIGURE}|{_FIGURE}")
_FORMULA = re.compile(r"[\\^_=()\[\]{}]|[0-9][a-zA-Z]|[a-zA-Z][0-9]")  # without delimiters: 2\sqrt{3}
_NEGATED = re.compile(r"\bnot\b|n't\b|不是|并非", re.IGNORECASE)
_FOLLOWED = re.compile(
    r"\s+(?!(?:sqrt|sin|cos|tan|log|ln|exp|pi|times|over|plus|minus|mod|hundred|thousand|million|billion)\b)[a-zA-Z]{2}"
)
_JOINED = re.compile(r"\s*(?:[,;，；、和或]|and\b|or\b|to\b|-|–|/|\*|\+|=|\^|:|x\b)")


class Extraction(NamedTuple):
    """An answer and the rule that found it; None and the reason why there is none."""

    answer: str | None
    rule: str


def extract_answer(completion: str) -> str | None:
    r"""Find the final answer of a completion, e.g. "18" in "... so she makes $\boxed{18}$."; None: there is none."""
    return extract(completion).answer


def extract(completion: str) -> Extraction:
    """Find the final answer of a completion and say by which rule of this module."""
    text = completion[-MAX_TEXT:].rpartition("</think>")[2]
    for rule in (_from_box, _after_hashes, _after_phrase, _from_last_line, _from_last_number):
        found = rule(text)
        if found is not None:
            return found
    return Extraction(None, "no answer found")


def find_boxes(text: str) -> list[tuple[int, str]]:
    r"""Find all complete `\boxed{...}` of a text as (start, content), in order; no answer is above MAX_BOX long."""
    starts = {match.end(): match.start() for match in _BOX.finditer(text)}
    boxes, open_braces = [], []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            open_braces.append(match.start())
        elif match[0] == "}" and open_braces:
            opened = open_braces.pop()
            if opened in starts and match.start() - opened <= MAX_BOX:
                boxes.append((starts[opened], text[opened + 1 : match.start()]))
    bare = [(start, text[end]) for end, start in starts.items() if text[end] not in "{-"]  # \boxed 5
    return sorted(boxes + bare)


def _from_box(text: str) -> Extraction | None:
    boxes = [(start, content.strip()) for start, content in find_boxes(text) if content.strip()]
    if not boxes:
        return None
    last, answer = boxes[-1]
    paragraph = max(text.rfind("\n\n", 0, last), text.rfind("\n\r\n", 0, last))
    for start, content in reversed(boxes):
        if start < paragraph:
            break
        if "\\boxed" not in content and _key(content) != _key(answer):
            return Extraction(None, "different boxes in the final paragraph")
    return Extraction(answer, "last box")


def _key(answer: str) -> object:
    text = normalise(answer)
    quantity = read_quantity(text)
    return text if quantity is None else (quantity.value, quantity.percent)


def _after_hashes(text: str) -> Extraction | None:
    _, marker, rest = text.rpartition("####")
    line = rest.lstrip("#").strip().split("\n", 1)[0].strip()
    return Extraction(line, "after ####") if marker and line else None


def _after_phrase(text: str) -> Extraction | None:
    last = _last(MARKED, text)
    if last is None:
        return None
    clause = text[last.end() :].strip()[:4000]
    math = _MATH.match(clause)
    if math is None:
        end = _SENTENCE_END.search(clause)
        clause = (clause[: end.start()] if end else clause).strip(" *:：\"'")
    answer = _from_clause(clause)
    return Extraction(answer, "after 'the answer is'") if answer else None


def _from_clause(clause: str) -> str | None:
    """Take the answer out of "that she makes $18$ dollars": the only formula, the only or leading number, or all."""
    formulas = list(_MATH.finditer(clause[:1000]))
    if formulas:
        first = formulas[0]
        in_list = re.search(r"[;,，；、]\s*$", clause[: first.start()]) or _JOINED.match(clause, first.end())
        alone = len(formulas) == 1 or first.start() == 0
        return next(filter(None, first.groups())) if alone and not in_list else clause
    if read_quantity(normalise(clause)) is not None or _NEGATED.search(clause):
        return clause
    numbers = list(_NUMBER.finditer(clause))
    end = numbers[0].end() if numbers else 0
    leads = numbers and numbers[0].start() == 0 and _FOLLOWED.match(clause, end) and not _JOINED.match(clause, end)
    if leads or (len(numbers) == 1 and not _FORMULA.search(clause)):
        return numbers[0][0].strip()
    return clause or None


def only_formula(text: str) -> str | None:
    """Take the only formula out of a sentence, "Therefore, $x=83$ is the answer."; None: it is no such sentence."""
    if text.count("$") != 2 or len(text) > 1000:
        return None
    match = _MATH.search(text)
    around = text[: match.start()] + text[match.end() :] if match else ""
    return (
        match[2] if match and len(re.findall(r"[a-zA-Z]{2,}", around)) >= 2 and not re.search("[0-9]", around) else None
    )


def _from_last_line(text: str) -> Extraction | None:
    line = text.rstrip()[-400:].rpartition("\n")[2].strip()
    return Extraction(line.rstrip("."), "last line") if read_quantity(normalise(line)) is not None else None


def _from_last_number(text: str) -> Extraction | None:
    last = _last(_NUMBER, text)
    return Extraction(last[0].strip(), "last number") if last else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    return match
