"""Methods in the RL stage: who samples, what dead groups do, and the same numbers by the loop and by fused steps."""

import json

import numpy as np
import pytest
from small_runs import checkpoint, launched, metrics, rollouts, run, write_settings

REWARDS = [{"kind": "exact"}, {"kind": "length", "buffer": 2, "weight": 0.3}]
RL = {"rewards": REWARDS, "iterations": 2, "max_steps": 2}
SFT = {"max_steps": 30}


def texts(directory) -> dict[int, list[str]]:
    """What was sampled, by step."""
    lines = [json.loads(line) for text in rollouts(directory).values() for line in text.splitlines()]
    by_step = {}
    for line in lines:
        by_step.setdefault(line["step"], []).extend(c["text"] for c in line["completions"])
    return by_step


@pytest.fixture(scope="module")
def taught(tmp_path_factory, workers):
    """An SFT policy, as a directory to start the runs from."""
    folder = tmp_path_factory.mktemp("taught")
    run(write_settings(folder / "run.yaml", sft=SFT, rl=None), folder / "run", workers)
    return folder / "run" / "hf"


def rl_run(taught, folder, workers, name, *flags, **rl):
    model = {"architecture": None, "model_name_or_path": str(taught)}
    run(write_settings(folder / f"{name}.yaml", sft=None, model=model, rl=RL | rl), folder / name, workers, *flags)
    return folder / name


def test_rft_samples_from_the_policy_it_began_with(taught, workers, tmp_path):
    """Within an outer iteration an update changes nothing of what is sampled; online it does."""
    rates = {"learning_rate": 0.0}
    frozen, moving, online = (
        rl_run(taught, tmp_path, workers, name, algorithm={"kind": kind, "threshold": -1.0}, **changes)
        for name, kind, changes in (
            ("frozen", "rft", {"optimizer": rates}),
            ("moving", "rft", {"optimizer": {"learning_rate": 0.05}}),
            ("online", "online_rft", {"optimizer": {"learning_rate": 0.05}}),
        )
    )
    assert texts(moving)[1] == texts(frozen)[1] and texts(moving)[2] == texts(frozen)[2]
    assert texts(online)[1] == texts(frozen)[1] and texts(online)[2] != texts(frozen)[2]
    assert texts(moving)[3] != texts(frozen)[3], "the second outer iteration samples from what was learnt"
    assert all(line["logprob_gap/max"] < 1e-3 for line in metrics(moving, "rl"))


SLOW = [pytest.param({"kind": kind}, marks=pytest.mark.slow) for kind in ("dapo", "rloo", "rft")]


@pytest.mark.parametrize("algorithm", [{"kind": "dpo", "beta": 0.5}, *SLOW])
def test_fused_steps_give_the_numbers_of_the_loop(taught, workers, tmp_path, algorithm):
    loop = rl_run(taught, tmp_path, workers, "loop", algorithm=algorithm)
    fused = rl_run(taught, tmp_path, workers, "fused", "--rl.fused_steps", "2", algorithm=algorithm)
    assert texts(loop) == texts(fused)
    for line, other in zip(metrics(fused, "rl"), metrics(loop, "rl"), strict=True):
        for key in line.keys() & other.keys():
            np.testing.assert_allclose(line[key], other[key], rtol=1e-3, atol=5e-5, err_msg=key)
    ours, theirs = checkpoint(fused, "rl"), checkpoint(loop, "rl")
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3, err_msg=name)
    assert any(0 < line["frac_reward_zero_std"] < 1 for line in metrics(loop, "rl"))


def test_dpo_learns_from_its_pairs(taught, workers, tmp_path):
    """The policy moves from the reference towards the better of each pair; the report shows which it was."""
    algorithm = {"kind": "dpo", "beta": 0.5}
    directory = rl_run(
        taught, tmp_path, workers, "dpo", algorithm=algorithm, iterations=1, max_steps=4, num_iterations=2
    )
    lines = metrics(directory, "rl")
    assert lines[0]["pairs/margin"] > 0, "after the first of two updates"
    groups = [json.loads(line) for line in "".join(rollouts(directory).values()).splitlines()]
    signs = 0
    for group in groups:
        rewards, shown = ([c[key] for c in group["completions"]] for key in ("reward", "advantage"))
        for reward, sign in zip(rewards, shown, strict=True):
            assert sign == 0 or (sign > 0) == (reward > min(rewards)) or (sign < 0) == (reward < max(rewards))
            signs += sign != 0
        if len(set(rewards)) > 1:
            assert shown[rewards.index(max(rewards))] == 1
    assert signs


REFUSED = {
    "k1 in the loss": ({"algorithm": {"kind": "grpo", "kl": "k1"}}, ("kl k1 with kl_in loss", "force_k1_loss")),
    "a policy that is not sampled from": (
        {"algorithm": {"kind": "rft"}, "steps_off_policy": 1, "importance_cap": 2.0},
        ("rl.steps_off_policy", "rft samples from the reference"),
    ),
    "broken pairs": ({"algorithm": {"kind": "dpo"}, "num_generations": 3}, ("rl.num_generations: 3", "by 2")),
    "a mode without a cap": ({"importance_mode": "token_mask"}, ("rl.importance_mode is token_mask", "importance_cap")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path, capsys):
    rl, words = REFUSED[case]
    file = write_settings(tmp_path / "run.yaml", rl=rl)
    code, error = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and all(word in error for word in words), error
    assert not (tmp_path / "run" / "rl").exists()


# --- process supervision ---

STEPS = {"kind": "step_match", "split": "tokens", "delimiters": ["+", "-"]}  # of sums of one step: its two digits


@pytest.mark.parametrize("parts", ["1", "2"])
def test_step_rewards_in_the_loop_and_in_fused_steps(taught, workers, tmp_path, parts):
    """The same steps by the host and by the devices; with an outcome besides, which comes at the last step."""
    rewards = [STEPS, {"kind": "exact", "weight": 0.5}]
    loop = rl_run(taught, tmp_path, workers, "loop", "--rl.sample_parts", parts, rewards=rewards)
    fused = rl_run(taught, tmp_path, workers, "fused", "--rl.fused_steps", "2", rewards=rewards)
    assert texts(loop) == texts(fused)
    for line, other in zip(metrics(fused, "rl"), metrics(loop, "rl"), strict=True):
        for key in line.keys() & other.keys():
            np.testing.assert_allclose(line[key], other[key], rtol=1e-3, atol=5e-5, err_msg=key)
    assert any(line["rewards/step_match/mean"] > 0 for line in metrics(loop, "rl"))


def test_step_rewards_that_nobody_reads_are_refused(tmp_path, capsys):
    for algorithm, words in (
        ({"kind": "dapo"}, ("step_match judges steps", "dapo learns from outcomes only; choose grpo")),
        ({"kind": "grpo", "kl_in": "reward"}, ("rl.algorithm.kl_in is reward", "set kl_in to loss")),
    ):
        file = write_settings(tmp_path / "run.yaml", rl={"rewards": [STEPS], "algorithm": algorithm})
        code, error = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
        assert code == 2 and all(word in error for word in words), error
