"""The source `arithmetic`: exact enumeration, disjoint splits, systematic slips."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.arithmetic import Space, Sum, symbols, without_borrows, without_carries, work_out
from grpo_jax.data.permutation import permute
from grpo_jax.data.sources.arithmetic import Config, TooFewProblems, alphabet, build


def questions(seed=0, **settings):
    return [problem.question for problem in build(Config(**settings), seed)]


def evaluate(question):
    return eval(question.removesuffix("="))


def partial_sums(problem):
    signed = (number if operation == "+" else -number for operation, number in problem.steps)
    return list(itertools.accumulate(signed, initial=problem.first))


@pytest.mark.parametrize("same_digits", [False, True])
@pytest.mark.parametrize("first_digits, digits, steps", [(1, 1, 1), (1, 1, 3), (2, 1, 2), (1, 2, 2), (3, 2, 1)])
def test_enumeration_is_exactly_the_sums_within_the_borders(first_digits, digits, steps, same_digits):
    space = Space(first_digits, digits, steps, same_digits=same_digits)
    found = {symbols(space.unrank(rank)) for rank in range(space.size)}
    firsts, others = [range(10 ** (d - 1), 10**d) for d in (first_digits, digits)]
    moves = list(itertools.product("+-", others))
    sums = [Sum(first, chosen) for first in firsts for chosen in itertools.product(moves, repeat=steps)]
    bottom, top = (firsts.start, firsts.stop - 1) if same_digits else (0, float("inf"))
    every = {symbols(p) for p in sums if all(bottom <= value <= top for value in partial_sums(p))}
    assert len(found) == space.size
    assert found == every


@pytest.mark.parametrize("steps", [2, 6, 9])
def test_long_sums_stay_within_their_digits(steps):
    space = Space(2, 1, steps, same_digits=True)
    for rank in range(0, space.size, space.size // 200):
        problem = space.unrank(rank)
        assert all(10 <= value <= 99 for value in partial_sums(problem))
    assert space.unrank(0) != space.unrank(space.size - 1)


@given(size=st.integers(1, 3000), key=st.text(max_size=5))
@settings(max_examples=25)
def test_permutation_is_a_bijection(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_permutation_of_a_huge_range_and_off_the_range():
    size = 10**60 + 7
    images = {permute(i, size, "k") for i in range(1000)}
    assert len(images) == 1000 and max(images) < size and max(images) > size // 2
    with pytest.raises(IndexError):
        permute(5, 5, "k")


def test_splits_share_no_question_whatever_the_seeds():
    train = [questions(seed) for seed in (0, 1)]
    test = [questions(seed, split="test") for seed in (0, 1, 7)]
    assert [len(set(part)) for part in train] == [26136, 26136] and len(set(test[0])) == 2904
    assert not set(train[0]) & set(test[0])
    assert set(train[0]) == set(train[1]) and set(test[0]) == set(test[1]) == set(test[2])
    assert train[0][:5] != train[1][:5]  # the seed chooses the order


def test_splits_share_no_story():
    train = questions(0, form="words", steps=1, first_digits=1)
    test = questions(3, form="words", steps=1, first_digits=1, split="test")
    assert len(set(train) | set(test)) == len(train) + len(test)


def test_a_problem_depends_on_seed_and_index_alone():
    config = Config(slip_rate=0.5)
    one, two = build(config, 3), build(config, 3)
    backwards = [two[i] for i in reversed(range(50))][::-1]
    assert [one[i] for i in range(50)] == backwards
    assert build(Config(slip_rate=0.5, size=50), 3)[49] == one[49]  # nor on the size
    assert one[-1] == one[len(one) - 1] and one[3:5] == [one[3], one[4]]
    with pytest.raises(IndexError):
        one[len(one)]


@pytest.mark.parametrize("form", ["symbols", "words"])
@pytest.mark.parametrize("steps, digits", [(2, 1), (4, 3)])
def test_answers_are_right_and_solutions_without_slips_lead_to_them(form, steps, digits):
    numbers = build(Config(steps=steps, digits=digits, first_digits=3, size=300), 0)
    problems = build(Config(steps=steps, digits=digits, first_digits=3, size=300, form=form), 0)
    known = set(alphabet(problems.config))
    for plain, problem in zip(numbers, problems, strict=True):
        lines = problem.solution.split("\n")
        assert problem.answer == plain.answer == str(evaluate(plain.question))
        assert len(lines) == steps and lines[-1].rpartition("=")[2] == problem.answer
        assert not problem.columns["slipped"] and problem.columns["steps"] == steps
        assert all(int(line.rpartition("=")[2]) >= 0 for line in lines)
        assert set(problem.question + problem.solution + problem.answer) <= known
        if form == "words":
            assert all(evaluate(left) == int(right) for left, _, right in (x.partition("=") for x in lines))


def test_the_slips_of_the_issue():
    assert without_carries(47, 8) == 45  # a forgotten carry
    assert without_borrows(52, 8) == 56  # the smaller digit taken from the larger
    assert without_carries(5, 8) == 13  # the leftmost column is written in full: no carry to forget
    assert without_carries(95, 17) == 102 and without_borrows(100, 1) == 101
    work = work_out(Sum(47, (("+", 8), ("-", 9))), lambda step: step == 0)
    assert work.results == (45, 36) and work.slipped  # a slip goes on; the second step was without one
    assert work_out(Sum(41, (("+", 8),)), lambda step: True) == ((49,), False)  # nothing to slip on


@given(rank=st.integers(0, 10**9), slips=st.sets(st.integers(0, 3)))
@settings(max_examples=100)
def test_students_never_write_negative_numbers(rank, slips):
    problem = SPACE.unrank(rank % SPACE.size)
    assert min(work_out(problem, slips.__contains__).results) >= 0
    assert work_out(problem, lambda step: False) == (tuple(partial_sums(problem)[1:]), False)


SPACE = Space(2, 2, 4)


def test_slip_rate_is_the_share_of_steps_with_a_carry_or_borrow():
    problems = build(Config(slip_rate=0.65, steps=1, form="symbols"), 0)
    sums = [problems._sum(i) for i in range(len(problems))]
    risky = [i for i, s in enumerate(sums) if work_out(s, lambda step: True).slipped]
    slipped = [problems[i].columns["slipped"] for i in range(len(problems))]
    assert sum(slipped) == sum(slipped[i] for i in risky)
    assert abs(sum(slipped) / len(risky) - 0.65) < 0.06
    assert all(problems[i].answer == str(evaluate(problems[i].question)) for i in risky)


def test_students_answer_the_same_questions_each_in_their_own_way():
    problems = build(Config(size=200, students=3, slip_rate=0.5), 0)
    assert len(problems) == 600 and len({p.id for p in problems}) == 600
    assert [p.question for p in problems][:200] == [p.question for p in problems][200:400]
    assert [p.solution for p in problems][:200] != [p.solution for p in problems][200:400]


def test_more_problems_than_there_are():
    with pytest.raises(TooFewProblems, match=r"size 3000 is more than the 2904 sums of split 'test'.*ask for fewer"):
        build(Config(split="test", size=3000), 0)
    assert len(build(Config(steps=8, digits=2), 0)) == 100_000


def test_importing_the_kind_is_light():
    import subprocess
    import sys

    heavy = "any(m in sys.modules for m in ('jax', 'numpy', 'datasets'))"
    code = f"import sys, grpo_jax.data.sources.{{}}; sys.exit({heavy})"
    for kind in ("arithmetic", "jsonl", "tfds", "hf"):
        assert subprocess.run([sys.executable, "-c", code.format(kind)]).returncode == 0, kind


def test_demonstrations_with_a_program():
    """A share of them, which are right; the others are as before, and the alphabet has what programs need."""
    plain = build(Config(size=400, slip_rate=1.0), 0)
    mixed = build(Config(size=400, slip_rate=1.0, tool_rate=0.3), 0)
    called = [problem.solution.startswith("```python\n") for problem in mixed]
    assert 0.22 < sum(called) / 400 < 0.38
    for with_tool, a, b in zip(called, plain, mixed, strict=True):
        assert (a.question, a.answer) == (b.question, b.answer)
        if with_tool:
            program, output, answer = b.solution.removeprefix("```python\n").replace("\n```\n", "|").split("|")
            assert program + "=" == b.question and eval(program) == int(b.answer)
            assert output == "```output\n" + b.answer and answer == b.answer and not b.columns["slipped"]
        else:
            assert a.solution == b.solution
        assert set(b.question + b.solution) <= set(alphabet(mixed.config))
    assert alphabet(plain.config) == "\n+-0123456789="
