"""How good the scores of a reward model are: by label, and by the first error of a solution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def auc(scores: ArrayLike, good: ArrayLike) -> float:
    """The probability that a good one scores higher than a bad one, ties counted half: [n], [n] bool.

    The area under the receiver operating characteristic, by ranks; NaN where one of the two kinds is missing.
    """
    scores, good = np.asarray(scores, np.float64), np.asarray(good, bool)
    positive, negative = int(good.sum()), int((~good).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]  # mean rank of equal scores, from 1
    return float((ranks[good].sum() - positive * (positive + 1) / 2.0) / (positive * negative))


def first_error(good: Sequence[bool]) -> int:
    """The place of the first step that is not good; the number of steps if all are."""
    return next((place for place, fine in enumerate(good) if not fine), len(good))


def label_measures(scores: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Loss, accuracy and AUC of scores (logits) [n] against targets in 0 to 1 [n]; a target above a half is good."""
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    good = targets > 0.5
    measured = {
        "loss": float(np.mean(np.logaddexp(0.0, scores) - targets * scores)),
        "accuracy": float(np.mean((scores > 0) == good)),
        "good_share": float(good.mean()),
    }
    area = auc(scores, good)
    return measured if np.isnan(area) else measured | {"auc": area}


def first_error_measures(scores: Sequence[ArrayLike], targets: Sequence[ArrayLike]) -> dict[str, float]:
    """How often the first step scored below a half is the true first error, by solution: scores, targets [steps] each.

    `first_error` over all solutions (one without an error is right if no step is thought bad), `first_error/flawed`
    and `first_error/sound` over those with and without one, where there are any, and their harmonic mean
    `first_error/f1` (as ProcessBench has it, arXiv:2412.06559).
    """
    pairs = list(zip(scores, targets, strict=True))
    truth = [first_error(np.asarray(t) > 0.5) for _, t in pairs]
    hits = np.array([first_error(np.asarray(s) > 0) == true for (s, _), true in zip(pairs, truth, strict=True)])
    flawed = np.array([true < len(t) for true, (_, t) in zip(truth, pairs, strict=True)])
    measured = {"first_error": float(hits.mean())}
    for name, chosen in (("flawed", flawed), ("sound", ~flawed)):
        if chosen.any():
            measured[f"first_error/{name}"] = float(hits[chosen].mean())
    if flawed.any() and not flawed.all():
        low, high = measured["first_error/flawed"], measured["first_error/sound"]
        measured["first_error/f1"] = 2 * low * high / (low + high) if low + high else 0.0
    return measured
