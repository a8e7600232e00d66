"""The reward model as a stage: what it leaves, from what it starts, that it resumes exactly, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from small_runs import (
    assert_equal_leaves,
    assert_well_said,
    launched,
    metrics,
    run,
    run_interrupted,
    write_settings,
)

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.hf import load_params, read_config
from grpo_jax.models.scores import sequence_scores
from grpo_jax.types import Sequences
from tests import tiny
from tests.make_random_model import main as make_random_model

TRUTH = {"kind": "arithmetic", "slip_rate": 0.5, "size": 60}
MODEL = {
    "labels": TRUTH,
    "held_out": 0.3,
    "max_steps": 4,
    "batch_size": 8,
    "max_length": 24,
    "optimizer": {"learning_rate": 1e-2},
    "logging_steps": 1,
    "eval_steps": 2,
    "save_steps": 0,
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, workers):
    """An unbroken run of sft and reward_model: settings and directory."""
    folder = tmp_path_factory.mktemp("scored")
    file = write_settings(folder / "run.yaml", reward_model=MODEL, rl=None)
    run(file, folder / "run", workers)
    return file, folder / "run"


def test_what_it_leaves(scored):
    """A sequence classifier, the way to ask it, metrics with measures on held-out solutions; the policy is sft's."""
    _, directory = scored
    stage = directory / "reward_model"
    config = read_config(stage / "model", head="scalar")
    params = load_params(stage / "model", config, tiny.mesh_of())
    rows = Sequences(np.full((1, 4), 3, np.int32), np.arange(4, dtype=np.int32)[None], np.ones((1, 4), np.int32))
    assert np.isfinite(np.asarray(sequence_scores(Decoder(config), params, rows))).all()
    card = json.loads((stage / "reward_model.json").read_text())
    assert (card["supervision"], card["head"], card["candidates"], card["step_tag"]) == ("process", "scalar", None, [])
    lines = metrics(directory, "reward_model")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    held_out = [line for line in lines if "eval/auc" in line]
    assert [line["step"] for line in held_out] == [2, 4]
    measures = json.loads((stage / "held_out.json").read_text())
    told = {k.removeprefix("eval/"): v for k, v in held_out[-1].items() if k.startswith("eval/")}
    assert measures == pytest.approx(told)
    assert json.loads((directory / "exports.json").read_text()) == {"hf": "sft, step 4"}
    assert "reward_model" in (directory / "report.html").read_text()


def test_a_broken_run_equals_an_unbroken_one(scored, workers, tmp_path):
    file, unbroken = scored
    stopped = run_interrupted(file, tmp_path, workers, "reward_model", 3)
    assert stopped.exit_code == 143 and "stopped after step 3 of 4" in str(stopped)
    run(file, tmp_path, workers)
    assert_equal_leaves(tmp_path, unbroken, "reward_model")
    assert metrics(tmp_path, "reward_model") == metrics(unbroken, "reward_model")
    ours, theirs = (d / "reward_model" / "model" / "model.safetensors" for d in (tmp_path, unbroken))
    assert ours.read_bytes() == theirs.read_bytes()


def test_rl_goes_on_from_the_policy_and_not_from_the_reward_model(scored, workers, tmp_path):
    _, unbroken = scored
    shutil.copytree(unbroken, directory := tmp_path / "run")
    run(write_settings(tmp_path / "both.yaml", reward_model=MODEL), directory, workers)
    plain = tmp_path / "plain"
    run(write_settings(tmp_path / "rl.yaml"), plain, workers)
    assert_equal_leaves(directory, plain, "rl")


TWO_TOKENS = {"head": "two_token", "good_token": "+", "bad_token": "-"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"supervision": "outcome"}, ("outcome, head scalar", "the score head is new")),
        (
            TWO_TOKENS | {"step_tag": "=", "eval_labels": TRUTH | {"split": "test", "size": 3}},
            ("3 held out", "lm head"),
        ),
    ],
)
def test_other_forms(tmp_path, workers, capsys, changes, words):
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=None, reward_model=MODEL | changes)
    run(file, tmp_path / "run", workers)
    said = " ".join(capsys.readouterr().out.split())
    assert all(word in said for word in words), said
    assert np.isfinite(metrics(tmp_path / "run", "reward_model")[-1]["eval/loss"])
    assert not (tmp_path / "run" / "hf").exists()  # nothing has trained a policy


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    make_random_model([str(path := tmp_path_factory.mktemp("model") / "qwen2"), "--family", "qwen2"])
    return path


def on_a_model(folder, model, **changes):
    """Settings of a reward model alone, on a model directory."""
    named = {"architecture": None, "model_name_or_path": str(model)}
    labels = {"held_out": 0.0, "max_steps": 2, "batch_size": 2, "max_length": 256}
    return write_settings(folder / "run.yaml", model=named, sft=None, rl=None, reward_model=MODEL | labels | changes)


def test_preferences_and_going_on_from_a_reward_model(tmp_path, model, workers, capsys):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "1+1?", "chosen": "2", "rejected": "3"}\n' * 3)
    pairs = {"labels": {"kind": "preferences", "path": str(tmp_path / "pairs.jsonl")}, "supervision": "preference"}
    run(on_a_model(tmp_path, model, **pairs), first := tmp_path / "first", workers)
    lines = metrics(first, "reward_model")
    assert [line["num_labels"] for line in lines] == [6, 6] and lines[1]["loss"] < lines[0]["loss"]
    again = pairs | {"model_name_or_path": str(first / "reward_model" / "model")}
    run(on_a_model(tmp_path, model, **again), tmp_path / "second", workers)
    assert "its scalar head included" in capsys.readouterr().out
    assert metrics(tmp_path / "second", "reward_model")[0]["loss"] < lines[0]["loss"]


def test_fresh_labels_with_some_of_the_old_ones(scored, workers, tmp_path, capsys):
    """As iterative GRPO has it: the reward model of before goes on, a tenth of the mixture is of before."""
    old = TRUTH | {"split": "test", "size": 40}
    more = {"old_labels": old, "held_out": 0.0, "model_name_or_path": str(scored[1] / "reward_model" / "model")}
    run(write_settings(tmp_path / "run.yaml", sft=None, rl=None, reward_model=MODEL | more), tmp_path / "run", workers)
    said = " ".join(capsys.readouterr().out.split())
    assert "60 fresh solutions and 7 of 40 old ones" in said and "67 solutions with 134 labels" in said
    assert "its scalar head included" in said
    assert metrics(tmp_path / "run", "reward_model")[0]["loss"] < metrics(scored[1], "reward_model")[0]["loss"]


REAL = {
    "math_shepherd": ("math_shepherd_samples", {}),
    "tagged": ("math_shepherd_samples", {"head": "two_token", "good_token": " +", "bad_token": "-", "step_tag": " ки"}),
    "prm800k": ("prm800k_samples", {}),
    "math_aps": ("math_aps_samples", {"target": "soft"}),
    "prmbench": ("prmbench_prm800k_test_p2_deception", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_labels(shared, tmp_path, model, workers, name):
    """The whole stage on real labelled solutions: each labelled step is learnt once an epoch, and the loss falls."""
    file, changes = REAL[name]
    kind = name if name != "tagged" else "math_shepherd"
    labels = {"kind": kind, "path": str(shared / "data" / "prm" / f"{file}.jsonl"), "limit": 12}
    more = {"max_length": 4096, "max_steps": 6, "microbatches": 2, "optimizer": {"learning_rate": 3e-3}}
    run(on_a_model(tmp_path, model, labels=labels, **more, **changes), tmp_path / "run", workers)
    lines = metrics(tmp_path / "run", "reward_model")
    assert all(line["num_labels"] > 0 for line in lines) and lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, ("reward_model.labels is absent", "math_shepherd")),
        ({"microbatches": 3}, ("batch_size 8 cannot be cut into 3", "divisor of 8")),
        ({"supervision": "outcome", "step_tag": "="}, ("step_tag is '='", "leave step_tag out")),
        ({**TWO_TOKENS, "bad_token": "+"}, ("good_token and bad_token are both '+'",)),
        ({**TWO_TOKENS, "good_token": "1+"}, ("reward_model.good_token: '1+' is 2 tokens", "give one token")),
        ({"max_length": 3}, ("reward_model.max_length: 3, and the shortest of 60", "raise it")),
        ({"max_length": 5000}, ("reward_model.max_length: 5000 tokens are more than the 4096",)),
        ({"supervision": "preference"}, ("supervision preference learns from preferences",)),
        ({"held_out": 1.0}, ("reward_model.held_out: 1.0 leaves none", "lower it")),
        ({"labels": {"kind": "prm", "path": "x"}}, ("reward_model.labels.kind", "no 'prm'", "prm800k")),
    ],
)
def test_refused(tmp_path, capsys, changes, words):
    file = write_settings(tmp_path / "run.yaml", reward_model=MODEL | changes)
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and not (tmp_path / "run" / "sft").exists()
    assert_well_said(message, words)


def test_a_model_of_another_tokenizer_is_refused(tmp_path, model, capsys):
    file = write_settings(tmp_path / "run.yaml", reward_model=MODEL | {"model_name_or_path": str(model)})
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and not (tmp_path / "run" / "sft").exists()
    assert_well_said(message, ("reward_model.model_name_or_path", "is of tokenizer", "the run's is"))
