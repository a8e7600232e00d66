"""The runs behind each figure, as data: what is laid over a scale's file of `configs/reproduce`.

    stem               SFT, then labels of the SFT policy's own solutions by itself, then a process reward model: once
    figure5/ARM/SEED   as many steps, prompts and completions for each method, from the SFT policy of the stem
    figure6/ARM/SEED   three outer iterations of Algorithm 1, and as many steps without a new reference or reward model
    figure7/WHO/SEED   64 samples of each held-out problem, by the SFT policy and by those of an arm of figure 5

A seed decides which prompts are met in which order, all noise of sampling, and which held-out problems are asked; the
policy that all start from is one. Arms of one seed meet the same prompts and are asked the same problems.

What the paper leaves open is chosen so that arms differ in one thing at a time. RFT and online RFT have a rule, as in
its table 10. GRPO has the same process reward model with outcome supervision (`grpo_os`: the score of a solution is its
worst step's, as in Math-Shepherd) and with process supervision (`grpo_ps`): these two differ in nothing else. As
this sets GRPO's learned reward against the others' rule that is never wrong, two more arms have rules: `grpo_os_rule`
the same rule, `grpo_ps_rule` the truth about each step, which is what a reward model without a fault would say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_jax.reproduce.schedule import ONE_CORE, ROOT, Job

CONFIGS = ROOT / "configs" / "reproduce"
FIGURES = ("figure5", "figure6", "figure7")
STEM = "stem"
STEM_SEED = 1_000
"""No arm's: what each arm meets in training is to be as new to the policy and the reward model as what others meet."""
RULES = {"rule": {"kind": "exact", "after": ["\n", "="]}, "steps": {"kind": "step_match", "split": "tokens"}}
ONLY_RL = {"sft": None, "label": None, "reward_model": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A method, and its name in tables and plots."""

    title: str
    kind: str
    reward: str  # rule, steps (the rule of each), outcome or process (of the reward model)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of its algorithm


ARMS = {
    "rft": Arm(title="RFT", kind="rft", reward="rule", settings={"beta": 0.0}),
    "online_rft": Arm(title="Online RFT", kind="online_rft", reward="rule", settings={"beta": 0.0}),
    "grpo_os": Arm(title="GRPO+OS", kind="grpo", reward="outcome"),
    "grpo_ps": Arm(title="GRPO+PS", kind="grpo", reward="process"),
    "grpo_os_rule": Arm(title="GRPO+OS, rule", kind="grpo", reward="rule"),
    "grpo_ps_rule": Arm(title="GRPO+PS, rule", kind="grpo", reward="steps"),
}
ORDER = ("rft", "online_rft", "grpo_os", "grpo_ps")
"""The paper's order in figure 5, the worst first."""
BESIDE = (("online_rft", "grpo_os_rule"), ("grpo_os_rule", "grpo_ps_rule"), ("grpo_os", "grpo_os_rule"))
"""What tells the method from its reward: GRPO with rewards that are never wrong. No part of the paper's order."""
BEST = "grpo_ps"
"""The arm whose policies figure 7 compares with the SFT policy: the paper's best."""

ITERATIVE = {"iterative": "iterative GRPO+PS", "once": "GRPO+PS, no refresh"}
"""The arms of figure 6: Algorithm 1, and as many steps with the first reference and reward model."""
ITERATIONS = 3
"""The paper's Iteration-0, the first round of RL, and two more with a new reference and a reward model that went on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the experiments are."""

    name: str
    at_once: int
    """Runs side by side."""
    environment: Mapping[str, str]
    """Of these runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    iteration_steps: int
    """Steps of an outer iteration in figure 6."""
    line_12: Mapping[str, Any]
    """How the reward model goes on between iterations: `rl.continue_reward_model`."""
    ks: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    """The K of figure 7; the last is the number of samples."""

    @property
    def base(self) -> Path:
        """The file of the scale."""
        return CONFIGS / f"{self.name}.yaml"


SCALES = {
    "tiny": Scale(
        name="tiny",
        at_once=2,
        environment=ONE_CORE,
        iteration_steps=60,
        line_12={
            "reward": {"kind": "accuracy"},
            "num_problems": 3000,  # of 512, about 1,000 different solutions, it learns little that holds for others
            "num_solutions": 4,
            "num_completions": 8,
            "batch_prompts": 128,
            "max_steps": 200,
            "batch_size": 64,
            "max_length": 96,
            "optimizer": {"learning_rate": 1.5e-3, "lr_scheduler_type": "cosine", "warmup_steps": 10},
        },
    ),
    "small": Scale(
        name="small",
        at_once=1,
        environment={},
        iteration_steps=40,
        line_12={
            "reward": {"kind": "accuracy"},
            "num_problems": 2000,
            "num_solutions": 4,
            "num_completions": 8,
            "batch_prompts": 256,
            "max_steps": 100,
            "batch_size": 128,
            "max_length": 512,
            "optimizer": {"learning_rate": 2e-5, "lr_scheduler_type": "cosine", "warmup_steps": 10},
        },
    ),
}


def jobs_of(figure: str, scale: Scale, out: Path) -> list[Job]:
    """The runs that a figure needs, in an order in which they can be run."""
    stem = stem_job(scale)
    if figure == "figure5":
        return [stem, *(arm_job(name, scale, seed, out) for seed in scale.seeds for name in ARMS)]
    if figure == "figure6":
        return [stem, *(iterative_job(name, scale, seed, out) for seed in scale.seeds for name in ITERATIVE)]
    trained = [arm_job(BEST, scale, seed, out) for seed in scale.seeds]
    before = [evaluation_job("sft", stem, scale, seed, out) for seed in scale.seeds]
    after = [evaluation_job(BEST, job, scale, seed, out) for job, seed in zip(trained, scale.seeds, strict=True)]
    return [stem, *trained, *before, *after]


def stem_job(scale: Scale) -> Job:
    """The run that gives the SFT policy and the reward model; alone, as all others need it, it has all cores."""
    cores = {"NPROC": str(scale.at_once)} if "NPROC" in scale.environment else {}
    return Job(STEM, scale.base, {"seed": STEM_SEED, "rl": None, "evaluation": None}, environment=cores)


def arm_job(name: str, scale: Scale, seed: int, out: Path) -> Job:
    """One method from one seed."""
    arm = ARMS[name]
    rl: dict[str, Any] = {"algorithm": {"kind": arm.kind, **arm.settings}, "rewards": [reward(arm.reward, out)]}
    settings = {"seed": seed, "model": start_from(out / STEM), **ONLY_RL, "rl": rl}
    return Job(f"figure5/{name}/seed{seed}", scale.base, settings, needs=(STEM,))


def reward(kind: str, out: Path) -> dict[str, Any]:
    """The reward of an arm: a rule, or the stem's reward model with outcome or process supervision."""
    if kind in RULES:
        return dict(RULES[kind])
    return {"kind": "learned", "path": str(out / STEM), "whole": "min", "supervision": kind}


def iterative_job(name: str, scale: Scale, seed: int, out: Path) -> Job:
    """Outer iterations with process supervision, or their steps in one."""
    rl: dict[str, Any] = {"rewards": [reward("process", out)], "max_steps": scale.iteration_steps}
    if name == "iterative":
        old = {"kind": "steps", "path": str(out / STEM / "label" / "labels.jsonl")}
        rl |= {"iterations": ITERATIONS, "continue_reward_model": {**scale.line_12, "old_labels": old}}
    else:
        rl |= {"max_steps": ITERATIONS * scale.iteration_steps}
    settings = {"seed": seed, "model": start_from(out / STEM), **ONLY_RL, "rl": rl}
    return Job(f"figure6/{name}/seed{seed}", scale.base, settings, needs=(STEM,))


def evaluation_job(who: str, of: Job, scale: Scale, seed: int, out: Path) -> Job:
    """Samples of the policy that a run has written, for each K."""
    measured = {"num_samples": scale.ks[-1], "k": list(scale.ks)}
    settings = {"seed": seed, "model": start_from(out / of.name), **ONLY_RL, "rl": None, "evaluation": measured}
    return Job(f"figure7/{who}/seed{seed}", scale.base, settings, needs=(of.name,))


def start_from(run: Path) -> dict[str, str]:
    """The policy that a run has written."""
    return {"model_name_or_path": str(run / "hf")}
