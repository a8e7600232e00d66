"""What a step of reinforcement took, for the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.config import RLConfig
from grpo_jax.stages.rounds import Use


def step_counts(
    c: RLConfig, algorithm: Algorithm, metrics: Mapping[str, float], uses: Sequence[Use] = ()
) -> dict[str, int]:
    """The counts of a step from its metrics: what was sampled for it in all rounds, and what was learnt from it.

    Completions that stand in the data are not sampled. Tokens are trained on once an update; an update that was skipped
    is no optimizer step. What a tool says is counted apart from what the policy generates.
    """
    batches = 1 + int(metrics.get("refill/rounds", 0))
    sampled = algorithm.sampler != "data"
    updates, tokens = c.num_iterations, int(metrics["num_generated_tokens"])
    return {
        "prompts": c.prompts_per_step * batches,
        "completions": c.prompts_per_step * batches * c.num_generations * sampled,
        "generated_tokens": tokens * sampled,
        "tool_tokens": sum(use.tokens for use in uses),
        "trained_tokens": round(float(metrics["num_trained_tokens"]) * updates),
        "optimizer_steps": updates - round(float(metrics["skipped_updates"]) * updates),
    }
