r"""Where DeepSeek-Math's published evaluation looks for the answer, benchmark by benchmark, with its known errors.

Written from the description of the rules. Kept though wrong: "1,000." ends as "000.", "3/4 is the result" as 4, "the
answer is 7 apples" as "7apples", "the final answer is an apple" chooses A.
"""

from __future__ import annotations

import re

from grpo_jax.rewards import official

MAX_TEXT = 200_000  # characters from the end that are searched

_LAST_NUMBER = re.compile(r"-?[0-9]*\.?[0-9]+")
_FEW_SHOT_NUMBER = re.compile(r"-?[0-9]+\.?[0-9]*")
_LETTER = re.compile(r"the final answer is \(?([a-d])\)?", re.IGNORECASE)
_HOPE = re.compile(r"final answer is (.*)\. I hope it is correct\.", re.IGNORECASE | re.DOTALL)
_OUTPUT = re.compile(r"```output\n(.*?)```", re.DOTALL)


def answers(completion: str) -> list[str]:
    r"""Return the candidates of a zero-shot completion, normalised: of single-answer sets the last one counts."""
    text = completion[-MAX_TEXT:]
    return [official.normalise(_first_line(found)) for found in _candidates(text) if found.strip()]


def last_answer(completion: str) -> str:
    """Return the answer of a zero-shot GSM8K, MGSM or CMATH completion, or ""."""
    return (answers(completion) or [""])[-1]


def _candidates(text: str) -> list[str]:
    start = text.find("final answer is $")
    end = text.find("$. I hope", start)
    if start >= 0 and end >= 0:
        return [text[start + len("final answer is $") : end]]
    if "boxed" in text:
        return _boxes(text)
    if "he answer is" in text:
        return [text.rpartition("he answer is")[2]]
    outputs = _OUTPUT.findall(text)
    if outputs:
        return [outputs[-1].strip().split("\n")[-1]]
    numbers = _LAST_NUMBER.findall(text.replace(",", ""))
    return numbers[-1:]


def _boxes(text: str) -> list[str]:
    """Return what stands in the braces after each "boxed", in one pass; an open one has nothing."""
    starts = {match.end() - 1 for match in re.finditer(r"(?:boxed|fbox)\{", text)}
    found, opened = [], []
    for match in re.finditer(r"[{}]", text):
        if match[0] == "{":
            opened.append(match.start())
        elif opened and (start := opened.pop()) in starts:
            found.append((start, text[start + 1 : match.start()]))
    return [content for _, content in sorted(found)]


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0].lstrip(":").rstrip("./ ").strip()


def gsm8k_few_shot(completion: str) -> str:
    """Return the last number before the next question, as it stands; commas cut it."""
    numbers = _FEW_SHOT_NUMBER.findall(completion[:MAX_TEXT].split("Q: ")[0])
    return numbers[-1] if numbers else ""


def cmath_few_shot(completion: str) -> str:
    """Return the last number of the line after the first 答案是, or what zero-shot finds."""
    text = completion[:MAX_TEXT].split("问题：")[0]
    if "答案是" not in text:
        return last_answer(text)
    numbers = _FEW_SHOT_NUMBER.findall(text.split("答案是", 1)[1].strip().split("\n")[0])
    return numbers[-1] if numbers else ""


def choice(completion: str) -> str:
    """Return the letter of the first "the final answer is (X)" of a problem, in upper case (SAT, MMLU-STEM)."""
    match = _LETTER.search(completion[:MAX_TEXT].split("Problem:")[0])
    return match[1].upper() if match else ""


def minerva(completion: str) -> str:
    """Return X of "final answer is X. I hope it is correct." (OCW)."""
    match = _HOPE.search(completion[:20_000])
    return match[1].strip() if match else ""


def cloze(completion: str, size: int) -> list[str]:
    """Return the last `size` parts of the line after the first 答案是, cut at semicolons and commas (Gaokao cloze).

    They are not normalised, and only dollar signs at the ends of the line are removed: "$5$;$10$" is "5$" and "$10".
    """
    line = _named_line(completion).strip("$")
    parts, depth, start = [], 0, 0
    for i, character in enumerate(line):
        if character == ";" or (character == "," and depth == 0):
            parts.append(line[start:i].strip())
            start, depth = i + 1, 0
        else:
            depth += (character in "([{") - (character in ")]}")
    return list(dict.fromkeys([*parts, line[start:].strip()]))[-size:] if line else []


def mathqa(completion: str) -> str:
    """Return the letter among A-D whose first occurrence in the line after 答案是 is the latest (Gaokao)."""
    line = _named_line(completion)
    found = {letter: line.find(letter) for letter in "ABCD" if letter in line}
    return max(found, key=found.get) if found else ""


def _named_line(completion: str) -> str:
    """The line after the first 答案是, before the next question; "" without one."""
    rest = completion[:MAX_TEXT].split("问题 ")[0].partition("答案是")[2]
    return rest.strip().split("\n")[0].strip()
