"""From completions of a benchmark to judgements: the answer, its grade, and what the published rules say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from grpo_jax.evaluation.benchmark import Benchmark, Style
from grpo_jax.rewards.equivalent import RIGHT, UNGRADABLE, WRONG, Grade, Verdict, grade_all
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.rewards.workers import Workers
from grpo_jax.types import Problem


class Judgement(NamedTuple):
    """What became of one completion."""

    answer: str | None  # None: none could be read
    grade: str  # right, wrong, ungradable
    reason: str = ""
    official: bool | None = None  # by DeepSeek-Math's published rules; None: there are none for it


def judge_benchmark(
    benchmark: Benchmark,
    style: Style,
    stop: Sequence[str],
    problems: Sequence[Problem],
    texts: Sequence[str],
    workers: Workers,
    read: Callable[[Sequence[str]], list[str | None]] = lambda texts: [extract_answer(text) for text in texts],
) -> list[Judgement]:
    """Judge the completions `texts` [P*n] of `problems` [P], a group contiguous.

    What follows the first stop string is no part of a completion: a base model goes on to ask the next question. An
    answer of several parts is right if all are; ungradable if one is and none is wrong. `read` finds the answers; of
    the style `program` the published rules judge them, of all others the text.
    """
    n = len(texts) // len(problems)
    asked = [problem for problem in problems for _ in range(n)]
    texts = [before_stop(text, stop) for text in texts]
    answers = read(texts)
    pairs = [_pairs(benchmark, answer, problem.answer) for answer, problem in zip(answers, asked, strict=True)]
    verdicts = iter(grade_all([pair for some in pairs for pair in some], workers))
    rule = benchmark.official.get("zero_shot" if style == "tool" else style)
    found = []
    for text, answer, problem, some in zip(texts, answers, asked, pairs, strict=True):
        verdict = _together([next(verdicts) for _ in some])
        says = rule((answer or "") if style == "program" else text, problem) if rule else None
        found.append(Judgement(answer, verdict.grade.value, verdict.reason, says))
    return found


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    return text[: min((place for string in stop if (place := text.find(string)) >= 0), default=len(text))]


def _pairs(benchmark: Benchmark, answer: str | None, gold: str) -> list[tuple[str | None, str]]:
    """(prediction, reference) pairs; where their numbers differ, missing predictions are None, and so are the extra."""
    golds = benchmark.parts(gold, gold)
    given: list[str | None] = [None] * len(golds) if answer is None else list(benchmark.parts(answer, gold))
    if len(given) != len(golds):
        given = [None] * len(golds)
    return list(zip(given, golds, strict=True))


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict of several: wrong before ungradable before right."""
    by_grade: dict[Grade, Verdict] = {verdict.grade: verdict for verdict in reversed(verdicts)}
    return next(by_grade[grade] for grade in (WRONG, UNGRADABLE, RIGHT) if grade in by_grade)
