"""Scoring a batch: kinds, users' functions, and everything these can do wrong (reliability table, rows 43 to 47)."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from grpo_jax.configure import kind_class
from grpo_jax.rewards.reward import RewardError, check_rewards, load_reward, load_rewards
from grpo_jax.rewards.score import score
from grpo_jax.types import Problem

PROBLEMS = [
    Problem("1+1=?", "2", columns={"level": 1}),
    Problem("2+2=?", "4", solution="2+2=4", columns={"level": 3}),
]
COMPLETIONS = ["answer: 2", "answer: 3", r"\boxed{2}", "boom", r"\boxed{\sqrt{16}}", "answer: 4", "", r"\boxed{4}"]


def reward(kind, **settings):
    return load_reward(kind_class("rewards", kind)(kind=kind, **settings))


def function(name, **settings):
    return reward("python", path=f"trl_functions:{name}", **{"time_limit": 20.0, **settings})


def scored(rewards, workers, completions=COMPLETIONS, **settings):
    return score(PROBLEMS, completions, rewards, workers, num_generations=len(completions) // 2, **settings)


def only(rewards, workers, **settings):
    return scored([rewards], workers, **settings).parts[0].reshape(-1).tolist()


def test_accuracy(workers):
    result = scored([reward("accuracy")], workers)
    assert result.parts.shape == (1, 2, 4)
    assert result.parts.dtype == np.float32
    assert result.parts[0].tolist() == [[1, 0, 1, 0], [1, 1, 0, 1]]
    assert not any(result.counts["accuracy"].values())


def test_ungradable_answers_are_counted_and_worth_what_the_policy_says(workers):
    hostile = [r"\boxed{9^{9^{9}}}", "the answer is $2 3$"] * 4
    wrong = scored([reward("accuracy", wrong=-1.0, time_limit=0.3)], workers, hostile)
    assert wrong.parts.tolist() == [[[-1] * 4] * 2]
    assert wrong.counts["accuracy"]["ungradable"] == 8
    abstained = scored([reward("accuracy", ungradable="abstain", time_limit=0.3)], workers, hostile)
    assert np.isnan(abstained.parts).all()


def test_a_slow_comparison_costs_its_item(workers, monkeypatch):
    """Four at the reward's limit are 1 s on two workers; at its default they were 6 s, at the pool's no end."""
    monkeypatch.setattr(workers, "time_limit", 60.0)
    default = kind_class("rewards", "accuracy")(kind="accuracy").time_limit
    slow = [rf"\boxed{{\overline{{z}}^{{{9999 - i}}}(x+y+z+w)^{{300}}}}" for i in range(4)]
    start = time.monotonic()
    result = scored([reward("accuracy", time_limit=0.5)], workers, slow + [r"\boxed{4}"] * 4)
    assert time.monotonic() - start < 4 * default / workers.max_workers
    assert result.parts[0].tolist() == [[0] * 4, [1] * 4]
    assert result.counts["accuracy"] == {"ungradable": 4, "timeout": 4, "error": 0, "nonfinite": 0, "fallback": 0}


def test_an_empty_completion_is_asked_about(workers):
    assert only(reward("accuracy"), workers, completions=[""] * 8) == [0.0] * 8
    assert only(function("raises_on_boom"), workers, completions=[""] * 8) == [1.0] * 8


@pytest.mark.parametrize(
    ("completion", "settings", "value"),
    [
        (r"so \boxed{2}", {}, 1.0),
        (r"\boxed{1} \boxed{2}", {}, 0.0),
        (r"\boxed{}", {}, 0.0),
        ("2", {"wrong": -0.5}, -0.5),
        ("<think>a\nb</think>2", {"pattern": "^<think>.*</think>[0-9]+$", "correct": 0.2}, 0.2),
        ("<think>a</think>", {"pattern": "^<think>.*</think>[0-9]+$"}, 0.0),
    ],
)
def test_format(workers, completion, settings, value):
    assert only(reward("format", **settings), workers, completions=[completion] * 2) == pytest.approx([value] * 2)


def test_an_exponential_pattern_costs_its_completion(workers, monkeypatch):
    monkeypatch.setattr("grpo_jax.rewards.format.TIME_LIMIT", 3.0)
    completions = ["a" * 60 + "!", "aaa", "b", "aa"]
    values = only(reward("format", pattern="^(a|aa)+$"), workers, completions=completions)
    assert math.isnan(values[0])
    assert values[1:] == [1.0, 0.0, 1.0]


def test_a_bad_pattern_is_refused_at_start():
    with pytest.raises(RewardError, match=r"format: pattern '\(' is no regular expression"):
        reward("format", pattern="(")


# Functions of TRL and Tunix, unchanged.


def test_conversational_functions(workers):
    rewards = [function("format_reward_func"), function("correctness_reward_func")]
    completions = ["<think>x</think><answer>2</answer>", "2", "3", "2", "4", "4", "5", "4"]
    result = scored(rewards, workers, completions, conversational=True)
    assert result.parts[0].reshape(-1).tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert result.parts[1].reshape(-1).tolist() == [0, 2, 0, 2, 2, 2, 0, 2]


def test_prompts_as_the_policy_saw_them(workers):
    prompts = [[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]]
    values = only(function("correctness_reward_func"), workers, prompts=prompts, conversational=True)
    assert len(values) == 8


def test_text_functions_columns_and_none(workers):
    values = only(function("check_numbers"), workers)
    assert [None if math.isnan(value) else value for value in values] == [1, 0, None, None, None, 1, None, None]
    assert only(function("only_what_it_names"), workers) == [1] * 4 + [3] * 4
    assert only(function("by_length"), workers, completion_ids=[[7] * n for n in range(8)]) == list(range(8))
    assert only(function("curriculum"), workers, step=12) == [12] * 8
    assert only(function("asynchronous"), workers) == [0.5] * 8
    assert only(function("judge"), workers) == list(range(8))


def test_columns_of_the_row_win_over_fields(workers):
    problems = [Problem("q", "2", columns={"answer": "9"})]
    result = score(problems, ["answer: 9", "answer: 2"], [function("check_numbers")], workers, num_generations=2)
    assert result.parts.tolist() == [[[1, 0]]]


def test_a_file_by_its_path(workers, tmp_path):
    (tmp_path / "neighbour.py").write_text("VALUE = 0.25\n")
    file = tmp_path / "mine.py"
    file.write_text("from neighbour import VALUE\ndef f(completions):\n    return [VALUE] * len(completions)\n")
    assert only(reward("python", path=f"{file}:f", time_limit=20.0), workers) == [0.25] * 8


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trl_functions:missing", r"no function 'missing'; it has .*always_hangs"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("no_such_file.py:f", "no file 'no_such_file.py'"),
    ],
)
def test_a_function_that_is_not_there_is_found_out_at_start(workers, path, message):
    with pytest.raises(RewardError, match=message):
        check_rewards([reward("python", path=path)], workers)


def test_a_path_of_no_form_is_refused():
    with pytest.raises(RewardError, match="'accuracy' is no path to a function"):
        reward("python", path="accuracy")


# Types and shapes.


def test_number_types_and_what_is_no_number(workers):
    result = scored([function("mixed_types")], workers)
    values = result.parts.reshape(-1).tolist()
    assert values[:5] == [1, 1, 0.5, 2, 0]
    assert all(map(math.isnan, values[5:]))
    assert result.counts["mixed_types"] == {"ungradable": 3, "timeout": 0, "error": 0, "nonfinite": 1, "fallback": 0}


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("too_short", "expected a list of 8 numbers, one a completion, got a list of 7"),
        ("only_one", "expected a list of 8 numbers, one a completion, got a list of 1"),
        ("scalar", "expected a list of 8 numbers, got float"),
        ("generator", "expected a list of 8 numbers, got generator"),
        ("strings", "expected numbers or None, got str '1.0' at index 0"),
        ("nothing", "expected a list of 8 numbers, got NoneType"),
    ],
)
def test_wrong_shapes_and_types_are_refused_by_name(workers, name, got):
    with pytest.raises(RewardError, match=f"'trl_functions:{name}'.*{got}"):
        scored([function(name)], workers)


def test_rows_that_do_not_fit_are_refused(workers):
    with pytest.raises(ValueError, match="7 completions for 2 problems x 4 generations = 8 rows"):
        score(PROBLEMS, COMPLETIONS[:7], [reward("accuracy")], workers, num_generations=4)


# Failures.


@pytest.mark.parametrize("name", ["raises_on_boom", "exits_on_boom"])
def test_raising_on_one_of_64_costs_one(workers, name):
    result = scored([function(name)], workers, ["fine"] * 40 + ["boom"] + ["fine"] * 23)
    values = result.parts.reshape(-1)
    assert np.isnan(values[40])
    assert np.nansum(values) == 63
    assert result.counts[name] == {"ungradable": 1, "timeout": 0, "error": 1, "nonfinite": 0, "fallback": 1}
    assert result.error.startswith("Traceback")


def test_hanging_on_one_of_64_costs_one_within_the_limit(workers):
    start = time.monotonic()
    result = scored([function("hangs_on_boom", time_limit=2.0)], workers, ["fine"] * 40 + ["boom"] + ["fine"] * 23)
    assert time.monotonic() - start < 20.0  # not 2 s for each of 64
    assert np.isnan(result.parts.reshape(-1)[40])
    assert np.nansum(result.parts) == 63
    assert result.counts["hangs_on_boom"]["timeout"] == 1


def test_raising_on_all_stops_with_the_traceback_once(workers):
    with pytest.raises(RewardError, match="failed on the batch and on each of its 8 completions") as caught:
        scored([function("always_raises")], workers)
    assert str(caught.value).count("no such column") == 1 + str(caught.value).count('raise KeyError("no such column")')


def test_hanging_on_all_stops(workers):
    start = time.monotonic()
    with pytest.raises(RewardError, match="longer than its time_limit on 64 of them"):
        scored([function("always_hangs", time_limit=1.0)], workers, ["fine"] * 64)
    assert time.monotonic() - start < 20.0  # not 1 s for each, two at a time


# Several rewards.


def test_names_and_array_rewards():
    configs = [kind_class("rewards", "format")(kind="format", weight=0.1)] * 2
    configs.append(kind_class("rewards", "length")(kind="length", buffer=4))
    rewards = load_rewards(configs)
    assert [(one.name, one.weight, one.host is None) for one in rewards] == [
        ("format", 0.1, False),
        ("format_2", 0.1, False),
        ("length", 1.0, True),
    ]


def test_parts_are_in_the_order_of_the_host_rewards(workers):
    result = scored([reward("format"), reward("length", buffer=2), reward("accuracy")], workers)
    assert result.parts.shape == (2, 2, 4)
    assert list(result.counts) == ["format", "accuracy"]


def test_a_kind_must_build_a_reward():
    import grpo_jax.configure as configure

    bad = SimpleNamespace(build=lambda config: 1.0)
    original, configure.find = configure.find, lambda package, kind: bad
    try:
        with pytest.raises(RewardError, match="expected a Reward with host, array, or both"):
            load_reward(SimpleNamespace(kind="mine"))
    finally:
        configure.find = original
