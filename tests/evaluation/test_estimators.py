"""Estimators against golden numbers, real samples and plain enumeration of all subsets."""

import itertools
import json
import math
import time
from collections import Counter

import numpy as np
import pytest

from grpo_jax.evaluation.estimators import (
    best_of_k,
    bootstrap,
    majority_at_k,
    majority_of_counts,
    mean_at_n,
    paired_bootstrap,
    paired_p_value,
    pass_at_k,
    weighted_vote,
)


def enumerated(answers, correct, k):
    """maj@k and pass@k of one problem over every k-subset, random tie-break."""
    right = {a for a, c in zip(answers, correct, strict=True) if c}
    majority = passed = 0.0
    subsets = list(itertools.combinations(range(len(answers)), k))
    for subset in subsets:
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        best = [a for a, v in votes.items() if v == max(votes.values())]
        majority += sum(a in right for a in best) / len(best) if best else 0.0
        passed += any(correct[i] for i in subset)
    return majority / len(subsets), passed / len(subsets)


def test_pass_at_k_golden(vectors):
    for row in vectors["pass_at_k"]["expected"]["rows"]:
        correct = np.arange(row["n"]) < row["c"]
        value = pass_at_k([correct], row["k"])
        np.testing.assert_allclose(value, [row["pass_at_k"]], rtol=1e-13)
        if row["n"] - row["c"] < row["k"]:
            assert value[0] == 1.0


def test_pass_at_k_is_the_quotient_of_binomials():
    for n in (1, 2, 7, 64, 300):
        correct = np.tril(np.ones((n + 1, n), bool), -1)  # row c has c right samples
        for k in {1, 2, n // 2, n - 1, n} - {0}:
            if k <= n:
                exact = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
                np.testing.assert_allclose(pass_at_k(correct, k), exact, rtol=1e-12, atol=1e-15)


def test_majority_golden(vectors):
    vector = vectors["maj_at_k"]
    answers = vector["inputs"]["answers"]
    correct = [a in vector["inputs"]["correct"] for a in answers]
    for row in vector["expected"]["rows"]:
        np.testing.assert_allclose(majority_at_k([answers], [correct], row["k"]), [row["maj_random_tie"]])
        np.testing.assert_allclose(pass_at_k([correct], row["k"]), [row["pass_at_k"]])


@pytest.mark.parametrize("name", ["a", "b"])
def test_majority_of_independent_samples(vectors, name):
    """A subset of very many samples is as good as independent draws."""
    inputs, expected = vectors["maj_iid"]["inputs"], vectors["maj_iid"]["expected"]
    counts = [round(p * 10**8) for p in inputs[f"p_{name}"]]
    for k, maj, passed in zip(inputs["K"], expected[f"maj_{name}"], expected[f"pass_{name}"], strict=True):
        np.testing.assert_allclose(majority_of_counts(counts, [0], 0, k), maj, rtol=1e-5)
        np.testing.assert_allclose(1 - (1 - inputs[f"p_{name}"][0]) ** k, passed)


def test_majority_and_pass_of_real_samples(vectors, shared):
    vector = vectors["real_pass_maj_at_k"]
    path = shared / "data" / vector["inputs"]["file"]
    if not path.exists():
        pytest.skip(f"no {vector['inputs']['file']} in the shared data")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers, correct = [row["pred"] for row in rows], [row["score"] for row in rows]
    for row in vector["expected"]["rows"]:
        np.testing.assert_allclose(pass_at_k(correct, row["k"]).mean(), row["pass_at_k"])
        np.testing.assert_allclose(majority_at_k(answers, correct, row["k"]).mean(), row["maj_random_tie"])
    np.testing.assert_allclose(mean_at_n(correct).mean(), vector["expected"]["rows"][0]["pass_at_k"])


def test_majority_and_pass_of_real_gsm8k_groups(vectors, shared):
    """Four real solutions of each of 1,319 problems, answers as written after the last "A:"."""
    inputs, expected = (vectors["real_gsm8k_groups"][key] for key in ("inputs", "expected"))
    lines = (shared / "data" / inputs["file"]).read_text(encoding="utf-8").splitlines()
    groups = [[json.loads(line)[name] for name in inputs["group_order"]] for line in lines]
    correct = np.array([[sample["is_correct"] for sample in group] for group in groups])
    answers = [[(sample["solution"].rpartition("A: ")[2].strip() or None) for sample in g] for g in groups]
    np.testing.assert_allclose(correct.mean(axis=0), [*expected["accuracy"].values()])
    solved = 1 - expected["groups_by_correct"]["0"] / len(groups)
    np.testing.assert_allclose(pass_at_k(correct, 4).mean(), solved)
    for k in (1, 2, 3, 4):
        exact = np.array([enumerated(a, c, k) for a, c in zip(answers, correct, strict=True)])
        np.testing.assert_allclose(majority_at_k(answers, correct, k), exact[:, 0], atol=1e-12)
        np.testing.assert_allclose(pass_at_k(correct, k), exact[:, 1], atol=1e-12)


def test_every_small_case_equals_enumeration():
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(1, 10))
        answers = [None if a == 0 else f"a{a}" for a in rng.integers(0, rng.integers(2, 6), n)]
        right = {f"a{a}" for a in rng.integers(1, 6, rng.integers(0, 3))}  # none, one or two right classes
        correct = [a in right for a in answers]
        for k in range(1, n + 1):
            majority, passed = enumerated(answers, correct, k)
            np.testing.assert_allclose(majority_at_k([answers], [correct], k), [majority], atol=1e-12)
            np.testing.assert_allclose(pass_at_k([correct], k), [passed], atol=1e-12)


def test_no_answer_never_wins_and_any_right_sample_makes_its_class_right():
    answers = [[None, None, None, "7"], [None, None, None, None], ["7", "7", "7", "8"]]
    correct = [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    np.testing.assert_allclose(majority_at_k(answers, correct, 4), [1.0, 0.0, 1.0])
    np.testing.assert_allclose(majority_at_k(answers, correct, 1), [0.25, 0.0, 0.75])


def test_labels_of_different_problems_do_not_mix():
    answers = [[0, 0, 1], [1, 1, 0]]
    np.testing.assert_allclose(majority_at_k(answers, [[1, 1, 0], [0, 0, 1]], 3), [1.0, 0.0])


def test_sixty_four_of_sixty_four_and_large_n():
    ties = ["a"] * 20 + ["b"] * 20 + ["c"] * 14 + [None] * 10
    np.testing.assert_allclose(majority_at_k([ties], [[a == "a" for a in ties]], 64), [0.5])
    started = time.monotonic()
    rng = np.random.default_rng(1)
    answers = rng.geometric(0.3, (100, 64)).tolist()
    correct = np.array(answers) == 1
    values = {k: majority_at_k(answers, correct, k).mean() for k in (1, 4, 8, 16, 32, 64)}
    assert time.monotonic() - started < 60  # about 3 s; enumeration would take for ever
    np.testing.assert_allclose(values[1], correct.mean())
    assert 0.3 < values[4] < values[16] < values[64] <= 1.0
    counts = [3000, 2900, 2100]
    value = majority_of_counts(counts, [0], 0, 30)
    everyone = sum(majority_of_counts(counts, [i], 0, 30) for i in range(3))
    assert 0.4 < value < 0.5
    np.testing.assert_allclose(everyone, 1.0, rtol=1e-10)


def test_exactly_one_class_wins_when_all_answer():
    rng = np.random.default_rng(2)
    for _ in range(5):
        counts = rng.integers(1, 20, 5).tolist()
        for k in (1, 2, 7, sum(counts) // 2, sum(counts)):
            np.testing.assert_allclose(majority_of_counts(counts, range(5), 0, k), 1.0, rtol=1e-11)
            shares = [majority_of_counts(counts, [i], 0, k) for i in range(5)]
            np.testing.assert_allclose(sum(shares), 1.0, rtol=1e-11)


def test_bootstrap_is_seeded_and_covers_the_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1.0, 400)
    first = bootstrap(values, seed=1)
    assert first == bootstrap(values, seed=1) != bootstrap(values, seed=2)
    assert first.mean == values.mean()
    spread = 1.96 * values.std() / 20
    np.testing.assert_allclose([first.mean - first.low, first.high - first.mean], spread, rtol=0.1)
    narrow = bootstrap(values, seed=1, confidence=0.5)
    assert first.low < narrow.low < narrow.high < first.high
    inside = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).random(100) < 0.3
        interval = bootstrap(sample, seed=0, resamples=500)
        inside += interval.low <= 0.3 <= interval.high
    assert 180 <= inside <= 198  # 95 % of 200 is 190


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch):
    values = np.random.default_rng(3).random(50)
    whole = bootstrap(values, seed=4, resamples=999)
    monkeypatch.setattr("grpo_jax.evaluation.estimators.CHUNK", 123)
    assert bootstrap(values, seed=4, resamples=999) == whole


def test_pairing_removes_what_problems_have_in_common():
    rng = np.random.default_rng(5)
    hardness = rng.random(200)
    before = hardness + 0.01 * rng.normal(size=200)
    after = hardness + 0.05 + 0.01 * rng.normal(size=200)
    difference = paired_bootstrap(before, after, seed=0)
    np.testing.assert_allclose(difference.mean, after.mean() - before.mean())
    assert 0.04 < difference.low < difference.high < 0.06
    alone = bootstrap(after, seed=0)
    assert alone.high - alone.low > 10 * (difference.high - difference.low)


def test_wrong_inputs_are_named():
    correct = [[True, False], [True, True]]
    with pytest.raises(ValueError, match=r"k is 3, but there are 2 samples a problem"):
        pass_at_k(correct, 3)
    with pytest.raises(ValueError, match=r"k is 0"):
        majority_at_k([[1, 2], [1, 1]], correct, 0)
    with pytest.raises(ValueError, match=r"1 problems with \[2\] samples, correct is \[2, 2\]"):
        majority_at_k([[1, 2]], correct, 1)
    with pytest.raises(ValueError, match=r"\[problems, n\], got \[2\]"):
        pass_at_k([True, False], 1)
    with pytest.raises(ValueError, match="other than True and False"):
        mean_at_n([[0.5, np.nan]])
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([], seed=0)
    with pytest.raises(ValueError, match="finite"):
        bootstrap([1.0, np.nan], seed=0)
    with pytest.raises(ValueError, match=r"before is \[2\], after is \[3\]"):
        paired_bootstrap([1, 2], [1, 2, 3], seed=0)


def test_best_of_k_is_the_mean_over_all_subsets():
    """Ties among the best scores are broken at random."""
    generator = np.random.default_rng(3)
    for n in (1, 3, 6):
        scores, correct = generator.integers(3, size=n) / 2.0, generator.integers(2, size=n).astype(bool)
        for k in range(1, n + 1):
            shares = []
            for subset in map(list, itertools.combinations(range(n), k)):
                best = [i for i in subset if scores[i] == scores[subset].max()]
                shares.append(np.mean(correct[best]))
            np.testing.assert_allclose(best_of_k([scores], [correct], k), [np.mean(shares)], rtol=1e-12)


def test_best_of_k_rises_with_a_perfect_scorer_and_is_mean_at_n_for_one():
    correct = np.tril(np.ones((9, 8), bool), -1)
    np.testing.assert_allclose(best_of_k(correct.astype(float), correct, 3), pass_at_k(correct, 3))
    np.testing.assert_allclose(best_of_k(np.random.default_rng(0).random((9, 8)), correct, 1), mean_at_n(correct))


def test_weighted_vote_golden(vectors):
    """Best-of-N takes 600, the weighted vote 10: vectors `best_of_n`."""
    vector = vectors["best_of_n"]
    answers = [candidate["ans"] for candidate in vector["inputs"]["candidates"]]
    scores = [min(candidate["steps"]) for candidate in vector["inputs"]["candidates"]]
    for answer, best, voted in (("600", 1.0, 0.0), ("10", 0.0, 1.0)):
        correct = [[a == answer for a in answers]]
        assert best_of_k([scores], correct, len(answers))[0] == best
        assert weighted_vote([answers], [scores], correct)[0] == voted


def test_weighted_vote_by_hand():
    cases = [
        (["a", "a", "b"], [0.2, 0.2, 0.5], [True, True, False], 0.0),
        (["a", "a", "b"], [0.25, 0.25, 0.5], [True, True, False], 0.5),
        ([None, "a", "b"], [9.0, 0.2, 0.1], [False, True, False], 1.0),
        ([None, None, None], [1.0, 1.0, 1.0], [False, False, False], 0.0),
    ]
    for answers, scores, correct, value in cases:
        assert weighted_vote([answers], [scores], [correct])[0] == value
    equal = [["a", "b", "a", None]]
    votes = majority_at_k(equal, [[True, False, True, False]], 4)
    assert weighted_vote(equal, np.ones((1, 4)), [[True, False, True, False]]) == votes
    with pytest.raises(ValueError, match=r"a score is -0\.5"):
        weighted_vote([["a", "b"]], [[-0.5, 0.5]], [[True, False]])


@pytest.mark.parametrize("function", [lambda s, c: best_of_k(s, c, 1), lambda s, c: weighted_vote([["a"]], s, c)])
def test_scores_that_do_not_fit_are_refused(function):
    for scores in ([[1.0, 2.0]], [[float("nan")]]):
        with pytest.raises(ValueError, match="scores must be finite numbers of the shape"):
            function(scores, [[True]])


def test_paired_p_value():
    """Against every one of the 2^n signs; equal values differ by chance alone."""
    generator = np.random.default_rng(0)
    before, after = generator.integers(2, size=(2, 12)).astype(float)
    difference = after - before
    sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=12)]
    exact = np.mean(np.array(sums) >= abs(difference.sum()) - 1e-12)
    assert paired_p_value(before, after, seed=1) == pytest.approx(exact, abs=0.02)
    assert paired_p_value(before, before, seed=1) == 1.0
    assert paired_p_value(np.zeros(40), np.ones(40), seed=1) == pytest.approx(1 / 10_001)
    assert paired_p_value(before, after, seed=1) == paired_p_value(after, before, seed=1)
    with pytest.raises(ValueError, match="before is"):
        paired_p_value([0.0], [0.0, 1.0], seed=1)
