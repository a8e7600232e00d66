"""Intervals against numbers made by hand, and each verdict both ways."""

import math

import numpy as np
import pytest

from grpo_jax.evaluation.estimators import Interval
from grpo_jax.reproduce.statistics import (
    nested_bootstrap,
    ordering,
    paired,
    rises,
    stays,
    t_interval,
    together,
)

T_OF_TWO = 4.302653  # the 97.5 % point of Student's t with two degrees of freedom, from a printed table


def test_t_interval_of_three_seeds():
    """Of 1, 2, 3 the deviation is 1: the half width is t / sqrt(3)."""
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2.0, 2.0 - T_OF_TWO / math.sqrt(3), 2.0 + T_OF_TWO / math.sqrt(3)), rel=1e-6)


def test_of_one_seed_nothing_is_known():
    assert t_interval([0.4]) == (0.4, -math.inf, math.inf)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]]])
def test_t_interval_refuses(values):
    with pytest.raises(ValueError, match="needs finite values"):
        t_interval(values)


def test_bootstrap_reaches_the_worst_seed():
    """Without spread within a seed only the seeds vary: one draw in 27 is thrice the least, and that is above 2.5 %."""
    rows = [np.full(50, 0.2), np.full(50, 0.5), np.full(50, 0.8)]
    assert nested_bootstrap(rows) == pytest.approx((0.5, 0.2, 0.8))


def test_bootstrap_over_problems():
    """Seeds that agree leave the error of the problems' mean, here of 3 x 400 coins: 1.96 sqrt(p (1 - p) / n)."""
    coins = np.tile([1.0, 0.0, 0.0, 0.0], 100)
    interval = nested_bootstrap([coins, coins, coins])
    half = 1.96 * math.sqrt(0.25 * 0.75 / 1200)
    assert interval.mean == 0.25
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.05)
    assert interval == nested_bootstrap([coins, coins, coins])


def test_seeds_weigh_the_same():
    assert nested_bootstrap([np.zeros(10), np.ones(1000)]).mean == 0.5


@pytest.mark.parametrize("rows", [[], [[]], [[0.0], [math.inf]]])
def test_bootstrap_refuses(rows):
    with pytest.raises(ValueError, match="at least one of both"):
        nested_bootstrap(rows)


def test_pairs_cancel_what_is_common():
    """Problems differ by far more than the methods do; of the differences nothing varies."""
    rng = np.random.default_rng(0)
    hard = [rng.random(30) for _ in range(3)]
    better = [row + 0.01 for row in hard]
    assert paired(hard, better) == pytest.approx((0.01, 0.01, 0.01))


def test_pairs_hold_the_wider_of_both_intervals():
    """Of seeds 0.1, 0.2, 0.3 t is wider; of seeds that agree on few problems the bootstrap is."""
    lower, higher = [np.zeros(9)] * 3, [np.full(9, value) for value in (0.1, 0.2, 0.3)]
    half = T_OF_TWO * 0.1 / math.sqrt(3)
    assert paired(lower, higher) == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-6)
    few = [np.array([1.0, 0.0, 0.0, 0.0])] * 3
    assert paired([np.zeros(4)] * 3, few) == nested_bootstrap(few) and nested_bootstrap(few).low == 0.0


def test_one_pair_of_seeds_tells_nothing():
    (link,) = ordering(["a", "b"], [[np.zeros(50)], [np.ones(50)]])
    assert link.difference == (1.0, -math.inf, math.inf) and link.verdict == "cannot be told"


def test_verdicts_are_rare_where_only_the_seeds_differ():
    """Two equal methods, three seeds whose noise is ten times that of the problems' mean: 5 in 100 verdicts are t's."""
    rng, told, alone = np.random.default_rng(0), 0, 0
    for _ in range(200):
        a, b = ([rng.normal(0.5 + noise, 0.05, size=20) for noise in rng.normal(0, 0.1, size=3)] for _ in range(2))
        told += rises(paired(a, b)) != "cannot be told"
        alone += rises(nested_bootstrap([y - x for x, y in zip(a, b, strict=True)])) != "cannot be told"
    assert told <= 20 < 40 <= alone


def test_pairs_must_be_of_the_same_problems():
    with pytest.raises(ValueError, match="not the same seeds and problems"):
        paired([np.zeros(3)], [np.zeros(4)])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 0.2, "held"), (-0.2, -0.01, "did not hold"), (-0.01, 0.2, "cannot be told"), (0.0, 0.2, "cannot be told")],
)
def test_rises(low, high, verdict):
    assert rises(Interval((low + high) / 2, low, high)) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.3, 0.01, "held"), (0.011, 0.2, "did not hold"), (-0.01, 0.02, "cannot be told"), (0.005, 0.009, "held")],
)
def test_stays(low, high, verdict):
    assert stays(Interval((low + high) / 2, low, high), 0.01) == verdict


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["held", "held"], "held"),
        (["held", "cannot be told"], "cannot be told"),
        (["cannot be told", "did not hold"], "did not hold"),
    ],
)
def test_together(verdicts, whole):
    assert together(verdicts) == whole


def test_ordering():
    """Three methods on three seeds: b is better than a on all, c worse than b on all; d is better on two of three."""
    a, b, c = ([np.full(20, value)] * 3 for value in (0.3, 0.6, 0.4))
    d = [np.full(20, value) for value in (0.5, 0.5, 0.3)]
    links = ordering(["a", "b", "c", "d"], [a, b, c, d])
    assert [(link.lower, link.higher, link.verdict) for link in links] == [
        ("a", "b", "held"),
        ("b", "c", "did not hold"),
        ("c", "d", "cannot be told"),
    ]
    assert links[0].difference == pytest.approx((0.3, 0.3, 0.3))
