"""Old labels among fresh ones: how many, which, and never one twice."""

import pytest

from grpo_jax.data.replay import replayed, with_replay


def test_golden(vectors):
    known = vectors["rm_replay"]
    assert replayed(known["inputs"]["new"], 0.1) == known["expected"]["historical_if_10pct_of_mixture"]
    assert replayed(900, 0.0) == 0
    with pytest.raises(ValueError, match=r"a share of 1.0 old ones"):
        replayed(900, 1.0)


def test_the_mixture():
    fresh, old = list(range(900)), list(range(1000, 3000))
    mixed = with_replay(fresh, old, seed=0, iteration=1)
    assert mixed[:900] == fresh and len(mixed) == 1000 and len(set(mixed)) == 1000 and min(mixed[900:]) >= 1000
    assert mixed == with_replay(fresh, old, seed=0, iteration=1)
    others = with_replay(fresh, old, seed=0, iteration=2), with_replay(fresh, old, seed=1, iteration=1)
    assert all(other[900:] != mixed[900:] for other in others)
    spread = sum(mixed[900:]) / 100 - 2000
    assert abs(spread) < 200  # from all over the old ones
    assert with_replay(fresh, old[:7], seed=0, iteration=1) == fresh + old[:7]
    assert with_replay(fresh, [], seed=0, iteration=1) == fresh
