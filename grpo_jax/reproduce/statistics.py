"""From values of each seed and problem to intervals and verdicts: held, did not hold, cannot be told.

Three kinds of interval, all of 95 %, and every table says which:

    t           mean over seeds +- t(n - 1) s / sqrt(n), s the deviation of the n seeds' means (Student 1908)
    bootstrap   quantiles of the mean when seeds are drawn again, and of each drawn seed its problems (Davison and
                Hinkley 1997, section 3.8); differences are taken before, of the same seed and problem
    paired      of differences, for every verdict: from the lower of both lower ends to the higher of both higher ones

The first speaks of other seeds. The second speaks of other seeds and problems, but three seeds drawn again vary less
than seeds do: it reaches only as far as the worst of them, as one in 27 draws is thrice that one. Where nothing but
noise of the seeds tells two methods apart, each of them is the better by all three seeds once in eight times, so that
a quarter of such comparisons or more would get a verdict from it; from t one in twenty does, whatever the number of
seeds. The first says nothing of the problems where the seeds agree by chance. So a verdict wants both. From one seed
alone nothing can be told. No correction is made for the number of comparisons in a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from grpo_jax.evaluation.estimators import Interval

CONFIDENCE = 0.95
DRAWS = 4000

Verdict = Literal["held", "did not hold", "cannot be told"]


class Link(NamedTuple):
    """One claim `lower < higher`, and what became of it."""

    lower: str
    higher: str
    difference: Interval  # higher - lower
    verdict: Verdict


def t_interval(values: ArrayLike) -> Interval:
    """The mean of values [n], one a seed, with its t-interval; with n = 1 from -inf to inf: nothing is known.

    Raises ValueError without values, or if one is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"t_interval: needs finite values [seeds], at least one; got {values!r}")
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Interval(mean, -np.inf, np.inf)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def nested_bootstrap(values: Sequence[ArrayLike], *, seed: int = 0) -> Interval:
    """The mean over seeds of the means over problems, with the quantiles of `DRAWS` draws of seeds and of problems.

    `values`: of each seed an array [problems], which may differ in length; seeds weigh the same. With one seed only
    problems are drawn. Equal inputs and `seed` give equal intervals. Raises ValueError for an empty or infinite one.
    """
    rows = [np.asarray(row, np.float64) for row in values]
    if not rows or any(row.ndim != 1 or not row.size or not np.isfinite(row).all() for row in rows):
        raise ValueError("nested_bootstrap: needs of each seed finite values [problems], at least one of both")
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(rows), size=(DRAWS, len(rows)))  # the seeds of each draw
    drawn = np.empty(chosen.shape)  # their means over problems drawn again
    for number, row in enumerate(rows):
        places = chosen == number
        drawn[places] = row[generator.integers(len(row), size=(int(places.sum()), len(row)))].mean(axis=1)
    means = drawn.mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(np.mean([row.mean() for row in rows])), float(low), float(high))


def paired(lower: Sequence[ArrayLike], higher: Sequence[ArrayLike]) -> Interval:
    """`higher - lower` of the same seeds and problems, [seeds][problems] each, with the interval that verdicts use.

    It is the least that holds both the `t_interval` of the seeds' mean differences and the `nested_bootstrap`; with one
    seed it is from -inf to inf. Raises ValueError if they are not of the same shape.
    """
    lower, higher = ([np.asarray(row, np.float64) for row in side] for side in (lower, higher))
    if [row.shape for row in lower] != [row.shape for row in higher]:
        shapes = [[list(row.shape) for row in side] for side in (lower, higher)]
        raise ValueError(f"paired: {shapes[0]} and {shapes[1]} are not the same seeds and problems in the same order")
    rows = [b - a for a, b in zip(lower, higher, strict=True)]
    drawn, seeds = nested_bootstrap(rows), t_interval([row.mean() for row in rows])
    return Interval(drawn.mean, min(drawn.low, seeds.low), max(drawn.high, seeds.high))


def rises(difference: Interval) -> Verdict:
    """Of "the difference is above 0": held if the whole interval is, did not hold if the whole interval is below."""
    return "held" if difference.low > 0 else "did not hold" if difference.high < 0 else "cannot be told"


def stays(difference: Interval, margin: float) -> Verdict:
    """Of "there is no rise above `margin`": held if the interval ends below it, did not hold if it begins above.

    That no rise was seen is no proof that there is none: without a margin such a claim could never hold.
    """
    return "held" if difference.high <= margin else "did not hold" if difference.low > margin else "cannot be told"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of claims that are to hold all: did not hold if one did not, held if all did."""
    if "did not hold" in verdicts:
        return "did not hold"
    return "held" if all(verdict == "held" for verdict in verdicts) else "cannot be told"


def ordering(names: Sequence[str], values: Sequence[Sequence[ArrayLike]]) -> list[Link]:
    """The links of `names[0] < names[1] < ...` by their values [names][seeds][problems]."""
    links = []
    for i in range(len(names) - 1):
        difference = paired(values[i], values[i + 1])
        links.append(Link(names[i], names[i + 1], difference, rises(difference)))
    return links
