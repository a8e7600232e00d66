"""The step with the best held-out metric is saved and kept, whatever comes later and wherever a run is broken off."""

import json

import pytest
import yaml
from small_runs import EVALUATION, metrics, run, run_interrupted, steps, write_settings

from grpo_jax.configure import ConfigError, load
from grpo_jax.stages.best import best_step
from grpo_jax.training.checkpoint import Checkpoints

RL = {"max_steps": 6, "eval_steps": 1, "best_metric": "mean@2", "save_steps": 0, "save_total_limit": 1}


def log(folder, values):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "eval/mean@2": value} for step, value in values]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_first_of_the_largest(tmp_path):
    assert best_step(tmp_path, "mean@2") is None
    log(tmp_path, [(1, 0.25), (2, 0.5), (3, 0.5), (4, None), (5, 0.375)])
    assert best_step(tmp_path, "mean@2") == (2, 0.5)
    assert best_step(tmp_path, "mean@2", [1, 3, 5]) == (3, 0.5)
    assert best_step(tmp_path, "mean@2", []) is None and best_step(tmp_path, "greedy") is None


def test_what_is_spared_is_not_deleted(tmp_path):
    """Beyond the limit, and only while it is the one to spare."""
    import jax.numpy as jnp

    best = [2]
    with Checkpoints(tmp_path, 1, spare=lambda there: best[0] if best[0] in there else None) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, {"x": jnp.ones(2)}, {})
        checkpoints.wait()
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdecimal()) == ["2", "4"]
        best[0] = 5
        checkpoints.save(5, {"x": jnp.ones(2)}, {})
        checkpoints.wait()
        assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdecimal()) == ["5"]


def test_a_run_keeps_its_best_step(tmp_path, workers, capfd):
    """And the same one when it was stopped on the way; `evaluate.py --step best` finds it."""
    from grpo_jax.stages.evaluation_model import find_checkpoint

    file = write_settings(tmp_path / "run.yaml", rl=RL, evaluation=EVALUATION)
    run(file, tmp_path / "a", workers)
    values = {line["step"]: line["eval/mean@2"] for line in metrics(tmp_path / "a", "rl") if "eval/mean@2" in line}
    best = min(step for step, value in values.items() if value == max(values.values()))
    assert len(values) == 6 and steps(tmp_path / "a", "rl") == sorted({best, 6})
    assert f"mean@2 was best at step {best}" in capfd.readouterr().out
    assert find_checkpoint(str(tmp_path / "a"), "rl", "best").step == best
    run_interrupted(file, tmp_path / "b", workers, "rl", 3)
    run(file, tmp_path / "b", workers)
    assert steps(tmp_path / "b", "rl") == steps(tmp_path / "a", "rl")
    with pytest.raises(ConfigError, match="--step best"):
        find_checkpoint(str(tmp_path / "a"), "sft", "best")


@pytest.mark.parametrize(
    ("rl", "evaluation", "words"),
    [
        ({"best_metric": "greedy", "eval_steps": 1}, None, "nothing is measured while training"),
        ({"best_metric": "greedy"}, EVALUATION, "nothing is measured while training"),
        ({"best_metric": "maj@3", "eval_steps": 1}, EVALUATION, "there are greedy, mean@2, pass@1, maj@1, pass@2"),
    ],
)
def test_a_metric_that_is_not_measured(rl, evaluation, words, tmp_path):
    file = write_settings(tmp_path / "run.yaml", rl=rl, evaluation=evaluation)
    assert yaml.safe_load(file.read_text())["rl"]["best_metric"]
    with pytest.raises(ConfigError, match=words):
        load([str(file), "--print_config"])
