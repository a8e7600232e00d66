"""Evaluation with a scripted policy: every problem counts once, whatever the batch, and what fails is not right."""

import time

import numpy as np
import pytest

from grpo_jax.evaluation.evaluate import (
    Completion,
    Sampled,
    Task,
    batches,
    by_problem,
    counts,
    graded,
    measures,
    records,
    run_task,
)
from grpo_jax.evaluation.judging import Judgement
from grpo_jax.evaluation.voting import BUDGET, RIGHT_ANSWER, classes, same_answer
from grpo_jax.types import Problem

PROBLEMS = [Problem(question=f"{i}+0", answer=str(i), id=f"p{i}") for i in range(10)]


def script(i, g):
    """Problem i is right in its first i samples; sample 4 has no answer; sample 5 cannot be judged."""
    return {4: "none", 5: "unjudged"}.get(g, str(i) if g < i else f"wrong{g % 2}")


def judge(problems, texts):
    n = len(texts) // len(problems)
    asked = [p for p in problems for _ in range(n)]
    return [
        Judgement(
            None if text == "none" else text,
            "ungradable" if text == "unjudged" else "right" if text == problem.answer else "wrong",
        )
        for problem, text in zip(asked, texts, strict=True)
    ]


def scripted(n, seen=None, problems=PROBLEMS, usable=None):
    def sample(policy, indices):
        if seen is not None:
            seen.append(indices)
        texts = [script(int(i), g) for i in indices for g in range(n)]
        return Sampled(texts, np.arange(len(texts)) % (len(texts) or 1), np.array([t != "none" for t in texts]))

    numbers = np.arange(len(problems)) if usable is None else np.asarray(usable)
    return Task("script", problems, numbers, sample, sample, judge)


def of_script(n, size, seen=None, **options):
    task = scripted(n, seen, **options)
    return run_task(task, task.sampled, None, n, batch_prompts=size)


def numbers(greedy, sampled, ks):
    return measures(by_problem(greedy, sampled, ks), seed=0)


@pytest.mark.parametrize("size", [1, 3, 4, 10, 16])
def test_every_problem_once_in_batches_of_one_shape(size):
    seen = []
    got = of_script(6, size, seen)
    assert {len(indices) for indices in seen} == {size}
    expected = of_script(6, 10)
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
    found = numbers(of_script(1, 4), of_script(6, 4), (1, 6))
    right = np.array([min(i, 4) for i in range(10)])  # of 6 samples
    assert found["mean@6"]["value"] == pytest.approx((right / 6).mean())
    assert found["pass@1"]["value"] == pytest.approx((right / 6).mean())
    assert found["pass@6"]["value"] == pytest.approx(0.9)
    assert found["greedy"]["value"] == pytest.approx(0.9)
    assert "official/greedy" not in found
    for entry in found.values():
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_the_vote_is_over_answers_and_none_has_no_vote():
    """Problem 2: right x2, wrong0, wrong1 once each, none, unjudged once: the right answer wins."""
    # Problem 1 has one vote each for right, wrong0 and unjudged and two for wrong1: lost. From 2 on right leads.
    assert numbers(of_script(1, 4), of_script(6, 4), (6,))["maj@6"]["value"] == pytest.approx(0.8)


def test_a_prompt_that_does_not_fit_counts_as_wrong():
    """The denominator is the problems asked for; the noise of the others is that of their own numbers."""
    seen = []
    got = of_script(6, 4, seen, usable=[1, 2, 3, 5, 9])
    whole = of_script(6, 4)
    assert got.right.shape == (10, 6) and got.too_long == 5
    np.testing.assert_array_equal(got.right[[1, 2, 3, 5, 9]], whole.right[[1, 2, 3, 5, 9]])
    assert not got.right[[0, 4, 6, 7, 8]].any()
    assert sorted({int(i) for batch in seen for i in batch}) == [1, 2, 3, 5, 9]
    assert counts(got)["prompt too long"] == 30 and counts(got)["truncated"] == 5
    assert numbers(None, got, (6,))["pass@6"]["value"] == pytest.approx(0.5)


def test_what_became_of_the_samples_is_counted_apart():
    found = counts(of_script(6, 4))
    assert found["samples"] == 60 and found["right"] == sum(min(i, 4) for i in range(10))
    assert found["ungradable"] == found["unanswered"] == found["truncated"] == 10 and found["prompt too long"] == 0


def test_known_samples_are_neither_made_nor_kept_again():
    """Batches that are complete are passed over, the others give what is missing; the result is the unbroken one."""
    kept, seen = [], []
    task = scripted(6, seen)
    whole = run_task(task, task.sampled, None, 6, batch_prompts=4, keep=kept.extend)
    assert len(kept) == len({(one.index, one.sample) for one in kept}) == 60
    for cut in (0, 1, 24, 25, 41, 60):
        known = {(one.index, one.sample): one for one in kept[:cut]}
        del seen[:]
        rest = []
        again = run_task(task, task.sampled, None, 6, batch_prompts=4, known=known, keep=rest.extend)
        assert kept[:cut] + rest == kept
        assert len(seen) == 3 - (cut // 24 if cut < 60 else 3)
        assert again.texts == whole.texts and (again.right == whole.right).all()


def test_a_prompt_that_fits_by_now_is_asked():
    """Only its samples are made and kept, and the result is that of an evaluation in which it always fitted."""
    kept, rest = [], []
    task = scripted(6, usable=[1, 2, 3, 5, 9])
    run_task(task, task.sampled, None, 6, batch_prompts=4, keep=kept.extend)
    known = {(one.index, one.sample): one for one in kept}
    task = scripted(6, usable=[0, 1, 2, 3, 5, 9])
    found = run_task(task, task.sampled, None, 6, batch_prompts=4, known=known, keep=rest.extend)
    assert {one.index for one in rest} == {0} and len(rest) == 6 and found.too_long == 4
    whole = run_task(task, task.sampled, None, 6, batch_prompts=4)
    assert found.texts == whole.texts and (found.right == whole.right).all()


def test_records_tell_what_happened():
    rows = list(records(PROBLEMS, of_script(6, 4)))
    assert rows[3]["id"] == "p3" and rows[3]["answer"] == "3"
    samples = rows[3]["samples"]
    assert [s["right"] for s in samples] == [True, True, True, False, False, False]
    assert samples[4]["answer"] is None and not samples[4]["finished"]
    assert samples[5]["unjudged"]


def test_wrong_answers_vote_by_their_class():
    """0.5, 1/2 and 2/4 are one wrong answer, and outvote one right one; so do formulas that mean the same."""
    for wrong in (["0.5", "\\frac{1}{2}", "2/4"], ["x+1", "1+x", "\\frac{2x+2}{2}"]):
        rows = [
            [Completion(0, g, a, 1, True, a, "right" if a == "7" else "wrong") for g, a in enumerate([*wrong, "7"])]
        ]
        found = graded(rows)
        assert len(set(found.votes[0][:3])) == 1 and found.votes[0][3] == RIGHT_ANSWER
        assert numbers(found, found, (4,))["maj@4"]["value"] == 0.0
    as_text = classes(["0.5", "x+1", "1+x", "7"], [False] * 3 + [True], same=lambda a, b, by_value: False)
    assert len(set(as_text)) == 4
    assert classes([None, "1", "1.0"], [False, False, False])[0] is None


def test_votes_of_many_formulas_take_bounded_time():
    """By value while there is time, here for the first three pairs; then by exact rules alone, and it is said."""
    seconds, asked = iter(range(100)), []

    def same(a, b, *, by_value):
        asked.append(by_value)
        return same_answer(a, b, by_value=by_value)

    with pytest.warns(UserWarning, match="by exact rules only"):
        votes = classes(["x+1", "1+x", "x+2", "x+3", "2+x", "x + 2"], [False] * 6, same, clock=lambda: next(seconds))
    assert asked[:3] == [True] * 3 and not any(asked[3:]) and len(asked) > 3
    assert votes[0] == votes[1] and votes[2] == votes[5] and len(set(votes)) == 4
    formulas = ["+".join(rf"\sqrt[3]{{x_{{{i}}}-{k}}}\sin({i + k}y)" for i in range(25)) for k in range(64)]
    start = time.monotonic()
    with pytest.warns(UserWarning):
        assert len(set(classes(formulas, [False] * 64))) == 64
    assert time.monotonic() - start < BUDGET + 20.0


def test_right_answers_in_other_forms_vote_together():
    found = graded([[Completion(0, g, a, 1, True, a, "right") for g, a in enumerate(["1/2", "0.5", "\\tfrac12"])]])
    assert set(found.votes[0]) == {RIGHT_ANSWER}


def test_published_rules_and_scores_have_metrics_of_their_own():
    row = [
        Completion(0, g, "x", 1, True, a, "right" if a == "7" else "wrong", "", a == "8") for g, a in enumerate("778")
    ]
    found = graded([row])
    scores = np.array([[0.1, 0.2, 0.9]])
    values = by_problem(found, found, (1, 3), scores)
    assert values["official/greedy"][0] == 0.0 and values["official/mean@3"][0] == pytest.approx(1 / 3)
    assert values["best@3"][0] == 0.0 and values["best@1"][0] == pytest.approx(2 / 3)
    assert values["weighted@3"][0] == 0.0 and values["maj@3"][0] == 1.0
