"""Iterative GRPO: the order of Algorithm 1, a reward model that goes on learning, and runs broken in its middle."""

import json
import os
import shutil
import signal
import weakref
from unittest import mock

import jax
import pytest
from small_runs import (
    assert_equal_leaves,
    assert_well_said,
    launched,
    metrics,
    rollouts,
    run,
    run_interrupted,
    write_settings,
)
from test_kill import SAVING, training, wait_for

from grpo_jax.reporting.events import read_events
from grpo_jax.reporting.ledger import read_ledger
from grpo_jax.stages import continued, label, learned, reward_model, rl
from grpo_jax.stages import run as stages_run
from grpo_jax.training.interrupt import Interrupted

TRUTH = {"kind": "arithmetic", "slip_rate": 0.5, "size": 60}
MODEL = {
    "labels": TRUTH,
    "supervision": "outcome",
    "max_steps": 2,
    "batch_size": 8,
    "max_length": 24,
    "optimizer": {"learning_rate": 1e-2},
}
MORE = {
    "reward": {"kind": "accuracy"},
    "num_problems": 12,
    "num_solutions": 3,
    "num_completions": 2,
    "batch_prompts": 4,
    "held_out": 0.3,
    "max_steps": 3,
    "batch_size": 4,
    "max_length": 24,
    "optimizer": {"learning_rate": 1e-2},
    "logging_steps": 1,
    "save_steps": 1,
}
ITERATED = {
    "rewards": [{"kind": "learned"}],
    "iterations": 3,
    "max_steps": 2,
    "num_iterations": 2,
    "continue_reward_model": MORE,
}


class Watched:
    """A program that scores, and the weights that it was given, each time as one number."""

    def __init__(self, program):
        self.program, self.weights = program, []

    def __call__(self, params, rollout):
        self.weights.append(sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(params)))
        return self.program(params, rollout)


class Held:
    """Which of the reward models that were opened, in order, have weights on the devices yet."""

    def __init__(self):
        self.opened, self.seen = [], []

    def opening(self, original):
        def open_scorer(*args):
            scorer = original(*args)
            self.opened.append([weakref.ref(leaf) for leaf in jax.tree.leaves(scorer.args[0])])
            return scorer

        return open_scorer

    def looking(self, module, name):
        original = getattr(module, name)

        def function(*args):
            alive = [i for i, leaves in enumerate(self.opened) if any(leaf() is not None for leaf in leaves)]
            self.seen.append((name, alive))
            return original(*args)

        return mock.patch.object(module, name, function)


@pytest.fixture(scope="module")
def iterated(tmp_path_factory, workers):
    """An unbroken run of three iterations: settings, directory, the programs that its reward models scored with, and
    which of these models had weights when."""
    folder = tmp_path_factory.mktemp("iterated")
    file = write_settings(folder / "run.yaml", reward_model=MODEL, rl=ITERATED)
    original, programs, held = learned.scoring_program, [], Held()

    def watched(*args):
        programs.append(Watched(original(*args)))
        return programs[-1]

    with (
        mock.patch.object(learned, "scoring_program", watched),
        mock.patch.object(learned, "open_scorer", held.opening(learned.open_scorer)),
        held.looking(rl, "improve"),
        held.looking(label, "train"),
        held.looking(reward_model, "train"),
    ):
        run(file, folder / "run", workers)
    return file, folder / "run", programs, held


def by_the_algorithm(iterations, steps, updates):
    """(line, iteration, step, updates before) in the order of Algorithm 1 of arXiv:2402.03300, and line 12's parts."""
    done, k = [(1, 1, 1, 0)], 0
    for i in range(1, iterations + 1):
        done.append((3, i, (i - 1) * steps + 1, k))
        for step in range((i - 1) * steps + 1, i * steps + 1):
            done += [(line, i, step, k) for line in (5, 6, 7, 8, 9)]
            for _ in range(updates):
                done.append((11, i, step, k))
                k += 1
        if i < iterations:
            done += [(12, i, i * steps, k)] * 3
    return done


def events(directory):
    return read_events(directory / "rl" / "events.jsonl")


def test_the_order_of_the_algorithm(iterated):
    """Each line of it once, when its turn is; each iteration's completions are judged by its own reward model."""
    told = events(iterated[1])
    assert [(e["line"], e["iteration"], e["step"], e["updates"]) for e in told] == by_the_algorithm(3, 2, 2)
    assert [e["continued"] for e in told if e["line"] == 8] == [0, 0, 1, 1, 2, 2]
    assert [e["part"] for e in told if e["line"] == 12] == ["fresh solutions", "labels", "training"] * 2
    names = {e["line"]: e["event"] for e in told}
    assert [names[line] for line in (3, 7, 12)] == ["reference", "completions", "reward model"]


def test_without_a_reward_model_the_order_is_the_same(base):
    told = events(base[1])
    wanted = [event for event in by_the_algorithm(2, 2, 2) if event[0] != 12]
    assert [(e["line"], e["iteration"], e["step"], e["updates"]) for e in told] == wanted


def test_each_iteration_learns_from_its_own_policy(iterated):
    """Other problems each time, the solutions of the policy as it was then, a tenth of what was learnt before."""
    directory = iterated[1]
    asked, weights = [], [directory / "reward_model" / "model" / "model.safetensors"]
    for i in (1, 2):
        folder = directory / "rl" / f"iteration_{i}"
        first, *lines = [json.loads(line) for line in (folder / "label" / "solutions.jsonl").read_text().splitlines()]
        assert first["policy"] == f"rl, step {2 * i}" and len(lines) == first["problems"] == 12
        found = [json.loads(line) for line in (folder / "label" / "labels.jsonl").read_text().splitlines()]
        assert all(step["soft"] is None for row in found for step in row["steps"])  # an outcome model needs no more
        assert {row["outcome"] for row in found} <= {0.0, 1.0}
        asked.append({row["question"] for row in found})
        assert not (folder / "label" / "prefixes.jsonl").exists()
        weights.append(folder / "reward_model" / "model" / "model.safetensors")
        lines = metrics(folder, "reward_model")
        assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
        assert [line["step"] for line in lines if "eval/loss" in line] == [0, 3]
    assert asked[0] != asked[1] and len({path.read_bytes() for path in weights}) == 3
    told = [line for line in metrics(directory, "rl") if "reward_model/loss_after" in line]
    assert [line["step"] for line in told] == [2, 4]
    assert all(line["reward_model/loss_before"] != line["reward_model/loss_after"] for line in told)


def test_the_ledger_has_what_the_iterations_took(iterated):
    """In a ledger of their own, whose totals are parts of the run's beside what the steps took."""
    directory = iterated[1]
    found = read_ledger(directory)
    parts = {f"rl/iteration_{i}": read_ledger(directory / "rl" / f"iteration_{i}") for i in (1, 2)}
    assert found["parts"] == {name: part["totals"] for name, part in parts.items()}
    assert all(part["stages"]["label"]["counts"]["prompts"] == 12 for part in parts.values())
    assert all(part["stages"]["reward_model"]["counts"]["optimizer_steps"] == 3 for part in parts.values())
    steps = [line["num_generated_tokens"] for line in metrics(directory, "rl") if "num_generated_tokens" in line]
    sampled = [part["totals"]["generated_tokens"] for part in parts.values()]
    assert found["stages"]["rl"]["counts"]["generated_tokens"] == sum(steps) and min(sampled) > 0
    own = [found["stages"][stage]["counts"]["generated_tokens"] for stage in ("sft", "rl")]
    assert found["totals"]["generated_tokens"] == sum(own) + sum(sampled)


def test_every_line_says_how_far_it_is(iterated):
    """Measures too, so that runs can be compared over what was generated or learnt."""
    folder = iterated[1]
    for lines in (metrics(folder, "rl"), *(metrics(folder / f"rl/iteration_{i}", "reward_model") for i in (1, 2))):
        assert all({"total/generated_tokens", "total/trained_tokens"} <= line.keys() for line in lines)
    before, *_, last, after = metrics(folder / "rl" / "iteration_1", "reward_model")
    assert before["total/trained_tokens"] == 0 < last["total/trained_tokens"] == after["total/trained_tokens"]


def test_each_iteration_is_scored_by_its_own_reward_model_with_one_program(iterated):
    (watched,) = iterated[2]
    assert watched.program._cache_size() == 1
    first, again, *rest = watched.weights
    assert first == again and [rest[0], rest[2]] == [rest[1], rest[3]] and len({first, *rest}) == 3


def test_one_reward_model_at_a_time_has_weights_and_none_while_the_next_is_learnt(iterated):
    first, *seen = iterated[3].seen
    assert first == ("train", []), "of the stage reward_model"
    steps = [[("improve", [i])] * 2 for i in range(3)]
    assert seen == [*steps[0], *[("train", [])] * 2, *steps[1], *[("train", [])] * 2, *steps[2]]


class Killed(BaseException):
    """The process is gone."""


def killed(module, name, *, call=1, after=False):
    """A patch under which the run ends at the n-th call of a function without having a chance to do anything."""
    original, calls = getattr(module, name), []

    def function(*args, **kwargs):
        calls.append(None)
        if len(calls) == call and after:
            original(*args, **kwargs)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    return mock.patch.object(module, name, function)


def signalled(module, name, *, call):
    original, calls = getattr(module, name), []

    def function(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    return mock.patch.object(module, name, function)


def assert_equal_iterations(got, expected, times):
    """Parameters, metrics, rollouts, events and all that line 12 leaves are the same."""
    assert_equal_leaves(got, expected, "rl")
    assert metrics(got, "rl") == metrics(expected, "rl") and rollouts(got) == rollouts(expected)
    assert events(got) == events(expected)
    for i in range(1, times + 1):
        ours, theirs = (directory / "rl" / f"iteration_{i}" for directory in (got, expected))
        for name in ("label/labels.jsonl", "reward_model/model/model.safetensors", "reward_model/held_out.json"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        assert metrics(ours, "reward_model") == metrics(theirs, "reward_model")


def test_a_run_broken_in_every_part_equals_an_unbroken_one(iterated, workers, tmp_path, capsys):
    """Stopped among the fresh solutions, in the reward model's training and within an iteration; killed among the
    solutions, in the training, when the new model is written and when its first step is under way."""
    file, unbroken, *_ = iterated
    with signalled(label, "verdicts", call=2), pytest.raises(Interrupted, match="in label: 8 of 12 problems"):
        run(file, tmp_path, workers)
    assert [event["line"] for event in events(tmp_path)][-2:] == [11, 11]
    with killed(label, "verdicts"), pytest.raises(Killed):
        run(file, tmp_path, workers)
    with signalled(reward_model, "rows_of", call=2), pytest.raises(Interrupted, match="after step 2 of 3"):
        run(file, tmp_path, workers)
    with killed(reward_model, "rows_of"), pytest.raises(Killed):
        run(file, tmp_path, workers)
    assert not (tmp_path / "rl" / "iteration_1" / "reward_model" / "done.json").exists()
    with killed(reward_model, "keep", after=True), pytest.raises(Killed):
        run(file, tmp_path, workers)
    assert [event["line"] for event in events(tmp_path)][-2:] == [12, 12]
    with killed(continued, "with_models"), pytest.raises(Killed):
        run(file, tmp_path, workers)
    run_interrupted(file, tmp_path, workers, "rl", 3)
    run(file, tmp_path, workers)
    assert_equal_iterations(tmp_path, unbroken, 2)


def test_steps_are_labelled_for_a_model_of_steps(workers, tmp_path):
    """Math-Shepherd's labels, the completer being the policy of now; a reward for each step."""
    rl = ITERATED | {"iterations": 2, "max_steps": 1, "num_iterations": 1}
    rl |= {"rewards": [{"kind": "learned", "supervision": "process"}]}
    rl |= {"continue_reward_model": MORE | {"num_problems": 24}}
    file = write_settings(tmp_path / "run.yaml", sft=None, reward_model=MODEL | {"supervision": "process"}, rl=rl)
    run(file, tmp_path / "run", workers)
    folder = tmp_path / "run" / "rl" / "iteration_1"
    found = [json.loads(line) for line in (folder / "label" / "labels.jsonl").read_text().splitlines()]
    assert all(step["completions"] == 2 for row in found for step in row["steps"][:-1])
    assert any(len(row["steps"]) > 1 for row in found)
    assert json.loads((folder / "reward_model" / "reward_model.json").read_text())["supervision"] == "process"
    assert [e["line"] for e in events(tmp_path / "run")] == [1, 3, *STEP, 12, 12, 12, 3, *STEP]


STEP = (5, 6, 7, 8, 9, 11)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "lines"),
    [
        ("iteration_1/label/solutions.jsonl", 3),
        ("iteration_1/reward_model/metrics.jsonl", 2),
        ("iteration_2/reward_model/done.json", 1),
    ],
)
def test_a_process_that_is_killed(iterated, workers, tmp_path, place, lines):
    """kill -9 of the command line in line 12; the same settings then end as the unbroken run does."""
    file, unbroken, *_ = iterated
    with training(file, tmp_path / "run") as process:
        wait_for(process, tmp_path / "run" / "rl" / place, lines)
        process.kill()
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    run(file, tmp_path / "run", workers, *SAVING)
    assert_equal_iterations(tmp_path / "run", unbroken, 2)


def test_the_reward_model_of_another_run_goes_on_here(iterated, workers, tmp_path):
    """What it has learnt from is said; the other run's model stays as it is."""
    other = iterated[1]
    old = {"kind": "steps", "path": str(other / "rl" / "iteration_1" / "label" / "labels.jsonl")}
    more = MORE | {"old_labels": old, "replay": 0.5}
    rl = ITERATED | {"rewards": [{"kind": "learned", "path": str(other)}], "iterations": 2, "max_steps": 1}
    before = (other / "reward_model" / "model" / "model.safetensors").read_bytes()
    run(write_settings(tmp_path / "run.yaml", rl=rl | {"continue_reward_model": more}), tmp_path / "run", workers)
    ours = tmp_path / "run" / "rl" / "iteration_1" / "reward_model"
    assert (ours / "model" / "model.safetensors").read_bytes() != before
    assert (other / "reward_model" / "model" / "model.safetensors").read_bytes() == before


def test_the_base_of_adapters_is_loaded_once(iterated, workers, tmp_path):
    """Fresh solutions are of the same base as the steps, which lies on the devices already."""
    other = iterated[1]
    model = {"architecture": None, "model_name_or_path": str(other / "hf"), "lora": {"rank": 2, "targets": ["q_proj"]}}
    rl = ITERATED | {"rewards": [{"kind": "learned", "path": str(other)}], "max_steps": 1, "num_iterations": 1}
    rl |= {"continue_reward_model": MORE | {"old_labels": TRUTH, "max_steps": 1}}
    file = write_settings(tmp_path / "run.yaml", model=model, sft=None, rl=rl)
    loads = mock.Mock(wraps=stages_run.frozen_params)
    with mock.patch.object(stages_run, "frozen_params", loads):
        run(file, tmp_path / "run", workers)
    assert loads.call_count == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fused_steps": 2}, ("rl.continue_reward_model", "rl.fused_steps 2", "set it to 0")),
        ({"steps_off_policy": 1, "importance_cap": 2.0}, ("rl.steps_off_policy 1", "first step of an iteration")),
        ({"rewards": [{"kind": "accuracy"}]}, ("has no reward model, only accuracy", "{kind: learned}")),
        ({"continue_reward_model": MORE | {"num_problems": 10**6}}, ("num_problems: 1000000", "lower it")),
        ({"continue_reward_model": MORE | {"microbatches": 3}}, ("batch_size 4 cannot be cut into 3", "divisor of 4")),
        ({"continue_reward_model": MORE | {"max_length": 5000}}, ("max_length: 5000 tokens", "4096 positions")),
        ({"continue_reward_model": MORE | {"max_length": 6}}, ("model.max_length: 6 tokens", "raise it to 9")),
        (
            {"continue_reward_model": MORE | {"held_out": 0.999, "num_problems": 2}},
            ("rl.continue_reward_model.held_out: 0.999", "none of the 2 problems of iteration 1", "lower it"),
        ),
        (
            {"continue_reward_model": MORE | {"reward": {"kind": "length"}}},
            ("rl.continue_reward_model.reward: length judges no answers", "such as accuracy"),
        ),
        (
            {"rewards": [{"kind": "learned"}, {"kind": "learned", "path": "OTHER"}]},
            ("asks 2 reward models", "leave one"),
        ),
        ({"rewards": [{"kind": "learned", "path": "OTHER"}]}, ("old_labels is null", "of another run", "replay to 0")),
    ],
)
def test_refused(iterated, tmp_path, capsys, changes, words):
    rl = json.loads(json.dumps(ITERATED | changes).replace("OTHER", str(iterated[1])))
    file = write_settings(tmp_path / "run.yaml", reward_model=MODEL, rl=rl)
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and not (tmp_path / "run" / "sft").exists()
    assert_well_said(message, words)


def test_preferences_are_not_continued(iterated, tmp_path, capsys):
    shutil.copytree(iterated[1] / "reward_model", (model := tmp_path / "other" / "reward_model"))
    card = json.loads((model / "reward_model.json").read_text()) | {"supervision": "preference"}
    (model / "reward_model.json").write_text(json.dumps(card))
    rl = ITERATED | {"rewards": [{"kind": "learned", "path": str(tmp_path / "other")}]}
    file = write_settings(tmp_path / "run.yaml", rl=rl)
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2
    assert_well_said(message, ("learns preferences", "outcome or process"))


def test_completions_that_a_model_of_outcomes_does_not_need_are_not_checked(tmp_path, capsys):
    """12 rows would not hold those of 8 completions of a beginning; the next thing is refused."""
    more = MORE | {"decode_rows": 12, "num_completions": 8, "reward": {"kind": "length"}}
    file = write_settings(tmp_path / "run.yaml", reward_model=MODEL, rl=ITERATED | {"continue_reward_model": more})
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2
    assert_well_said(message, ("length judges no answers",))
