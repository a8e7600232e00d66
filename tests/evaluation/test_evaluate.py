"""Evaluation with a scripted policy: every problem counts once, whatever the batch, and what fails is not right."""

import numpy as np
import pytest

from grpo_jax.evaluation.evaluate import Sampled, batches, grade_samples, measures, records
from grpo_jax.types import Problem

PROBLEMS = [Problem(question=f"{i}+0", answer=str(i), id=f"p{i}") for i in range(10)]


def script(i, g):
    """Problem i is right in its first i samples; sample 4 has no answer; sample 5 cannot be judged."""
    return {4: "none", 5: "unjudged"}.get(g, str(i) if g < i else f"wrong{g % 2}")


def graded(n, size, seen=None):
    def sample(indices):
        if seen is not None:
            seen.append(indices)
        texts = [script(int(i), g) for i in indices for g in range(n)]
        return Sampled(texts, np.arange(len(texts)), np.array([t != "none" for t in texts]))

    def judge(problems, texts):
        values = [
            np.nan if text == "unjudged" else float(text == problem.answer)
            for problem, text in zip([p for p in problems for _ in range(n)], texts, strict=True)
        ]
        return np.array(values).reshape(len(problems), n)

    extract = {"none": None}.get
    return grade_samples(
        PROBLEMS, n, batch_prompts=size, sample=sample, judge=judge, extract=lambda text: extract(text, text)
    )


@pytest.mark.parametrize("size", [1, 3, 4, 10, 16])
def test_every_problem_once_in_batches_of_one_shape(size):
    seen = []
    got = graded(6, size, seen)
    assert {len(indices) for indices in seen} == {size}
    expected = graded(6, 10)
    np.testing.assert_array_equal(got.right, expected.right)
    np.testing.assert_array_equal(got.unjudged, expected.unjudged)
    assert got.texts == expected.texts and got.right.shape == (10, 6)
    assert len(list(records(PROBLEMS, got))) == 10


def test_batches_cover_all():
    for count, size in ((10, 4), (3, 8), (8, 8)):
        rows = list(batches(count, size))
        assert sorted(set(np.concatenate(rows))) == list(range(count))
        assert all(len(row) == size for row in rows)


def test_measures_by_hand():
    sampled = graded(6, 4)
    numbers = measures(graded(1, 4), sampled, (1, 6), seed=0)
    right = np.array([min(i, 4) for i in range(10)])  # of 6 samples
    assert numbers["mean@6"]["value"] == pytest.approx((right / 6).mean())
    assert numbers["pass@1"]["value"] == pytest.approx((right / 6).mean())
    assert numbers["pass@6"]["value"] == pytest.approx(0.9)
    assert numbers["greedy"]["value"] == pytest.approx(0.9)
    for entry in numbers.values():
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_the_vote_is_over_answers_and_none_has_no_vote():
    """Problem 2: right x2, wrong0, wrong1 once each, none, unjudged once: the right answer wins."""
    numbers = measures(graded(1, 4), graded(6, 4), (6,), seed=0)
    # Problem 1 has one vote each for right, wrong0 and unjudged and two for wrong1: lost. From 2 on right leads.
    assert numbers["maj@6"]["value"] == pytest.approx(0.8)


def test_records_tell_what_happened():
    rows = list(records(PROBLEMS, graded(6, 4)))
    assert rows[3]["id"] == "p3" and rows[3]["answer"] == "3"
    samples = rows[3]["samples"]
    assert [s["right"] for s in samples] == [True, True, True, False, False, False]
    assert samples[4]["answer"] is None and not samples[4]["finished"]
    assert samples[5]["unjudged"]


def test_wrong_answers_vote_by_their_class():
    """0.5, 1/2 and \\frac{1}{2} are one wrong answer, and outvote one right one."""
    texts = ["0.5", "\\frac{1}{2}", "1/2", "7"]
    kinds = {"0.5": "half", "\\frac{1}{2}": "half", "1/2": "half"}

    def run(**options):
        graded = grade_samples(
            [Problem(question="?", answer="7")],
            4,
            batch_prompts=1,
            sample=lambda indices: Sampled(texts, np.ones(4), np.ones(4, bool)),
            judge=lambda problems, answers: np.array([[float(a == "7") for a in answers]]),
            extract=lambda text: text,
            **options,
        )
        return measures(graded, graded, (4,), seed=0)["maj@4"]["value"], graded.answers

    assert run(name_class=lambda answer: kinds.get(answer, answer)) == (0.0, [texts])
    assert run()[0] == 0.25  # as text, all four tie
