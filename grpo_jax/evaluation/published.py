"""DeepSeek-Math's published rules by benchmark: completion and problem in, right or not.

The rules themselves, known errors included, are in `rewards/official.py` and `rewards/official_extract.py`; numbers
made with them compare with the paper's (arXiv:2402.03300, tables 2 and 5).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from grpo_jax.rewards import official, official_extract
from grpo_jax.types import Problem

_AND = re.compile(r"\\text\{\s*and\s*\}")

Rule = Callable[[str, Problem], bool]


def last(completion: str, problem: Problem) -> bool:
    """Zero-shot sets with one answer: the last candidate counts."""
    return official.same(official_extract.last_answer(completion), official.normalise(problem.answer))


def value(computed: str, problem: Problem) -> bool:
    """What a program computed, as text, against the reference."""
    return official.same(official.normalise(computed), official.normalise(problem.answer))


def gsm8k_few_shot(completion: str, problem: Problem) -> bool:
    """The last number before the next question."""
    return official.same(official_extract.gsm8k_few_shot(completion), problem.answer)


def cmath_few_shot(completion: str, problem: Problem) -> bool:
    """The last number of the line after the first 答案是."""
    return official.same(official_extract.cmath_few_shot(completion), problem.answer)


def math(completion: str, problem: Problem) -> bool:
    """All boxes of the completion against all of the reference solution; of a list each item is one."""
    golds, given = (
        [item for answer in official_extract.answers(text) for item in _items(answer, problem.question)]
        for text in (problem.solution or f"\\boxed{{{problem.answer}}}", completion)
    )
    return official.same_lists(given, golds)


def _items(answer: str, question: str) -> list[str]:
    if "separated by commas" in question and not any(bracket in answer for bracket in "()[]"):
        return [item.strip() for item in answer.split(",")]
    return [item.strip() for item in _AND.split(answer)]


def math_few_shot(completion: str, problem: Problem) -> bool:
    """The same, before the next problem."""
    return math(completion.split("Problem:")[0], problem)


def choice(completion: str, problem: Problem) -> bool:
    """The letter of the first "the final answer is (X)"."""
    return official_extract.choice(completion) == problem.answer


def cloze(completion: str, problem: Problem) -> bool:
    """The blanks in their order."""
    golds = [official.normalise(part) for part in problem.answer.split(";")]
    given = official_extract.cloze(completion, len(golds))
    return len(given) == len(golds) and all(map(official.same, given, golds))


def mathqa(completion: str, problem: Problem) -> bool:
    """One letter against the label, which may have several."""
    return official_extract.mathqa(completion) == problem.answer
