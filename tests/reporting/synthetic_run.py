"""A run directory as the stages write it, of invented but plausible numbers; no model is involved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from grpo_jax.reporting.metrics import make_line
from grpo_jax.reporting.rollouts import rollout_groups, write_rollouts

CONFIG = """\
output_dir: runs/synthetic
seed: 0
model:
  model_name_or_path: {model}
  architecture: {{num_hidden_layers: 2, hidden_size: 64}}
  dtype: float32
sft:
  source: {{kind: arithmetic, steps: 2}}
  max_steps: 900
rl:
  source: {{kind: {source}, steps: 2}}
  algorithm: {{kind: grpo, beta: 0.01, epsilon: 0.2}}
  rewards:
  - {{kind: accuracy, weight: 1.0}}
  - {{kind: format, weight: 0.1}}
  prompts_per_step: 32
  num_generations: 16
  max_steps: {steps}
evaluation:
  source: {{kind: {source}}}
"""
START = 1_790_000_000.0
NAMES = ["Mira", "Tomás", "Aiko", "Jonas", "Lena", "Omar", "Priya", "Chen"]


def make_run(directory: Path, *, steps: int = 200, rollout_files: int = 20, words: bool = False, groups: int = 8):
    """Write a run of `steps` RL steps; with `words` completions are worked solutions of up to 200 tokens."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True, exist_ok=True)
    source, model = ("tfds", "Qwen/Qwen2.5-0.5B-Instruct") if words else ("arithmetic", "null")
    (directory / "config.yaml").write_text(CONFIG.format(source=source, model=model, steps=steps))
    (directory / "environment.json").write_text(json.dumps(ENVIRONMENT, indent=2))
    write_lines(directory / "sft" / "metrics.jsonl", [sft_line(rng, step) for step in range(10, 901, 10)])
    write_lines(directory / "rl" / "metrics.jsonl", [rl_line(rng, step, steps) for step in range(1, steps + 1)])
    for step in np.linspace(1, steps, rollout_files).round().astype(int):
        write_rollouts(directory / "rl", int(step), make_groups(rng, int(step), steps, words, groups))
    write_evaluations(directory / "evaluation")
    return directory


ENVIRONMENT = {
    "started": "2026-11-21T10:00:00+0000",
    "command": ["launch/train.py", "configs/tiny.yaml"],
    "python": "3.11.9",
    "versions": {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"},
    "platform": "cpu",
    "devices": {"cpu": 2},
    "device_count": 2,
    "process_count": 1,
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "changed": False},
    "variables": {"XLA_FLAGS": ""},
}


def write_lines(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def sft_line(rng, step: int) -> dict:
    numbers = {
        "loss": 0.28 + 2.2 * np.exp(-step / 120) + 0.01 * rng.normal(),
        "accuracy": 0.9 - 0.6 * np.exp(-step / 150) + 0.005 * rng.normal(),
        "grad_norm": 0.4 + 2 * np.exp(-step / 100) * rng.uniform(0.7, 1.3),
        "learning_rate": 3e-4 + 5.7e-3 * 0.5 * (1 + np.cos(np.pi * step / 900)),
        "tokens_per_sec": 52_000 + 900 * rng.normal(),
    }
    return make_line(step, START + step * 0.11, {key: float(value) for key, value in numbers.items()})


def rl_line(rng, step: int, steps: int) -> dict:
    t = step / steps
    reward = 0.40 + 0.49 * (1 - np.exp(-4 * t)) + 0.025 * rng.normal()
    noise = rng.normal()
    first = step == 1
    numbers = {
        "reward": reward + 0.1,
        "reward_std": 0.42 * np.exp(-1.3 * t) + 0.01 * rng.normal(),
        "rewards/accuracy/mean": reward,
        "rewards/accuracy/std": 0.41 * np.exp(-1.3 * t) + 0.01 * rng.normal(),
        "rewards/format/mean": 1 - 0.04 * np.exp(-6 * t) * rng.uniform(),
        "rewards/format/std": 0.1 * np.exp(-6 * t) * rng.uniform(),
        "frac_reward_zero_std": float(np.clip(0.15 + 0.5 * t + 0.05 * rng.normal(), 0, 1)),
        "frac_unjudged": 0.0,
        "ungradable/accuracy": int(rng.poisson(2 * np.exp(-5 * t))),
        "completions/mean_length": 7.6 + 0.3 * t + 0.05 * rng.normal(),
        "completions/min_length": 4 + int(rng.integers(0, 2)),
        "completions/max_length": 8,
        "completions/clipped_ratio": float(np.clip(0.06 * np.exp(-5 * t) + 0.01 * rng.normal(), 0, 1)),
        "loss": 0.002 * noise + 0.004 * t,
        "policy_loss": 0.002 * noise,
        "grad_norm": float("nan") if step == 57 else abs(0.5 + 0.15 * rng.normal()) * (6 if step == 120 else 1),
        "learning_rate": 3e-4 * min(1, step / 10),
        "kl": 0.22 * (1 - np.exp(-3 * t)) * rng.uniform(0.9, 1.1),
        "kl/k1": 0.20 * (1 - np.exp(-3 * t)) * rng.uniform(0.7, 1.3),
        "entropy": 0.42 * np.exp(-1.5 * t) + 0.008 * rng.normal(),
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": 0.0,
        "clip_ratio/region_mean": 0.0,
        "ratio/mean": 1.0,
        "logprob_gap/mean": 7e-7 * rng.uniform(0.6, 1.6),
        "logprob_gap/max": 9e-6 * rng.uniform(0.5, 2.2),
        "num_tokens": 4000 + int(40 * noise),
        "tokens_per_sec/sample": (900 if first else 9800) + 300 * rng.normal(),
        "tokens_per_sec/train": (700 if first else 15500) + 500 * rng.normal(),
        "time/sample_s": 4.2 if first else 0.42 + 0.02 * rng.normal(),
        "time/reward_s": 0.06 + 0.01 * rng.uniform(),
        "time/train_s": 6.1 if first else 0.27 + 0.02 * rng.normal(),
        "compiles": 3 if step < 4 else 4,
        "skipped_updates": 1 if step == 57 else 0,
        "filtered/duplicates": int(rng.poisson(3)),
    }
    if step % 50 == 0:
        numbers |= {"eval/greedy": 0.3 + 0.6 * t, "time/evaluate_s": 2.4, "time/save_s": 0.8}
    return make_line(step, START + 100 + step * 0.8, {key: as_python(value) for key, value in numbers.items()})


def as_python(value):
    return value if isinstance(value, int) else float(value)


def make_groups(rng, step: int, steps: int, words: bool, groups: int) -> list[dict]:
    """Groups of 16 completions; the last group's rewards cannot all be judged."""
    num_generations, skill = 16, 0.35 + 0.55 * step / steps
    problems = [word_problem(rng) if words else sum_problem(rng) for _ in range(groups)]
    rows = [write(rng, problem, skill, words) for problem in problems for _ in range(num_generations)]
    length = max(len(tokens) for tokens, _, _ in rows)
    mask = np.array([np.arange(length) < len(tokens) for tokens, _, _ in rows])
    logprobs = np.where(mask, -rng.exponential(0.35 * (1.2 - skill), mask.shape) * (rng.random(mask.shape) < 0.6), 0)
    rare = mask & (rng.random(mask.shape) < 0.02)
    logprobs = np.where(rare, -rng.uniform(2.5, 6, mask.shape), logprobs)
    right = np.array([float(good) for _, good, _ in rows]).reshape(groups, num_generations)
    right[-1, :2] = np.nan
    form = np.ones_like(right)
    reward = np.where(np.isnan(right), np.nan, right + 0.1 * form)
    centred = reward - np.nanmean(reward, axis=1, keepdims=True)
    spread = np.nanstd(reward, axis=1, keepdims=True)
    advantages = np.where(spread > 0, centred / np.maximum(spread, 1e-6), 0.0)
    return rollout_groups(
        step=step,
        problem_index=rng.integers(0, 5000, groups),
        questions=[question for question, _, _ in problems],
        prompts=[f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" if words else q for q, _, _ in problems],
        answers=[answer for _, answer, _ in problems],
        texts=["".join(tokens) for tokens, _, _ in rows],
        tokens=[tokens for tokens, _, _ in rows],
        completion_mask=mask,
        logprobs=logprobs,
        trainer_logprobs=logprobs + 1e-6 * rng.normal(size=mask.shape),
        ref_logprobs=logprobs - 0.5 * rng.normal(size=mask.shape) * (rng.random(mask.shape) < 0.3),
        entropy=np.abs(logprobs) * 1.1,
        parts={"accuracy": right, "format": form},
        rewards=reward,
        advantages=advantages,
        finished=np.array([done for _, _, done in rows]),
        extracted=["".join(tokens[-4:-1]).strip() or None for tokens, _, _ in rows],
    )


def sum_problem(rng) -> tuple[str, str, str]:
    x, y, z = int(rng.integers(11, 99)), int(rng.integers(2, 9)), int(rng.integers(2, 9))
    return f"{x}+{y}-{z}=", str(x + y - z), str(x + y)


def word_problem(rng) -> tuple[str, str, str]:
    name = str(rng.choice(NAMES))
    x, y, z = (int(n) for n in rng.integers(3, 40, 3))
    question = (
        f"{name} has {x} boxes with {y} pencils each and gives {z} pencils to a friend. "
        "How many pencils are left?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    return question, str(x * y - z), f"{x}*{y}"


def write(rng, problem: tuple[str, str, str], skill: float, words: bool) -> tuple[list[str], bool, bool]:
    """Tokens, whether they are right, and whether they came to an end."""
    _, answer, middle = problem
    good = bool(rng.random() < skill)
    value = answer if good else str(int(answer) + int(rng.choice([-10, 10, 1, 2])))
    done = good or bool(rng.random() < 0.9)
    if not words:
        return [*f"{middle};{value}"] + (["</s>"] if done else []), good, done
    text = f"First, the number of pencils in all boxes is ${middle}$.\n\n"
    text += "This is a product of two numbers, so it can be worked out in parts. " * int(rng.integers(1, 5))
    text += f"\nThen some are given away:\n\n\\[\n{middle} - z = {value}\n\\]\n\n"
    text += f"Therefore the answer is \\boxed{{{value}}}." if done else "Let us check it, since a check is"
    pieces = [piece if i == 0 else " " + piece for i, piece in enumerate(text.split(" "))]
    tokens = [part for piece in pieces for part in ([piece[:5], piece[5:]] if len(piece) > 7 else [piece])]
    return tokens + (["<|im_end|>"] if done else []), good, done


def write_evaluations(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    before = {"greedy": 0.24, "mean@8": 0.40, "pass@1": 0.40, "pass@4": 0.71, "pass@8": 0.84}
    before |= {"maj@1": 0.40, "maj@4": 0.41, "maj@8": 0.43}
    after = {"greedy": 0.96, "mean@8": 0.89, "pass@1": 0.89, "pass@4": 0.96, "pass@8": 0.97}
    after |= {"maj@1": 0.89, "maj@4": 0.94, "maj@8": 0.958}
    for name, values in (("before", before), ("after", after)):
        metrics = {
            key: {"value": v, "low": max(0.0, v - 0.03), "high": min(1.0, v + 0.025)} for key, v in values.items()
        }
        content = {"name": name, "title": f"{name} reinforcement", "num_problems": 512, "num_samples": 8}
        (directory / f"{name}.json").write_text(json.dumps(content | {"metrics": metrics}))
