"""How good a process reward model is that nobody has labelled for, where the truth about each step is known.

python -m pytest tests/stages/test_reward_model_quality.py -m slow -s        # prints the numbers

The policy of configs/tiny_reward_model.yaml labels its own steps, in small; the model is measured on steps of students
on held-out sums, against the truth. `python launch/train.py configs/tiny_reward_model.yaml` is the same at full size.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from small_runs import on_few_devices

from grpo_jax.configure import find, load
from grpo_jax.data.labels.arithmetic import true_labels
from grpo_jax.stages import pipeline

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "tiny_reward_model.yaml"
SMALLER = ("--sft.max_steps", "500", "--label.source.size", "4000", "--reward_model.max_steps", "250")


def right_solution(question: str) -> str:
    """The results of a sum, by Python's own arithmetic."""
    parts = question.rstrip("=").replace("+", " +").replace("-", " -").split()
    return "\n".join(map(str, np.cumsum(np.array(parts, int))[1:]))


@pytest.mark.slow
def test_against_the_truth(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(pipeline, "make_mesh", on_few_devices)
    command = load([str(CONFIG), "--output_dir", str(tmp_path), "--only", "sft,label,reward_model", *SMALLER])
    pipeline.run(command, workers)
    labels = find("data.labels", "steps")
    solutions = labels.build(labels.Config(path=str(tmp_path / "label" / "labels.jsonl")), 0)
    truth = [true_labels(s.steps, right_solution(s.problem.question)) for s in solutions]
    hard = [[float(label > 0) for label in s.labels] for s in solutions]
    agree = np.mean([a == b for x, y in zip(hard, truth, strict=True) for a, b in zip(x, y, strict=True)])
    measured = json.loads((tmp_path / "reward_model" / "held_out.json").read_text())
    print(f"\nhard estimates that are the truth: {agree:.1%} of {sum(map(len, truth))} steps")
    print("held out, against the truth: " + ", ".join(f"{name} {value:.3f}" for name, value in measured.items()))
    assert agree > 0.9
    assert measured["auc"] > 0.9 and measured["accuracy"] > 0.8
    # Of two steps, one in three is the first error, or there is none: by chance it is found in a third.
    assert measured["first_error"] > 0.65
