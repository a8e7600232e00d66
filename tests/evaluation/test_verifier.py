"""Measures of a reward model against their definitions."""

import numpy as np
import pytest

from grpo_jax.evaluation.verifier import auc, first_error, first_error_measures, label_measures


def test_auc_is_the_chance_that_a_good_one_scores_higher():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, good = rng.integers(0, 6, 30), rng.random(30) < 0.4
        pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
        assert auc(scores, good) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc([1.0, 2.0], [True, True]))


def test_label_measures():
    measured = label_measures([2.0, -1.0, 0.5, -3.0], [1.0, 0.75, 0.25, 0.0])
    probability = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5, -3.0])))
    target = np.array([1.0, 0.75, 0.25, 0.0])
    entropy = -(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    assert measured["loss"] == pytest.approx(entropy.mean())
    assert (measured["accuracy"], measured["good_share"], measured["auc"]) == (0.5, 0.5, 0.75)
    assert "auc" not in label_measures([1.0], [1.0])


def test_the_first_error():
    assert [first_error(good) for good in ([True, False, True], [True, True], [])] == [1, 2, 0]
    scores = [[1.0, -1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]]
    targets = [[1.0, 0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]
    measured = first_error_measures(scores, targets)
    assert measured == {
        "first_error": 0.5,
        "first_error/flawed": 0.5,
        "first_error/sound": 0.5,
        "first_error/f1": 0.5,
    }
    assert first_error_measures(scores[1:2], targets[1:2]) == {"first_error": 1.0, "first_error/sound": 1.0}
