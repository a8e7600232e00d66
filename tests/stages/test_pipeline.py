"""Sections run apart end as they do together, and results say of which weights they are."""

import json
from unittest import mock

import pytest
from small_runs import EVALUATION, run, settings, write_settings

from grpo_jax.configure import ConfigError
from grpo_jax.data.order import OrderError
from grpo_jax.rewards.reward import RewardError
from grpo_jax.stages import evaluation, pipeline


def titles(directory):
    results = (directory / "evaluation").glob("*.json")
    return {path.stem: json.loads(path.read_text())["title"] for path in results}


def test_evaluations_are_of_the_weights_that_they_name(tmp_path, workers):
    file = write_settings(tmp_path / "run.yaml", evaluation=EVALUATION)
    directory = tmp_path / "run"
    with pytest.raises(ConfigError, match="--only evaluation: sft comes first and is not finished"):
        run(file, directory, workers, "--only", "evaluation")
    run(file, directory, workers, "--only", "sft,evaluation")
    assert titles(directory) == {"before": "sft, step 4"}
    run(file, directory, workers)
    assert titles(directory) == {"before": "sft, step 4", "after": "rl, step 4"}
    with mock.patch.object(evaluation, "evaluate", side_effect=AssertionError("done before")):
        run(file, directory, workers)


def test_a_report_that_fails_hides_nothing(tmp_path, workers, capsys):
    file = write_settings(tmp_path / "run.yaml", rl=None)
    with mock.patch.object(pipeline, "write_report", side_effect=OSError("no space left")):
        run(file, tmp_path / "run", workers)
    assert "report: could not be written: no space left" in capsys.readouterr().out


def test_an_export_is_of_the_weights_that_it_is_said_to_be_of(tmp_path, workers, capsys):
    """A stage that is added to a finished run does not hide behind the export of the one before."""
    directory = tmp_path / "run"
    run(write_settings(tmp_path / "sft.yaml", rl=None), directory, workers)
    first = (directory / "hf" / "model.safetensors").read_bytes()
    capsys.readouterr()
    run(write_settings(tmp_path / "both.yaml"), directory, workers)
    said = capsys.readouterr().out
    later = directory / "hf_rl_4"
    assert f"policy: {later} " in said and (directory / "hf" / "model.safetensors").read_bytes() == first
    assert (later / "model.safetensors").read_bytes() != first
    assert json.loads((directory / "exports.json").read_text()) == {"hf": "sft, step 4", "hf_rl_4": "rl, step 4"}
    run(tmp_path / "both.yaml", directory, workers)
    assert f"policy: {later} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"rl": {"prompts_per_step": 1000}}, OrderError, "1000 prompts a step, but the source has"),
        ({"sft": {"max_length": 5000}}, ConfigError, "sft.max_length: 5000 tokens are more than the 4096 positions"),
        (
            {"evaluation": EVALUATION | {"reward": {"kind": "length", "max_length": 9, "buffer": 3}}},
            RewardError,
            "evaluation.reward: length judges arrays, not answers",
        ),
        (
            {"evaluation": EVALUATION | {"reward": {"kind": "python", "path": "no_such_module:f"}}},
            RewardError,
            "no_such_module",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path, workers, changes, error, words):
    file = write_settings(tmp_path / "run.yaml", **changes)
    with pytest.raises(error, match=words):
        run(file, tmp_path / "run", workers)
    assert settings(**changes) and not (tmp_path / "run" / "sft").exists()
