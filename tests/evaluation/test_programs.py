"""Program of thought: what completions of the two prompts compute, in the real sandbox, and how it is graded."""

import pytest
from made_up import write_all

from grpo_jax.configure import kind_class
from grpo_jax.evaluation.judging import judge_benchmark
from grpo_jax.evaluation.programs import computed, program_of
from grpo_jax.evaluation.reading import open_benchmark, read_problems
from grpo_jax.rewards.workers import Workers
from grpo_jax.tools.results import Limits
from tests.sandboxes import entered

SOLUTION = (
    '\n\n\ndef solution():\n    """How many?"""\n    hens = 2\n    return hens + {}\n\n\n\n\n\nQ: Another?\n\n# sol'
)
BLOCKS = "\n```\nx = symbols('x')\nanswer = {}\n```\nThe imports required for this program are\n```\n"
BLOCKS += "from sympy import {}\n```\nI hope my solution is correct.\n\nProblem:\nAnother"
STOP = ("\nQ:", "Q: ", "\nProblem:", "Problem:")


@pytest.fixture(scope="module")
def ask():
    with entered("auto", 2) as sandbox:
        yield lambda program, earlier: sandbox.submit(program, Limits(wall=5.0), earlier=earlier)


def test_what_is_a_program():
    assert program_of("I would add them.", "solution()") is None
    assert program_of("```\nanswer = 1\n```\nno imports", "answer") is None
    assert program_of("def solution():\n    return 1", "solution()").startswith("def solution():\n    return 1\n")
    program = program_of("```\nanswer = sqrt(2)\n```\nimports\n```\nfrom sympy import sqrt\n```", "answer")
    assert program.splitlines()[:2] == ["from sympy import sqrt", "answer = sqrt(2)"]


def test_what_programs_compute(ask):
    texts = [
        "def solution():\n    return 2 + 3",
        "def solution():\n    return 1 / 0",
        "def solution():\n    pass",
        "def solution():\n    return 42\nprint(solution())",
        "def solution():\n    print('#### 18')\n    return [1, 2]\nprint('#### 18')",
        "def solution():\n    return 3\nraise ValueError",
        "def solution()\n    return 1",
        "no program",
    ]
    assert computed(texts, "solution()", ask) == ["5", None, "None", "42", "1, 2", None, None, None]
    blocks = "```\nanswer = solve(Symbol('x')**2 - 2)\n```\n\n```\nfrom sympy import Symbol, solve\n```"
    assert computed([blocks], "answer", ask) == ["-sqrt(2), sqrt(2)"]


def test_gold_of_programs_is_right(ask, tmp_path):
    """The references of made-up GSM8K and MATH problems, written as programs; others are wrong."""
    folder = write_all(tmp_path)
    with Workers(max_workers=1) as workers:
        for kind, right, wrong in (
            ("gsm8k", [SOLUTION.format("3"), SOLUTION.format("1278")], [SOLUTION.format("4"), "no program"]),
            (
                "math",
                [
                    BLOCKS.format("Rational(1, 2)", "symbols, Rational"),
                    BLOCKS.format("solve(x**2 - 4)", "symbols, solve"),
                ],
                [BLOCKS.format("2", "symbols"), BLOCKS.format("solve(x - 2)", "symbols, solve")],
            ),
        ):
            config = kind_class("evaluation.benchmarks", kind)(data=str(folder), limit=2)
            benchmark = open_benchmark(kind, config)
            problems = read_problems(benchmark, config)

            def graded(texts, benchmark=benchmark, problems=problems):
                def read(texts):
                    return computed(texts, benchmark.program.result, ask)

                return judge_benchmark(benchmark, "program", STOP, problems, texts, workers, read=read)

            found = graded(right)
            assert [one.grade for one in found] == ["right", "right"], found
            assert all(one.official in (True, False) for one in found) and found[0].official is True
            assert [one.grade for one in graded(wrong)] == ["wrong", "wrong"]
