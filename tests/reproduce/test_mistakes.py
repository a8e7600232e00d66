"""Mistakes are the students', or others: by the first wrong step."""

import pytest

from grpo_jax.data.sources.arithmetic import Config, build
from grpo_jax.reproduce.mistakes import first_mistake, mistakes


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("55\n46", None),
        ("45\n36", "students"),  # the carry of 47+8 forgotten
        ("55\n54", "students"),  # 55-9: the smaller digit from the larger
        ("56\n47", "others"),
        ("55\n56", "others"),
        ("55", "others"),
        ("55\n46\n46", "others"),
        ("", "others"),
        ("47+8=55\n55-9=46", None),
    ],
)
def test_first_mistake(text, kind):
    assert first_mistake("47+8-9=", text) == kind


@pytest.mark.parametrize("form", ["symbols", "words"])
def test_all_mistakes_of_students_are_theirs(form):
    problems = build(Config(form=form, steps=3, same_digits=True, slip_rate=0.5, size=100, students=2), 0)
    found = [first_mistake(problem.question, problem.solution) for problem in problems]
    assert [kind is not None for kind in found] == [problem.columns["slipped"] for problem in problems]
    assert set(found) == {None, "students"}


def test_shares_are_of_the_wrong_ones():
    told = [("47+8=", text) for text in ("55", "45", "45", "45", "50")]
    assert mistakes(told) == (0.75, 0.25)
    assert mistakes(told[:1]) is None
