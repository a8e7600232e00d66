"""Where a signal may meet a run, what it saves and says, and that a finished run is not run again."""

import json
import os
import signal
from unittest import mock

import pytest
from small_runs import EVALUATION, assert_equal_leaves, metrics, rollouts, run, steps, write_settings

from grpo_jax.configure import ConfigError
from grpo_jax.stages import evaluation, exploration, rl
from grpo_jax.training.interrupt import Interrupted


def signalled(module, name: str, *, call: int, signum=signal.SIGTERM):
    """A patch under which the n-th call of a function sends this process a signal before it does its work."""
    original, calls = getattr(module, name), []

    def function(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    return mock.patch.object(module, name, function)


def stopped(patch, file, directory, workers) -> Interrupted:
    with patch, pytest.raises(Interrupted) as caught:
        run(file, directory, workers)
    return caught.value


def test_a_signal_in_every_phase(evaluated, workers, tmp_path, capsys):
    """In the evaluation before, in the first step, in sampling, in rewards, in an update, in the evaluation after."""
    file, unbroken = evaluated
    said = stopped(signalled(evaluation, "draw", call=2), file, tmp_path, workers)
    assert "stopped in evaluation 'before', which is not kept" in str(said) and not (tmp_path / "rl").exists()

    said = stopped(signalled(exploration, "judge", call=1), file, tmp_path, workers)
    assert "stopped before the first step" in str(said) and steps(tmp_path, "rl") == []

    said = stopped(signalled(rl, "improve", call=1), file, tmp_path, workers)
    assert "stopped after step 1 of 3, which is saved" in str(said) and steps(tmp_path, "rl") == [1]

    said = stopped(signalled(exploration, "judge", call=2), file, tmp_path, workers)
    assert "stopped after step 2 of 3, which is saved" in str(said) and steps(tmp_path, "rl") == [1, 2]

    said = stopped(signalled(exploration, "distinct_indices", call=1, signum=signal.SIGINT), file, tmp_path, workers)
    assert "stopped after step 2 of 3, which is saved" in str(said) and said.exit_code == 130

    said = stopped(signalled(evaluation, "draw", call=1), file, tmp_path, workers)
    assert "in evaluation 'after'" in str(said) and steps(tmp_path, "rl") == [2, 3]

    run(file, tmp_path, workers)
    for name in ("before", "after"):
        ours, theirs = (json.loads((d / "evaluation" / f"{name}.json").read_text()) for d in (tmp_path, unbroken))
        assert ours == theirs
    assert_equal_leaves(tmp_path, unbroken, "rl")
    assert metrics(tmp_path, "rl") == metrics(unbroken, "rl") and rollouts(tmp_path) == rollouts(unbroken)


def test_a_signal_in_an_evaluation_between_steps(workers, tmp_path):
    """It is broken off, the step is saved, and the numbers come when the run goes on."""
    rl_settings = {"max_steps": 3, "eval_steps": 1, "logging_steps": 3}
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=rl_settings, evaluation=EVALUATION)
    run(file, tmp_path / "unbroken", workers, "--only", "rl")
    with signalled(evaluation, "draw", call=6), pytest.raises(Interrupted, match="stopped after step 2 of 3"):
        run(file, tmp_path / "run", workers, "--only", "rl")
    assert [line["step"] for line in metrics(tmp_path / "run", "rl")] == [1]
    run(file, tmp_path / "run", workers, "--only", "rl")
    lines = metrics(tmp_path / "run", "rl")
    assert lines == metrics(tmp_path / "unbroken", "rl")
    assert [line["step"] for line in lines if "eval/greedy" in line] == [1, 2, 3]
    timeline = (tmp_path / "unbroken" / "rl" / "timeline.jsonl").read_text().splitlines()
    evaluations = [(s["step"], s["where"]) for t in timeline for s in json.loads(t)["spans"] if s["what"] == "evaluate"]
    assert evaluations == [(2, "aside"), (3, "aside")], "after the steps before"
    assert_equal_leaves(tmp_path / "run", tmp_path / "unbroken", "rl")


def test_a_finished_run_is_not_run_again(evaluated, workers, capsys):
    file, directory = evaluated
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    capsys.readouterr()
    with mock.patch.object(rl, "train"), mock.patch.object(evaluation, "evaluate"):
        run(file, directory, workers)
        rl.train.assert_not_called()
        evaluation.evaluate.assert_not_called()
    printed = capsys.readouterr().out
    assert "rl: finished before, step 3" in printed and f"report: {directory / 'report.html'}" in printed
    for word in ("held-out", "before", "after", "change", "greedy", "mean@2", "pass@2", "maj@2"):
        assert word in printed
    rewritten = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert rewritten <= {"config.yaml", "environment.json", "report.html", ".lock"} | {
        path.name for path in (directory / "tokenizer").iterdir()
    }


def test_stages_one_by_one(workers, tmp_path, capsys):
    """A stage of its own goes on from the one before, which must be there."""
    file = write_settings(tmp_path / "run.yaml", rl={"max_steps": 1}, evaluation=EVALUATION)
    directory = tmp_path / "run"
    for only in ("rl", "evaluation"):
        with pytest.raises(ConfigError, match=f"--only {only}: sft comes first and is not finished; add it"):
            run(file, directory, workers, "--only", only)
    run(file, directory, workers, "--only", "sft")
    assert "rl: not asked for, and not finished before: left out" in capsys.readouterr().out
    run(file, directory, workers, "--only", "evaluation")
    assert [path.name for path in (directory / "evaluation").glob("*.json")] == ["before.json"]
    run(file, directory, workers)
    assert (directory / "evaluation" / "after.json").is_file() and (directory / "hf").is_dir()
