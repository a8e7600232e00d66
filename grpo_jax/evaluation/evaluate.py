"""A policy on problems: greedy, and n samples a problem; the denominator is always the problems asked for.

One path for training's held-out evaluation and for the command: a `Task` is problems with a way to make completions
and a way to judge them, `run_task` makes what is not known yet, `measures` turns verdicts into numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.evaluation.estimators import best_of_k, bootstrap, majority_at_k, mean_at_n, pass_at_k, weighted_vote
from grpo_jax.evaluation.judging import Judgement
from grpo_jax.evaluation.voting import classes
from grpo_jax.types import Problem

TOO_LONG = "the prompt is longer than the limit"


class Sampled(NamedTuple):
    """Completions of a batch of problems, on the host."""

    texts: list[str]  # [P*G], a group contiguous
    lengths: np.ndarray  # [P*G] tokens
    finished: np.ndarray  # [P*G] bool
    scores: np.ndarray | None = None  # [P*G], of a reward model


class Completion(NamedTuple):
    """One completion and what became of it; a line of the records."""

    index: int  # of the problem
    sample: int
    text: str
    length: int
    finished: bool
    answer: str | None
    grade: str  # right, wrong, ungradable
    reason: str = ""
    official: bool | None = None
    score: float | None = None  # of a reward model


Generate = Callable[[Any, np.ndarray], Sampled]  # a policy, and numbers of problems
Judge = Callable[[Sequence[Problem], list[str]], list[Judgement]]
Place = tuple[int, int]  # problem and sample


class Task(NamedTuple):
    """Problems to be solved, how completions are made, and how they are judged.

    `usable` are the numbers of the problems whose prompts fit; the others are asked for all the same, and wrong.
    """

    name: str
    problems: Sequence[Problem]
    usable: np.ndarray
    greedy: Generate
    sampled: Generate
    judge: Judge


class Graded(NamedTuple):
    """The verdicts on all problems: n completions each."""

    texts: list[list[str]]  # [problems][n]
    answers: list[list[str | None]]  # [problems][n], None where nothing could be read
    votes: list[list[str | None]]  # [problems][n], the class of equal answers that each belongs to
    right: np.ndarray  # [problems, n] bool; what could not be judged is not right
    unjudged: np.ndarray  # [problems, n] bool
    finished: np.ndarray  # [problems, n] bool
    lengths: np.ndarray  # [problems, n]
    official: np.ndarray | None = None  # [problems, n] bool, by the published rules, where there are any
    too_long: int = 0  # problems that were not asked, as their prompts do not fit
    scores: np.ndarray | None = None  # [problems, n], of a reward model, where there is one


def batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Indices 0..count-1 in batches of one size; the last is filled up with its first index, to be dropped."""
    for start in range(0, count, size):
        indices = np.arange(start, min(start + size, count))
        yield np.pad(indices, (0, size - len(indices)), constant_values=start)


def run_task(
    task: Task,
    generate: Generate,
    policy: Any,
    num_samples: int,
    *,
    batch_prompts: int,
    known: Mapping[Place, Completion] | None = None,
    keep: Callable[[list[Completion]], None] = lambda made: None,
    advance: Callable[[], None] = lambda: None,
) -> Graded:
    """Make and judge `num_samples` completions of every problem, in batches of one shape.

    What is `known` is not judged again and not kept again; a batch of which something is missing is made again as it
    was, since a sample's noise depends on its problem and its number alone. `keep` gets the new ones of each batch.
    What is known as too long a prompt, and fits now, is made like what is missing.
    """
    usable = set(map(int, task.usable))
    known = {place: one for place, one in (known or {}).items() if one.reason != TOO_LONG or place[0] not in usable}
    for i in range(len(task.problems)):
        if i not in usable:
            lost = [Completion(i, g, "", 0, False, None, "wrong", TOO_LONG) for g in range(num_samples)]
            _keep_new(lost, known, keep)
    for places in batches(len(task.usable), batch_prompts):
        real = [int(task.usable[place]) for place in dict.fromkeys(places.tolist())]
        if any((i, g) not in known for i in real for g in range(num_samples)):
            drawn = generate(policy, task.usable[places])
            _keep_new(_judged(task, real, drawn, num_samples, known), known, keep)
        advance()
    return graded([[known[i, g] for g in range(num_samples)] for i in range(len(task.problems))])


def _judged(
    task: Task, real: Sequence[int], drawn: Sampled, n: int, known: Mapping[Place, Completion]
) -> list[Completion]:
    """The completions of a batch that are not known yet; their problems are judged whole."""
    new = [p for p, i in enumerate(real) if any((i, g) not in known for g in range(n))]
    texts = [drawn.texts[p * n + g] for p in new for g in range(n)]
    judgements = iter(task.judge([task.problems[real[p]] for p in new], texts))
    made = []
    for p in new:
        for g in range(n):
            row = p * n + g
            what = (drawn.texts[row], int(drawn.lengths[row]), bool(drawn.finished[row]))
            score = None if drawn.scores is None else float(drawn.scores[row])
            made.append(Completion(real[p], g, *what, *next(judgements), score))
    return made


def _keep_new(
    made: Sequence[Completion], known: dict[Place, Completion], keep: Callable[[list[Completion]], None]
) -> None:
    new = [one for one in made if (one.index, one.sample) not in known]
    known.update({(one.index, one.sample): one for one in new})
    if new:
        keep(new)


def graded(rows: Sequence[Sequence[Completion]]) -> Graded:
    """The verdicts of completions [problems][n] as arrays, and the classes that they vote for."""

    def array(of: Callable[[Completion], Any], dtype: Any) -> np.ndarray:
        return np.array([[of(one) for one in row] for row in rows], dtype)

    right = array(lambda one: one.grade == "right", bool)
    answers = [[one.answer for one in row] for row in rows]
    official = array(lambda one: one.official is True, bool)
    scored = any(one.score is not None for row in rows for one in row)
    return Graded(
        texts=[[one.text for one in row] for row in rows],
        answers=answers,
        votes=[classes(*row) for row in zip(answers, right, strict=True)],
        right=right,
        unjudged=array(lambda one: one.grade == "ungradable", bool),
        finished=array(lambda one: one.finished, bool),
        lengths=array(lambda one: one.length, np.int64),
        official=official if any(one.official is not None for row in rows for one in row) else None,
        too_long=sum(row[0].reason == TOO_LONG for row in rows),
        scores=array(lambda one: one.score or 0.0, np.float64) if scored else None,  # none: a prompt that is too long
    )


def by_problem(
    greedy: Graded | None, sampled: Graded | None, ks: Sequence[int], scores: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Each metric's value on every problem [problems]: greedy, mean@n, pass@k and maj@k for each k.

    With `scores` [problems, n] of a reward model (default: the samples' own) also best@k and weighted@n. In maj@k all
    right answers of a problem vote together, wrong ones by their class, and a sample from which no answer could be read
    has no vote. What the published rules say is `official/greedy` and `official/mean@n`. There is no weighted@n of
    scores of which one is negative: a vote is worth its score, and these would turn it round.
    """
    found = {}
    if greedy is not None:
        found["greedy"] = greedy.right[:, 0].astype(float)
        found |= {} if greedy.official is None else {"official/greedy": greedy.official[:, 0].astype(float)}
    if sampled is None:
        return found
    n, scores = sampled.right.shape[1], sampled.scores if scores is None else scores
    found[f"mean@{n}"] = mean_at_n(sampled.right)
    found |= {} if sampled.official is None else {f"official/mean@{n}": mean_at_n(sampled.official)}
    for k in ks:
        found[f"pass@{k}"] = pass_at_k(sampled.right, k)
        found[f"maj@{k}"] = majority_at_k(sampled.votes, sampled.right, k)
        found |= {} if scores is None else {f"best@{k}": best_of_k(scores, sampled.right, k)}
    if scores is not None and np.min(scores) >= 0.0:
        found[f"weighted@{n}"] = weighted_vote(sampled.votes, scores, sampled.right)
    return found


def measures(values: Mapping[str, np.ndarray], *, seed: int) -> dict[str, dict[str, float]]:
    """The means over problems of `by_problem`, each with its 95 % bootstrap interval."""
    return {name: interval(row, seed=seed) for name, row in values.items()}


def interval(values: Any, *, seed: int) -> dict[str, float]:
    """The mean over problems with its 95 % bootstrap interval."""
    mean, low, high = bootstrap(np.asarray(values, float), seed=seed)
    return {"value": float(mean), "low": float(low), "high": float(high)}


def counts(found: Graded) -> dict[str, int]:
    """What became of the samples, apart from right and wrong; one sample may count under several names."""
    unanswered = sum(answer is None for row in found.answers for answer in row)
    return {
        "samples": int(found.right.size),
        "right": int(found.right.sum()),
        "ungradable": int(found.unjudged.sum()),
        "unanswered": unanswered,
        "truncated": int((~found.finished).sum()) - found.too_long * found.right.shape[1],
        "prompt too long": found.too_long * found.right.shape[1],
    }


def records(problems: Sequence[Problem], found: Graded) -> Iterator[dict[str, Any]]:
    """One JSON object a problem: question, reference answer, and what became of each sample."""
    for i, texts in enumerate(found.texts):
        problem = problems[i]
        samples = [
            {
                "text": text,
                "answer": found.answers[i][g],
                "right": bool(found.right[i, g]),
                "unjudged": bool(found.unjudged[i, g]),
                "finished": bool(found.finished[i, g]),
                "length": int(found.lengths[i, g]),
            }
            for g, text in enumerate(texts)
        ]
        yield {
            "id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "samples": samples,
        }
