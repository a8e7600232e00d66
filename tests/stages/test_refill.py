"""Dynamic sampling: dead groups are replaced, nothing else changes, and a run that was killed goes on the same."""

import json

import numpy as np
import pytest
from small_runs import (
    assert_equal_leaves,
    begin_with_sft_of,
    launched,
    ledger,
    metrics,
    on_few_devices,
    rollouts,
    run,
    run_interrupted,
    write_settings,
)

from grpo_jax.config import MeshConfig
from grpo_jax.data.order import OrderError, distinct_indices, further_indices
from grpo_jax.reporting.metrics import read_metrics
from grpo_jax.rewards.equivalent import RIGHT, grade
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.stages.programs import replace_groups
from grpo_jax.stages.refill import places

RL = {
    "algorithm": {"kind": "dapo"},
    "rewards": [{"kind": "accuracy"}],
    "dead_groups": "refill",
    "refill_rounds": 2,
    "max_steps": 4,
    "save_steps": 2,
}
SFT = {"max_steps": 60}


def groups(directory) -> dict[int, list[dict]]:
    """What was trained on, by step."""
    by_step = {}
    for line in "".join(rollouts(directory).values()).splitlines():
        by_step.setdefault(json.loads(line)["step"], []).append(json.loads(line))
    return by_step


@pytest.fixture(scope="module")
def refilled(tmp_path_factory, workers):
    folder = tmp_path_factory.mktemp("refill")
    file = write_settings(folder / "run.yaml", sft=SFT, rl=RL)
    run(file, folder / "run", workers)
    return file, folder / "run"


def test_dead_groups_are_replaced(refilled, workers, tmp_path):
    file, directory = refilled
    lines = read_metrics(directory / "rl" / "metrics.jsonl")
    assert any(line["refill/rounds"] > 0 for line in lines)
    assert all(line["refill/rounds"] <= 2 for line in lines)
    drawn, left = (np.mean([line[key] for line in lines]) for key in ("refill/frac_dead_drawn", "frac_reward_zero_std"))
    assert left < drawn
    assert all(line["num_generated_tokens"] >= line["completions/mean_length"] * 16 - 1e-3 for line in lines)
    assert len({line["compiles"] for line in lines[1:]}) == 1, "one shape, however many rounds"
    begin_with_sft_of(directory, tmp_path)
    run(file, tmp_path, workers, "--rl.dead_groups", "exclude")
    plain, ours = groups(tmp_path)[1], groups(directory)[1]
    for before, after in zip(plain, ours, strict=True):
        dead = len({c["reward"] for c in before["completions"]}) == 1
        kept = before["problem_index"] == after["problem_index"]
        assert kept or dead, "only dead groups give up their places"
        if kept:
            assert [c["text"] for c in before["completions"]] == [c["text"] for c in after["completions"]]
    assert any(a["problem_index"] != b["problem_index"] for a, b in zip(plain, ours, strict=True))


def test_a_refilled_group_is_its_own(refilled):
    """Question, answer, texts and rewards of a place belong together: a completion is right iff it says the answer.

    As the reward reads it: of 07, and of 2 and in the next line 7, the answer is 7.
    """
    for step in groups(refilled[1]).values():
        assert len({group["problem_index"] for group in step}) == len(step)
        for group in step:
            for c in group["completions"]:
                said = grade(extract_answer(c["text"]), group["answer"]).grade
                assert (c["reward"] == 1.0) == (said is RIGHT), (group["answer"], c)


def test_resumed_in_the_middle(refilled, workers, tmp_path):
    file, directory = refilled
    begin_with_sft_of(directory, tmp_path)
    run_interrupted(file, tmp_path, workers, "rl", 2)
    run(file, tmp_path, workers)
    assert_equal_leaves(tmp_path, directory, "rl")
    assert metrics(tmp_path, "rl") == metrics(directory, "rl") and rollouts(tmp_path) == rollouts(directory)
    assert ledger(tmp_path)["stages"]["rl"] == ledger(directory)["stages"]["rl"]


def test_the_ledger_counts_all_rounds(refilled):
    lines, counts = metrics(refilled[1], "rl"), ledger(refilled[1])["stages"]["rl"]["counts"]
    rounds = sum(1 + int(line["refill/rounds"]) for line in lines)
    assert counts["prompts"] == 4 * rounds > 4 * len(lines) and counts["completions"] == 16 * rounds
    assert counts["generated_tokens"] == sum(line["num_generated_tokens"] for line in lines)
    shown = sum(len(c["tokens"]) for step in groups(refilled[1]).values() for g in step for c in g["completions"])
    assert counts["generated_tokens"] > shown, "what was thrown away was generated too"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--mesh.fsdp", "2"), ("--rl.sample_parts", "2"), ("--rl.microbatches", "4")])
def test_however_it_is_computed(refilled, workers, tmp_path, flags):
    """From the weights of the same sft, whose rounding would be another on a mesh."""
    file, directory = refilled
    begin_with_sft_of(directory, tmp_path)
    run(file, tmp_path, workers, *flags)
    for ours, theirs in zip(groups(tmp_path).values(), groups(directory).values(), strict=True):
        assert [g["problem_index"] for g in ours] == [g["problem_index"] for g in theirs]


def test_places_by_hand():
    dead, others = np.array([True, False, True, True]), np.array([True, False, False, True])
    assert places(dead, others).tolist() == [1, -1, 2, -1]
    assert places(~dead, others).tolist() == [-1, 1, -1, -1]


def test_groups_by_hand():
    import jax

    with jax.set_mesh(on_few_devices(MeshConfig())):
        old = {"p": np.arange(3), "b": np.arange(6).reshape(6, 1)}
        new = {"p": np.arange(3) + 10, "b": np.arange(6).reshape(6, 1) + 10}
        got = replace_groups(old, new, np.array([-1, 2, 0]))
    assert got["p"].tolist() == [0, 12, 10] and got["b"][:, 0].tolist() == [0, 1, 14, 15, 10, 11]


def test_further_problems():
    own = distinct_indices(20, 4, seed=3, step=2)
    rounds = [further_indices(20, 4, seed=3, step=2, round=r) for r in (1, 2, 3, 4)]
    assert sorted(np.concatenate([own, *rounds])) == list(range(20)), "no problem twice, and all of them"
    assert not np.array_equal(rounds[0], further_indices(20, 4, seed=3, step=3, round=1))
    assert np.array_equal(rounds[1], further_indices(20, 4, seed=3, step=2, round=2))
    with pytest.raises(OrderError, match="too few for round 5"):
        further_indices(20, 4, seed=3, step=2, round=5)


@pytest.mark.parametrize(
    ("rl", "words"),
    [
        ({"fused_steps": 2}, ("rl.dead_groups is refill", "rl.fused_steps 2", "dead_groups to exclude")),
        ({"steps_off_policy": 1, "importance_cap": 2.0}, ("rl.steps_off_policy 1", "set rl.steps_off_policy to 0")),
        ({"refill_rounds": 99}, ("rl.refill_rounds: 99 further batches of 4", "lower it")),
    ],
)
def test_refused(rl, words, tmp_path, capsys):
    file = write_settings(tmp_path / "run.yaml", rl=RL | rl)
    code, error = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and all(word in error for word in words), error
