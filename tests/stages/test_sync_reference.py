"""`rl.sync_ref_model`: the reference follows the policy, is saved and resumed, and is refused where there is none."""

import numpy as np
import pytest
from small_runs import (
    assert_equal_leaves,
    assert_well_said,
    checkpoint,
    launched,
    metrics,
    run,
    run_interrupted,
    write_settings,
)

from grpo_jax.reporting.events import read_events
from tests.make_random_model import main as make_random_model

SYNC = {"sync_ref_model": True, "ref_model_mixup_alpha": 0.25, "ref_model_sync_steps": 3}
RL = {"num_iterations": 2, "max_steps": 6, "save_steps": 1, "save_total_limit": 9, "rollout_steps": 0, **SYNC}


@pytest.fixture(scope="module")
def synced(tmp_path_factory, workers):
    """An unbroken run of six steps of two updates, whose reference follows after every third."""
    folder = tmp_path_factory.mktemp("synced")
    file = write_settings(folder / "run.yaml", sft=None, rl=RL)
    run(file, folder / "run", workers)
    return file, folder / "run"


def part(directory, step, *names):
    """The leaves of a part of a checkpoint by name."""
    prefix = "".join(f"['{name}']" for name in names)
    leaves = checkpoint(directory, "rl", step)
    return {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}


def test_the_reference_follows_after_so_many_updates(synced):
    """Updates 3, 6, 9 and 12: after the first of step 2, at the end of step 3, within step 5, at the end of step 6."""
    _, directory = synced
    told = [e for e in read_events(directory / "rl" / "events.jsonl") if e["line"] == 3]
    assert [(e["updates"], e.get("alpha")) for e in told] == [(0, None), *((k, 0.25) for k in (3, 6, 9, 12))]
    for step in (3, 6):  # both updates of a step are behind the checkpoint, so that its parameters are those mixed in
        before, after = (part(directory, s, "reference") for s in (step - 1, step))
        policy = part(directory, step, "state", "params")
        assert after.keys() == policy.keys() and len(after) > 5
        for name, leaf in after.items():
            wanted = np.float32(0.25) * policy[name] + np.float32(0.75) * before[name]
            np.testing.assert_allclose(leaf, wanted, rtol=1e-6, atol=1e-8, err_msg=name)
            assert leaf.dtype == np.float32
    first, third = (part(directory, s, "reference") for s in (1, 4))
    assert all(np.array_equal(leaf, part(directory, 3, "reference")[name]) for name, leaf in third.items())
    assert any(not np.array_equal(leaf, third[name]) for name, leaf in first.items())


def test_a_broken_run_equals_an_unbroken_one(synced, workers, tmp_path):
    file, unbroken = synced
    run_interrupted(file, tmp_path, workers, "rl", 3)
    run(file, tmp_path, workers)
    assert_equal_leaves(tmp_path, unbroken, "rl")
    assert metrics(tmp_path, "rl") == metrics(unbroken, "rl")
    ours, theirs = (read_events(d / "rl" / "events.jsonl") for d in (tmp_path, unbroken))
    assert ours == theirs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"algorithm": {"kind": "grpo", "beta": 0.0}},
            ("grpo with beta 0.0 has no reference", "rl.algorithm.beta"),
        ),
        ({"algorithm": {"kind": "online_rft"}}, ("kind online_rft", "has no reference")),
        ({"algorithm": {"kind": "rft"}}, ("kind rft samples from the reference", "leave rl.sync_ref_model out")),
        (
            {"fused_steps": 2, "rewards": [{"kind": "exact"}]},
            ("sync_ref_model, every 3 updates", "fused_steps is 2"),
        ),
        ({"ref_model_mixup_alpha": 1.5}, ("rl.ref_model_mixup_alpha", "1.5")),
    ],
)
def test_refused(tmp_path, capsys, changes, words):
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=RL | changes)
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and not (tmp_path / "run" / "rl").exists()
    assert_well_said(message, words)


@pytest.fixture
def adapters(tmp_path):
    """Settings of a run of one step of two updates, with adapters."""
    make_random_model([str(model := tmp_path / "qwen2"), "--family", "qwen2"])
    named = {"architecture": None, "model_name_or_path": str(model), "lora": {"rank": 2, "alpha": 4}}
    rl = RL | {"max_steps": 1, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    return write_settings(tmp_path / "run.yaml", sft=None, model=named, prompt={"max_prompt_length": 24}, rl=rl)


def test_adapters_are_not_mixed(adapters, tmp_path, capsys):
    """The mean of two products of low rank is none."""
    mixing = ("--rl.ref_model_mixup_alpha", "0.5")
    code, message = launched([str(adapters), "--output_dir", str(tmp_path / "run"), *mixing], capsys)
    assert code == 2
    assert_well_said(message, ("rl.ref_model_mixup_alpha is 0.5", "model.lora", "set it to 1.0"))


@pytest.mark.slow
def test_adapters_are_copied(adapters, tmp_path, workers):
    run(adapters, tmp_path / "run", workers)
    ours, theirs = part(tmp_path / "run", 1, "reference"), part(tmp_path / "run", 1, "state", "params")
    assert ours.keys() == theirs.keys() and all(np.array_equal(leaf, theirs[name]) for name, leaf in ours.items())
