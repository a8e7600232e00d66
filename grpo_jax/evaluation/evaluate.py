"""A policy on held-out problems: greedy, and n samples a problem; the denominator is always the problems asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.evaluation.estimators import bootstrap, majority_at_k, mean_at_n, pass_at_k
from grpo_jax.types import Problem

# A reward above this is a right answer.
RIGHT = 0.5

# What all right answers of a problem are called when votes are counted: however written, they are one answer.
RIGHT_ANSWER = "\0right"


class Sampled(NamedTuple):
    """Completions of a batch of problems, on the host."""

    texts: list[str]  # [P*G], a group contiguous
    lengths: np.ndarray  # [P*G] tokens
    finished: np.ndarray  # [P*G] bool


class Graded(NamedTuple):
    """The verdicts on all problems: n completions each."""

    texts: list[list[str]]  # [problems][n]
    answers: list[list[str | None]]  # [problems][n], None where nothing could be read
    votes: list[list[str | None]]  # [problems][n], the class of equal answers that each belongs to
    right: np.ndarray  # [problems, n] bool; what could not be judged is not right
    unjudged: np.ndarray  # [problems, n] bool
    finished: np.ndarray  # [problems, n] bool
    lengths: np.ndarray  # [problems, n]


def batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Indices 0..count-1 in batches of one size; the last is filled up with its first index, to be dropped."""
    for start in range(0, count, size):
        indices = np.arange(start, min(start + size, count))
        yield np.pad(indices, (0, size - len(indices)), constant_values=start)


def grade_samples(
    problems: Sequence[Problem],
    num_samples: int,
    *,
    batch_prompts: int,
    sample: Callable[[np.ndarray], Sampled],
    judge: Callable[[Sequence[Problem], list[str]], np.ndarray],
    extract: Callable[[str], str | None],
    name_class: Callable[[str], str] = lambda answer: answer,
    advance: Callable[[], None] = lambda: None,
) -> Graded:
    """Sample and grade all problems in batches of one shape.

    `sample(indices)` gives `num_samples` completions for each index, `judge(problems, texts)` rewards [P, n] with NaN
    for "cannot judge", `extract(text)` the answer, and `name_class(answer)` the class with which it votes in maj@k.
    """
    texts, rewards, lengths, finished = [], [], [], []
    for indices in batches(len(problems), batch_prompts):
        real = len(np.unique(indices))
        drawn = sample(indices)
        texts += [drawn.texts[p * num_samples : (p + 1) * num_samples] for p in range(real)]
        chosen = [problems[int(i)] for i in indices[:real]]
        rewards.append(judge(chosen, drawn.texts[: real * num_samples]))
        lengths.append(drawn.lengths.reshape(-1, num_samples)[:real])
        finished.append(drawn.finished.reshape(-1, num_samples)[:real])
        advance()
    rewards = np.concatenate(rewards)
    answers = [[extract(text) for text in row] for row in texts]
    return Graded(
        texts=texts,
        answers=answers,
        votes=[[None if answer is None else name_class(answer) for answer in row] for row in answers],
        right=np.nan_to_num(rewards, nan=0.0) > RIGHT,
        unjudged=np.isnan(rewards),
        finished=np.concatenate(finished),
        lengths=np.concatenate(lengths),
    )


def measures(greedy: Graded, sampled: Graded, ks: Sequence[int], *, seed: int) -> dict[str, dict[str, float]]:
    """Accuracies with 95 % bootstrap intervals over problems: greedy, mean@n, and pass@k and maj@k for each k.

    In maj@k all right answers of a problem vote together, wrong ones by their class, and a sample from
    which no answer could be read has no vote.
    """
    n = sampled.right.shape[1]
    votes = [
        [RIGHT_ANSWER if ok else vote for vote, ok in zip(votes, right, strict=True)]
        for votes, right in zip(sampled.votes, sampled.right, strict=True)
    ]
    by_problem = {"greedy": greedy.right[:, 0].astype(float), f"mean@{n}": mean_at_n(sampled.right)}
    for k in ks:
        by_problem[f"pass@{k}"] = pass_at_k(sampled.right, k)
        by_problem[f"maj@{k}"] = majority_at_k(votes, sampled.right, k)
    return {name: interval(values, seed=seed) for name, values in by_problem.items()}


def interval(values: Any, *, seed: int) -> dict[str, float]:
    """The mean over problems with its 95 % bootstrap interval."""
    mean, low, high = bootstrap(np.asarray(values, float), seed=seed)
    return {"value": float(mean), "low": float(low), "high": float(high)}


def records(problems: Sequence[Problem], graded: Graded) -> Iterator[dict[str, Any]]:
    """One JSON object a problem: question, reference answer, and what became of each sample."""
    for i, texts in enumerate(graded.texts):
        problem = problems[i]
        samples = [
            {
                "text": text,
                "answer": graded.answers[i][g],
                "right": bool(graded.right[i, g]),
                "unjudged": bool(graded.unjudged[i, g]),
                "finished": bool(graded.finished[i, g]),
                "length": int(graded.lengths[i, g]),
            }
            for g, text in enumerate(texts)
        ]
        yield {
            "id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "samples": samples,
        }
