"""What is told of a step: its metrics (TRL's names) and its rollouts for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.data.prompts import prompt_text
from grpo_jax.reporting.rollouts import rollout_groups, span, token_texts, write_rollouts
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.sharding import global_to_host
from grpo_jax.stages.judging import Judged
from grpo_jax.stages.run import Run
from grpo_jax.types import Experience, Problem, Rollout


def step_metrics(
    rollout: Rollout,
    judged: Judged,
    updates: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    waited: Mapping[str, float],
) -> dict[str, float]:
    """The numbers of one step, of its rollout, rewards, updates (a mean over them), phases and timeline."""
    mask, finished = (np.asarray(x) for x in global_to_host((rollout.completion_mask, rollout.finished)))
    lengths = mask.sum(-1)
    prompt_tokens = int(np.asarray(global_to_host(rollout.prompts.sequences.segments)).sum())
    sampling_s = waited.get("time/device_sample_s")  # of the programs alone, wherever the loop was meanwhile
    sample_s = sum(s for name, s in seconds.items() if "sample" in name)
    train_s = sum(s for name, s in seconds.items() if "train" in name)
    return (
        reward_metrics(judged)
        | length_metrics(lengths, finished, prompt_tokens)
        | {
            "tokens_per_sec/train": float((lengths.sum() + prompt_tokens) / max(train_s, 1e-9)),
            "time/sample_s": sample_s,
            "time/reward_s": seconds.get("reward", 0.0),
            "time/train_s": train_s,
        }
        # what was sampled before the run was stopped took no time now
        | ({"tokens_per_sec/sample": float(lengths.sum() / sampling_s)} if sampling_s else {})
        | waited
        | update_metrics(updates)
    )


def length_metrics(lengths: np.ndarray, finished: np.ndarray, prompt_tokens: int) -> dict[str, float]:
    """The numbers of the completions [B] themselves."""
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(1.0 - finished.mean()),
        "num_tokens": int(lengths.sum()) + prompt_tokens,
        "num_generated_tokens": int(lengths.sum()),
    }


def update_metrics(updates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of the updates on one rollout: their means."""
    of_updates = {name: float(np.mean([update[name] for update in updates])) for name in updates[0]}
    # Sampler and trainer are comparable in the first update only; later the policy has moved.
    return of_updates | {name: float(value) for name, value in updates[0].items() if name.startswith("logprob_gap/")}


def reward_metrics(judged: Judged) -> dict[str, float]:
    """Means and deviations over what could be judged, the share of groups without signal, and what went wrong."""
    judgeable = ~np.isnan(judged.outcome)
    result = {
        "reward": _mean(judged.outcome),
        "reward_std": _mean(np.array([_std(group) for group in judged.outcome])),
        "frac_reward_zero_std": float(np.mean(judged.dead)),
        "frac_unjudged": float(1.0 - judgeable.mean()),
    }
    for name, part in judged.parts.items():
        result |= {
            f"rewards/{name}/mean": _mean(part),
            f"rewards/{name}/std": _std(part),
        }
    for name, counts in judged.counts.items():
        result |= {f"{what}/{name}": float(count) for what, count in counts.items()}
    return result


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _std(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.std()) if values.size else float("nan")


def keep_rollouts(
    run: Run,
    step: int,
    source: Sequence[Problem],
    indices: Sequence[int],
    rollout: Rollout,
    texts: Sequence[str],
    judged: Judged,
    experience: Experience,
) -> None:
    """Write the groups of a step for the report's browser."""
    problems = [source[int(i)] for i in indices]
    tokens, mask, logprobs, finished, advantages, ref_logprobs = global_to_host(
        (
            rollout.completions.tokens,
            rollout.completion_mask,
            rollout.logprobs,
            rollout.finished,
            experience.advantages,
            experience.ref_logprobs,
        )
    )
    if experience.places is not None:  # the rollout is in the sampler's order
        back = np.argsort(global_to_host(experience.places))
        advantages, ref_logprobs = (x if x is None else x[back] for x in (advantages, ref_logprobs))
    groups = rollout_groups(
        step=step,
        problem_index=[int(i) for i in indices],
        questions=[problem.question for problem in problems],
        prompts=[prompt_text(problem, run.config.prompt, run.tokenizer) for problem in problems],
        answers=[problem.answer for problem in problems],
        texts=texts,
        tokens=[
            token_texts(row[: span(chosen)].tolist(), run.tokenizer.decode)
            for row, chosen in zip(tokens, mask, strict=True)
        ],
        completion_mask=mask,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        parts=judged.parts,
        rewards=judged.outcome,
        advantages=advantages,
        finished=finished,
        extracted=[extract_answer(text) for text in texts],
    )
    write_rollouts(run.stage("rl"), step, groups)
