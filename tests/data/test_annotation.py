"""Math-Shepherd's estimates: golden labels, and what is completed once."""

from grpo_jax.data.annotation import Prefix, Solution, distinct, estimates, prefixes_of, step_counts


def test_golden(vectors):
    known = vectors["math_shepherd_labels"]
    gold, completions = known["inputs"]["gold"], known["inputs"]["completions"]
    found = [estimates(sum(answer == gold for answer in said), len(said)) for said in completions.values()]
    assert [hard for hard, _ in found] == known["expected"]["HE"]
    assert [soft for _, soft in found] == known["expected"]["SE"]


A = Solution(0, (5, 2, 6, 2, 7, 1), (1, 3, 5), right=True)
B = Solution(0, (5, 2, 8, 1), (1, 3), right=False)
C = Solution(1, (5, 2, 8, 1), (1, 3), right=True)
ONE = Solution(1, (9, 1), (1,), right=False)


def test_what_is_completed():
    """Beginnings up to each step but the last, of one problem once, the shortest first."""
    assert A.steps() == [(5, 2), (6, 2), (7, 1)] and ONE.prefixes() == []
    assert prefixes_of([A, B, C, ONE]) == [Prefix(0, (5, 2)), Prefix(1, (5, 2)), Prefix(0, (5, 2, 6, 2))]
    assert distinct([A, B, A, C, B]) == [A, B, C]


def test_the_last_step_is_the_solution_itself():
    right = {Prefix(0, (5, 2)): 3, Prefix(0, (5, 2, 6, 2)): 0}
    assert step_counts(A, right, 4) == [(3, 4), (0, 4), (1, 1)]
    assert step_counts(B, right, 4) == [(3, 4), (0, 1)]
    assert step_counts(ONE, {}, 4) == [(0, 1)]
