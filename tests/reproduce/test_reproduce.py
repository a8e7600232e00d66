"""The command, in miniature: runs of some steps from one stem, killed, gone on with, and told of."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch.reproduce import main

ROOT = Path(__file__).resolve().parents[2]
SUMS = {"kind": "arithmetic", "first_digits": 1, "steps": 2, "size": 64}
HELD_OUT = SUMS | {"split": "test", "size": 12}
SAMPLING = {"max_completion_length": 6}
RATE = {"learning_rate": 1e-3}
MINIATURE = {
    "model": {
        "architecture": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 32,
        }
    },
    "prompt": {"format": "text", "max_prompt_length": 6},
    "sft": {
        "source": SUMS | {"slip_rate": 0.5},
        "max_steps": 30,
        "batch_size": 16,
        "max_length": 16,
        "optimizer": RATE,
    },
    "label": {
        "source": SUMS | {"size": 16},
        "reward": {"kind": "accuracy"},
        "num_solutions": 2,
        "num_completions": 2,
        "batch_prompts": 16,
        "sampling": SAMPLING,
    },
    "reward_model": {
        "eval_labels": {**HELD_OUT, "slip_rate": 0.5},
        "max_steps": 4,
        "batch_size": 4,
        "max_length": 32,
        "optimizer": RATE,
    },
    "rl": {
        "source": SUMS,
        "algorithm": {"kind": "grpo", "beta": 0.04},
        "rewards": [{"kind": "exact", "after": ["\n", "="]}],
        "max_steps": 4,
        "prompts_per_step": 4,
        "num_generations": 4,
        "sampling": SAMPLING,
        "optimizer": RATE,
        "eval_steps": 2,
        "rollout_steps": 0,
    },
    "evaluation": {
        "source": HELD_OUT,
        "reward": {"kind": "accuracy"},
        "num_samples": 4,
        "k": [1, 4],
        "batch_prompts": 4,
        "sampling": SAMPLING,
    },
    "report_to": [],
}

# The command with a scale of its own: MINIATURE, from a file.
COMMAND = """
import dataclasses, sys
from pathlib import Path
from grpo_jax.reproduce import experiments
experiments.CONFIGS = Path(sys.argv.pop(1))
tiny = experiments.SCALES["tiny"]
line_12 = {**tiny.line_12, "num_problems": 8, "num_solutions": 2, "num_completions": 2, "batch_prompts": 8,
           "max_steps": 2, "batch_size": 4, "max_length": 32}
scale = dataclasses.replace(tiny, name="miniature", seeds=(0,), ks=(1, 2, 4), iteration_steps=2, line_12=line_12)
experiments.SCALES["miniature"] = scale
from launch.reproduce import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The words of the command, but for the figure; and its output directory."""
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "configs").mkdir()
    (folder / "configs" / "miniature.yaml").write_text(yaml.safe_dump(MINIATURE, sort_keys=False))
    out = folder / "out"

    def words(figure):
        code = [sys.executable, "-c", COMMAND, str(folder / "configs"), figure]
        return [*code, "--scale", "miniature", "--out", str(out)]

    return words, out


def environment() -> dict[str, str]:
    """Without the fake devices of the tests: one CPU, as for a user."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def run(words) -> str:
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stopped_in(words, out, name) -> str:
    """Run until an arm has begun to train, and send SIGTERM."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    caller = subprocess.Popen(words, cwd=ROOT, env=environment(), text=True, **pipes)
    end = time.monotonic() + 300
    while not (out / name / "rl").is_dir():
        assert time.monotonic() < end and caller.poll() is None, caller.communicate()[0]
        time.sleep(0.1)
    os.kill(caller.pid, signal.SIGTERM)
    said, _ = caller.communicate(timeout=120)
    assert caller.returncode == 143, said
    return said


@pytest.mark.slow
def test_figure_5_goes_on_and_figure_7_takes_its_policies(command):
    words, out = command
    assert "the same command goes on" in stopped_in(words("figure5"), out, "figure5/rft/seed0")
    made = run(words("figure5"))
    assert "stem: started" not in made and "figure5/grpo_ps/seed0: done" in made
    for said in (
        "RFT < Online RFT < GRPO+OS < GRPO+PS",
        "Process reward model on held-out steps",
        "Budget of each run: 4 updates, 64 completions",
    ):
        assert said in made
    told = json.loads((out / "figure5.json").read_text())
    assert {len(arm["curves"][0]["steps"]) for arm in told["arms"].values()} == {3}
    log = (out / "figure5" / "grpo_ps" / "seed0" / "reproduce.log").read_text()
    assert f"rewards from the process reward model in {out / 'stem'}" in log
    made = run(words("figure7"))
    assert "2 of 4 runs are there already" in made and "RL raises Maj@K and not Pass@K" in made
    assert (out / "figure7.svg").read_text().count("<polyline") == 4


@pytest.mark.slow
def test_figure_6_trains_the_reward_model_again(command):
    words, out = command
    made = run(words("figure6"))
    assert "Iteration-2 improves the policy" in made
    steps = json.loads((out / "figure6.json").read_text())["iterative"]["curves"][0]["steps"]
    assert steps == [0, 2, 4, 6]


def test_wrong_words_are_named(capsys):
    assert main(["figure4"]) == 2
    assert "figure5" in capsys.readouterr().err
    assert main(["figure5", "--seeds", "none"]) == 2
    assert "'none' is no whole number" in capsys.readouterr().err
