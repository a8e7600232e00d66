"""Methods in the RL stage: who samples, what dead groups do, and the same numbers by the loop and by fused steps."""

import json

import numpy as np
import pytest
from small_runs import (
    assert_equal_leaves,
    checkpoint,
    launched,
    ledger,
    metrics,
    rollouts,
    run,
    run_interrupted,
    write_settings,
)

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


PPO = {"kind": "ppo", "beta": 0.05, "value_optimizer": {"learning_rate": 0.01}}
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in (PPO, *({"kind": k} for k in ("dapo", "rloo", "rft")))]


@pytest.mark.parametrize("algorithm", [{"kind": "dpo", "beta": 0.5}, *SLOW])
def test_fused_steps_give_the_numbers_of_the_loop(taught, workers, tmp_path, algorithm):
    loop = rl_run(taught, tmp_path, workers, "loop", algorithm=algorithm)
    fused = rl_run(taught, tmp_path, workers, "fused", "--rl.fused_steps", "2", algorithm=algorithm)
    assert texts(loop) == texts(fused)
    for line, other in zip(metrics(fused, "rl"), metrics(loop, "rl"), strict=True):
        for key in line.keys() & other.keys():
            np.testing.assert_allclose(line[key], other[key], rtol=1e-3, atol=5e-5, err_msg=key)
    assert ledger(fused) == ledger(loop)
    assert ledger(loop)["stages"]["rl"]["method"]["kind"] == algorithm["kind"]
    ours, theirs = checkpoint(fused, "rl"), checkpoint(loop, "rl")
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3, err_msg=name)
    assert any(0 < line["frac_reward_zero_std"] < 1 for line in metrics(loop, "rl"))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [{"kind": "dpo", "beta": 0.5}, PPO, {"kind": "gspo"}, {"kind": "rloo"}])
@pytest.mark.parametrize(
    "flags",
    [
        ("--rl.microbatches", "4", "--rl.length_buckets", "2"),
        ("--rl.sample_parts", "2", "--mesh.fsdp", "2"),
        ("--rl.decode_rows", "4", "--rl.microbatches", "8"),
    ],
)
def test_the_same_numbers_however_it_is_computed(taught, workers, tmp_path, algorithm, flags):
    plain = rl_run(taught, tmp_path, workers, "plain", algorithm=algorithm, iterations=1)
    other = rl_run(taught, tmp_path, workers, "other", *flags, algorithm=algorithm, iterations=1)
    assert texts(plain) == texts(other)
    for line, expected in zip(metrics(other, "rl"), metrics(plain, "rl"), strict=True):
        for key in expected.keys() - {"padding"}:
            np.testing.assert_allclose(line[key], expected[key], rtol=2e-3, atol=1e-4, err_msg=key)


@pytest.mark.slow
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
    "a value model beside adapters": (
        {"algorithm": {"kind": "ppo"}},
        ("rl.algorithm.kind ppo learns a value model", "model.lora"),
    ),
    "broken pairs": ({"algorithm": {"kind": "dpo"}, "num_generations": 3}, ("rl.num_generations: 3", "by 2")),
    "another policy's completions weighed as this one's": (
        {"algorithm": {"kind": "rft"}, "importance_cap": 2.0},
        ("rl.importance_cap is 2.0", "rft means the completions of the reference"),
    ),
    "right groups left out": (
        {"algorithm": {"kind": "online_rft"}, "dead_groups": "exclude"},
        ("rl.dead_groups is exclude", "online_rft", "set rl.dead_groups to count"),
    ),
    "groups that a penalty tells apart left out": (
        {"algorithm": {"kind": "rloo"}, "dead_groups": "refill"},
        ("rl.dead_groups is refill", "a KL penalty in the reward"),
    ),
    "pairs where none are": ({"rewards": [{"kind": "preferred"}]}, ("preferred", "pairs_from data")),
    "steps scaled as outcomes": (
        {"algorithm": {"kind": "grpo", "scale_rewards": "none"}, "rewards": [{"kind": "step_match"}]},
        ("rl.algorithm.scale_rewards is none", "step_match judges steps"),
    ),
    "a mode without a cap": ({"importance_mode": "token_mask"}, ("rl.importance_mode is token_mask", "importance_cap")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, taught, tmp_path, capsys):
    rl, words = REFUSED[case]
    adapters = {"sft": None, "model": {"architecture": None, "model_name_or_path": str(taught), "lora": {"rank": 2}}}
    file = write_settings(tmp_path / "run.yaml", rl=rl, **(adapters if "model.lora" in words else {}))
    code, error = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and all(word in error for word in words), error
    assert not (tmp_path / "run" / "rl").exists()


# --- pairs of a file ---


def pairs_file(folder, count=40):
    rows = [
        {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1)}
        for a in range(1, 10)
        for b in range(1, 10)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    return {"kind": "jsonl", "path": str(folder / "pairs.jsonl"), "fields": {"solution": "chosen"}}


FROM_DATA = {
    "algorithm": {"kind": "dpo", "beta": 0.5, "pairs_from": "data"},
    "rewards": [{"kind": "preferred"}],
    "num_generations": 2,
    "iterations": 1,
    "max_steps": 8,
    "save_steps": 4,
}


def test_dpo_from_preference_data(taught, workers, tmp_path):
    """It comes to prefer what the file prefers, and goes on where it was killed."""
    changes = FROM_DATA | {"source": pairs_file(tmp_path, 8), "max_steps": 16}  # eight times each of eight pairs
    directory = rl_run(taught, tmp_path, workers, "dpo", **changes)
    lines = metrics(directory, "rl")
    assert abs(lines[0]["loss"] - np.log(2)) < 1e-5 and lines[0]["pairs/margin"] == 0
    assert lines[-1]["loss"] < 0.6 and lines[-1]["pairs/accuracy"] > 0.7
    assert "logprob_gap/mean" not in lines[0]
    counts = ledger(directory)["stages"]["rl"]["counts"]
    assert counts["prompts"] == 16 * 4 and counts["optimizer_steps"] == 16 and counts["trained_tokens"] > 0
    assert counts["completions"] == counts["generated_tokens"] == lines[-1]["total/generated_tokens"] == 0
    shown = texts(directory)[1]
    assert all(int(worse) == int(better) + 1 for better, worse in zip(shown[::2], shown[1::2], strict=True))
    model = {"architecture": None, "model_name_or_path": str(taught)}
    file = write_settings(tmp_path / "broken.yaml", sft=None, model=model, rl=RL | changes)
    run_interrupted(file, tmp_path / "broken", workers, "rl", 3)
    run(file, tmp_path / "broken", workers, "--rl.sample_parts", "2")
    assert texts(tmp_path / "broken") == texts(directory)
    ours, theirs = checkpoint(tmp_path / "broken", "rl"), checkpoint(directory, "rl")
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


def test_pairs_that_cannot_be_read_are_refused(taught, tmp_path, capsys):
    model = {"architecture": None, "model_name_or_path": str(taught)}
    source = pairs_file(tmp_path, 20)
    cases = [
        ({"num_generations": 4}, ("rl.num_generations 4, not 2", "takes its completions from the data")),
        ({"fused_steps": 2}, ("rl.fused_steps 2", "samples none")),
        ({"sampling": {"stop": ["1"]}}, ("rl.sampling.stop ['1']", "samples none")),
        ({"rewards": [{"kind": "accuracy"}]}, ("rl.rewards: accuracy", "stands in the data")),
        (
            {"source": source | {"fields": {"solution": "worse", "answer": "chosen"}}},
            ("pairs.jsonl:1", "rl.source.fields.solution"),
        ),
        ({"sampling": {"max_completion_length": 2}}, ("a completion of 3 tokens", "max_completion_length is 2")),
    ]
    for number, (changes, words) in enumerate(cases):
        file = write_settings(
            tmp_path / f"{number}.yaml", sft=None, model=model, rl=FROM_DATA | {"source": source} | changes
        )
        code, error = launched([str(file), "--output_dir", str(tmp_path / f"{number}")], capsys)
        assert code == 2 and all(word in error for word in words), error


# --- PPO ---


@pytest.mark.slow
def test_a_value_model_goes_on_where_it_was(taught, workers, tmp_path):
    """Killed after the second step, in the middle of which everything is: policy, values, both optimizers."""
    settings = {"algorithm": PPO, "save_steps": 1, "iterations": 1, "max_steps": 3, "num_iterations": 2}
    unbroken = rl_run(taught, tmp_path, workers, "unbroken", **settings)
    model = {"architecture": None, "model_name_or_path": str(taught)}
    file = write_settings(tmp_path / "broken.yaml", sft=None, model=model, rl=RL | settings)
    run_interrupted(file, tmp_path / "broken", workers, "rl", 2)
    run(file, tmp_path / "broken", workers)
    leaves = assert_equal_leaves(tmp_path / "broken", unbroken, "rl")
    assert any("critic" in leaf and "score" in leaf for leaf in leaves)
    assert metrics(tmp_path / "broken", "rl") == metrics(unbroken, "rl")
    lines = metrics(unbroken, "rl")
    assert all(line["value/loss"] > 0 and line["value/grad_norm"] > 0 for line in lines)
    assert lines[0]["value/mean"] != 0, "of the second update, after the head of zeros has moved"


# --- process supervision ---

STEPS = {"kind": "step_match", "split": "tokens", "delimiters": ["+", "-"]}  # of sums of one step: its two digits


@pytest.mark.parametrize("parts", ["1", pytest.param("2", marks=pytest.mark.slow)])
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
