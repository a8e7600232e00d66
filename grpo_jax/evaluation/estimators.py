"""From n samples of each problem to pass@k, maj@k and mean@n, and how far to trust their means.

Each estimator gives one number a problem; `bootstrap` turns a row of them into a mean with an interval. All
are exact expectations over the k-subsets of the n samples, not averages over a few drawn ones. Float64.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 1 << 22  # numbers drawn at once by the bootstrap


class Interval(NamedTuple):
    """A mean over problems with a confidence interval."""

    mean: float
    low: float
    high: float


def mean_at_n(correct: ArrayLike) -> np.ndarray:
    """The share of right samples: `correct` [problems, n] bool -> [problems]."""
    return _samples(correct).mean(axis=1)


def pass_at_k(correct: ArrayLike, k: int) -> np.ndarray:
    """The probability that k of the n samples, drawn without replacement, hold a right one.

    `1 - C(n - c, k) / C(n, k)` for c right samples, computed as `1 - prod_{i = n-c+1 .. n} (1 - k / i)`;
    exactly 1 where n - c < k. `correct` [problems, n] bool -> [problems]. Raises ValueError unless
    1 <= k <= n.
    Source: arXiv:2107.03374, eq. 1 and figure 3.
    """
    correct = _samples(correct)
    n = correct.shape[1]
    _check_k("pass_at_k", k, n)
    factors = 1.0 - k / np.arange(n, 0, -1, dtype=np.float64)  # [n], of i = n, n-1, ..., 1
    # i never gets below k before the product has met its factor 0, so what follows does not matter.
    miss = np.concatenate([[1.0], np.cumprod(factors)])  # [n + 1], by the number of right samples
    return 1.0 - miss[correct.sum(axis=1)]


def majority_at_k(answers: Sequence[Sequence[Hashable | None]], correct: ArrayLike, k: int) -> np.ndarray:
    """The probability that the majority vote of k of the n samples, drawn without replacement, is right.

    `answers` [problems][n]: labels of equivalence classes, equal for samples whose answers mean the same;
    None for a sample without an answer, which is drawn like any other but never wins, even if all are None.
    `correct` [problems, n] bool: a class is right if any sample in it is. -> [problems].

    Ties: each of the classes with the most votes wins with the same probability, so the value is the
    expectation under a random tie-break. Raises ValueError unless 1 <= k <= n and both inputs have one shape.
    Source: arXiv:2402.03300, figure 7 (Maj@K); it does not state its tie rule.
    """
    correct = _samples(correct)
    if len(answers) != len(correct) or any(len(row) != correct.shape[1] for row in answers):
        lengths = sorted({len(row) for row in answers})
        raise ValueError(
            f"majority_at_k: answers are {len(answers)} problems with {lengths} samples, "
            f"correct is {list(correct.shape)}"
        )
    _check_k("majority_at_k", k, correct.shape[1])
    return np.array([_majority(row, right, k) for row, right in zip(answers, correct, strict=True)])


def majority_of_counts(counts: Sequence[int], winners: Sequence[int], unanswered: int, k: int) -> float:
    """`majority_at_k` of one problem with classes of these sizes; `winners` are the right classes' indices.

    The votes of the classes in a drawn k-subset are independent binomials (rate k / n), given that they add
    up to k. So for a class that wins with v votes, one table [ties, votes given], to which the other classes,
    cut off at v votes, are added in turn, holds all subsets at once. Cost: about n * k^2 / v for each v.
    """
    n = sum(counts) + unanswered
    _check_k("majority_of_counts", k, n)
    votes = [_binomial(size, k, n) for size in counts]  # of each class: P(x votes), x = 0 .. min(size, k)
    silent = _binomial(unanswered, k, n)
    total = 0.0
    for winner in winners:
        others = [v for i, v in enumerate(votes) if i != winner]
        total += sum(
            share * _win(others, silent, most, k - most) for most, share in enumerate(votes[winner]) if most and share
        )
    return min(total / _binomial(n, k, n)[k], 1.0)


def best_of_k(scores: ArrayLike, correct: ArrayLike, k: int) -> np.ndarray:
    """The probability that the best scored of k of the n samples, drawn without replacement, is right.

    With h samples above a score and s samples of just this score, one of these is chosen in
    `C(n - h, k) - C(n - h - s, k)` of the `C(n, k)` subsets; each of equals with the same probability. `scores`
    [problems, n] float, `correct` [problems, n] bool -> [problems]. Raises ValueError unless 1 <= k <= n, and for
    scores of another shape or that are not finite.
    Source: best-of-N of arXiv:2312.08935, section 3.3, as an exact expectation.
    """
    correct = _samples(correct)
    scores = _scores("best_of_k", scores, correct)
    _check_k("best_of_k", k, correct.shape[1])
    return np.array([_best(row, right, k) for row, right in zip(scores, correct, strict=True)])


def weighted_vote(answers: Sequence[Sequence[Hashable | None]], scores: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Whether the class with the largest sum of scores is right: `argmax_a sum_i 1[a_i = a] score_i`.

    `answers` [problems][n] as in `majority_at_k`, `scores` [problems, n] float (a reward model's; a vote is worth its
    score), `correct` [problems, n] bool -> [problems]. None never wins; of classes with equal sums each wins with the
    same probability. All n samples vote: there is no exact form for subsets. Raises ValueError for a negative score,
    with which the most votes would win least.
    Source: arXiv:2312.08935, eq. 6 (self-consistency with a verifier).
    """
    correct = _samples(correct)
    scores = _scores("weighted_vote", scores, correct)
    if (scores < 0.0).any():
        raise ValueError(f"weighted_vote: a score is {scores.min():g}, and none may be below 0; give probabilities")
    return np.array([_weighted(*row) for row in zip(answers, scores, correct, strict=True)])


def paired_p_value(before: ArrayLike, after: ArrayLike, *, seed: int, draws: int = 10_000) -> float:
    """The two-sided p-value of "both are equally good" from values of the same problems [problems].

    Under it the sign of each problem's difference is a coin: the share of `draws` random signs whose mean is at least
    as far from 0 as the one seen, (1 + hits) / (1 + draws). For right and wrong it is a randomised McNemar test.
    Equal inputs and seed give equal values. Raises ValueError if they are not of one length.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"paired_p_value: before is {list(before.shape)}, after is {list(after.shape)}")
    difference = (after - before)[after != before]
    if not difference.size:
        return 1.0
    generator, seen, hits = np.random.default_rng(seed), abs(difference.sum()), 0
    rows = max(1, CHUNK // len(difference))
    for start in range(0, draws, rows):
        signs = generator.integers(2, size=(min(rows, draws - start), len(difference)), dtype=np.int8) * 2.0 - 1.0
        hits += int((np.abs(signs @ difference) >= seen * (1 - 1e-12)).sum())
    return (1 + hits) / (1 + draws)


def bootstrap(values: ArrayLike, *, seed: int, resamples: int = 10_000, confidence: float = 0.95) -> Interval:
    """The mean over problems and its percentile bootstrap interval.

    `values` [problems]: one estimate a problem. Problems are drawn with replacement `resamples` times; low
    and high are the quantiles (1 - confidence) / 2 and 1 - (1 - confidence) / 2 of the means. The samples
    within a problem are taken as given, so the interval speaks of other problems of the same kind. Equal
    inputs and seed give equal intervals. Raises ValueError if there are no problems or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"bootstrap: needs finite values [problems], at least one; got {values!r}")
    generator, size = np.random.default_rng(seed), len(values)
    rows = max(1, CHUNK // size)
    means = [
        values[generator.integers(size, size=(min(rows, resamples - start), size))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def paired_bootstrap(
    before: ArrayLike, after: ArrayLike, *, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """The mean of `after - before` on the same problems [problems], with its interval as in `bootstrap`.

    Each draw takes both values of a problem, so what makes a problem hard or easy for both cancels out.
    Raises ValueError if they are not of one length.
    """
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.shape != after.shape:
        raise ValueError(
            f"paired_bootstrap: before is {list(before.shape)}, after is {list(after.shape)}; "
            "both must be of the same problems in the same order"
        )
    return bootstrap(after - before, seed=seed, resamples=resamples, confidence=confidence)


def _best(scores: np.ndarray, correct: np.ndarray, k: int) -> float:
    """`best_of_k` of one problem."""
    n, above, total = len(scores), 0, 0.0
    for score in np.unique(scores)[::-1]:
        equal = scores == score
        size = int(equal.sum())
        chosen = math.comb(n - above, k) - math.comb(n - above - size, k)
        total += chosen / math.comb(n, k) * float(correct[equal].mean())
        above += size
    return total


def _weighted(answers: Sequence[Hashable | None], scores: np.ndarray, correct: np.ndarray) -> float:
    """`weighted_vote` of one problem."""
    sums: dict[Hashable, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            sums.setdefault(answer, []).append(float(score))
    right = {answer for answer, is_right in zip(answers, correct, strict=True) if is_right}
    totals = {answer: math.fsum(values) for answer, values in sums.items()}
    best = [answer for answer, total in totals.items() if total == max(totals.values())]
    return sum(answer in right for answer in best) / len(best) if best else 0.0


def _scores(name: str, scores: ArrayLike, correct: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.shape != correct.shape or not np.isfinite(scores).all():
        raise ValueError(
            f"{name}: scores must be finite numbers of the shape {list(correct.shape)}, got {list(scores.shape)}"
        )
    return scores


def _majority(answers: Sequence[Hashable | None], correct: np.ndarray, k: int) -> float:
    """`majority_at_k` of one problem."""
    sizes = Counter(answers)
    unanswered = sizes.pop(None, 0)
    right = {answer for answer, is_right in zip(answers, correct, strict=True) if is_right}
    # Only the sizes matter: sorted, they are the same for many problems.
    winners = tuple(sorted(size for answer, size in sizes.items() if answer in right))
    losers = tuple(sorted(size for answer, size in sizes.items() if answer not in right))
    return _majority_of_sizes(winners, losers, unanswered, k)


@functools.lru_cache(maxsize=1 << 14)
def _majority_of_sizes(winners: tuple[int, ...], losers: tuple[int, ...], unanswered: int, k: int) -> float:
    return majority_of_counts((*winners, *losers), range(len(winners)), unanswered, k)


def _win(others: list[np.ndarray], silent: np.ndarray, most: int, left: int) -> float:
    """The probability that the others share `left` votes with none above `most`, each tie counted 1 / tied.

    `others`, `silent`: probabilities by the number of votes.
    """
    ties = left // most
    table = np.zeros((ties + 1, left + 1))  # [other classes with `most` votes, votes given]
    table[0, : len(silent)] = silent[: left + 1]
    for votes in others:
        grown = np.zeros_like(table)
        for number, share in enumerate(votes[: min(most, left + 1)]):
            grown[:, number:] += share * table[:, : left + 1 - number]
        if most < len(votes) and most <= left:
            grown[1:, most:] += votes[most] * table[:-1, : left + 1 - most]
        table = grown
    return float(table[:, left] @ (1.0 / np.arange(1, ties + 2)))


def _binomial(size: int, k: int, n: int) -> np.ndarray:
    """P(x of `size` succeed) at the rate k / n, for x = 0 .. min(size, k); by logarithms, for any size."""
    if k == n:
        return np.eye(1, size + 1, size)[0]
    x = np.arange(min(size, k), dtype=np.float64)
    ratios = np.log((size - x) / (x + 1.0)) + math.log(k / (n - k))  # of P(x + 1) to P(x)
    return np.exp(size * math.log1p(-k / n) + np.concatenate([[0.0], np.cumsum(ratios)]))


def _samples(correct: ArrayLike) -> np.ndarray:
    correct = np.asarray(correct)
    if correct.ndim != 2 or not correct.shape[1]:
        raise ValueError(f"correct: needs the shape [problems, n], got {list(correct.shape)}")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError("correct: holds values other than True and False; decide what counts as right first")
    return correct.astype(bool)


def _check_k(name: str, k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"{name}: k is {k}, but there are {n} samples a problem; choose k from 1 to {n}")
