"""What reinforcement needs from outside, read and checked before device memory is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.algorithms.settings import AlgorithmError
from grpo_jax.config import RLConfig
from grpo_jax.data.order import OrderError
from grpo_jax.models.attention import chosen
from grpo_jax.models.quantize import check_quantizable
from grpo_jax.rewards.reward import Reward, check_rewards, load_rewards
from grpo_jax.sampler.slots import lanes_and_rows
from grpo_jax.sharding import batch_shards
from grpo_jax.stages.continued import check_continued
from grpo_jax.stages.fused import check_fused
from grpo_jax.stages.learned import check_learned
from grpo_jax.stages.programs import algorithm_of
from grpo_jax.stages.run import Run
from grpo_jax.stages.sources import load_answered, load_problems, source_record
from grpo_jax.stages.written import check_pairs
from grpo_jax.training.step import group_cuts
from grpo_jax.types import Problem


class Prepared(NamedTuple):
    """What the stage needs from outside, read and checked before device memory is taken."""

    problems: Sequence[Problem]
    algorithm: Algorithm
    rewards: tuple[Reward, ...]
    data: dict[str, Any]  # what a checkpoint keeps of the source


def prepare(run: Run) -> Prepared:
    """Read the task prompts, load algorithm and rewards, and say what a step is."""
    c: RLConfig = run.config.rl
    run.check_batch("rl.prompts_per_step", c.prompts_per_step)
    algorithm = algorithm_of(c)
    length = run.config.prompt.max_prompt_length + c.sampling.max_completion_length
    run.check_length("prompt.max_prompt_length + rl.sampling.max_completion_length", length)
    shards = batch_shards(run.mesh)
    group_cuts(c.prompts_per_step, c.num_generations, c.microbatches, rows=algorithm.rows, shards=shards)
    run.check_batch(f"each of {c.sample_parts} rl.sample_parts", c.prompts_per_step // c.sample_parts)
    if c.rollout_weights == "int8":
        check_quantizable(run.model.config)
    lanes_and_rows(c.prompts_per_step // c.sample_parts, c.num_generations, c.decode_rows, shards=shards)
    rewards = load_rewards(c.rewards)
    check_rewards(rewards, run.workers)
    check_fused(c, rewards)
    models = check_learned(run, rewards)
    check_steps(c, algorithm, rewards)
    if algorithm.critic is not None and run.model.config.lora:
        raise AlgorithmError(
            f"rl.algorithm.kind {c.algorithm.kind} learns a value model with all its weights, and model.lora trains "
            "adapters; leave model.lora out, or choose a method without values, such as grpo"
        )
    written = algorithm.sampler == "data"
    problems = load_problems(run, c.source) if written else load_answered(run, c.source)
    if written:
        check_pairs(run, problems)
    if len(problems) < c.prompts_per_step:
        raise OrderError(
            f"rl.prompts_per_step: {c.prompts_per_step} prompts a step, but the source has {len(problems)} problems; "
            "lower it, or give more problems"
        )
    if c.dead_groups == "refill" and len(problems) < c.prompts_per_step * (1 + c.refill_rounds):
        raise OrderError(
            f"rl.refill_rounds: {c.refill_rounds} further batches of {c.prompts_per_step} prompts, but the source has "
            f"{len(problems)} problems; lower it, or give more problems"
        )
    steps = c.iterations * c.max_steps
    run.note(
        f"rl: {len(problems)} problems; a step is {c.prompts_per_step} prompts x {c.num_generations} completions = "
        f"{c.prompts_per_step * c.num_generations} rows of at most {c.sampling.max_completion_length} tokens, "
        f"{c.num_iterations} update(s) in {c.microbatches} micro-batch(es), {c.head_chunk} time steps of logits "
        f"at once, attention by {chosen(run.model.config, c.sampling.max_completion_length)}; "
        f"{steps} steps = {steps * c.prompts_per_step / len(problems):.2f} epochs"
    )
    if not run.sampling(c.sampling, c.num_generations).distribution.full_support:
        run.note(
            "rl: top_k, top_p, min_p or temperature 0 sample from another distribution than the trainer scores: "
            "the ratio of the two is not 1, and the check of their agreement is off"
        )
    check_continued(run, rewards, problems)
    check_sync(run, algorithm)
    data = source_record(problems)
    if models:
        data["fingerprint"] += f" with reward model {models}"
    return Prepared(problems, algorithm, rewards, data)


def check_sync(run: Run, algorithm: Algorithm) -> None:
    """Refuse to mix a reference that is not there, or that no mean can be made of. Raises `AlgorithmError`."""
    c = run.config.rl
    if not c.sync_ref_model:
        return
    kind = c.algorithm.kind
    if algorithm.sampler == "reference":
        raise AlgorithmError(
            f"rl.sync_ref_model: rl.algorithm.kind {kind} samples from the reference, which stays as it is within an "
            "iteration; leave rl.sync_ref_model out"
        )
    if not algorithm.reference:
        beta = getattr(c.algorithm, "beta", None)
        why = f"beta {beta}" if beta is not None else "no KL penalty"
        raise AlgorithmError(
            f"rl.sync_ref_model: rl.algorithm.kind {kind} with {why} has no reference; set rl.algorithm.beta, or leave "
            "rl.sync_ref_model out"
        )
    if run.model.config.lora and c.ref_model_mixup_alpha != 1:
        raise AlgorithmError(
            f"rl.ref_model_mixup_alpha is {c.ref_model_mixup_alpha}, and model.lora trains adapters: the mean of two "
            "products of low rank is no product of that rank, and the mean of the factors is another matrix; set it to "
            "1.0, which makes the reference the policy, or leave rl.sync_ref_model out"
        )


def check_steps(c: RLConfig, algorithm: Algorithm, rewards: Sequence[Reward]) -> None:
    """Refuse step rewards where nothing reads them. Raises `AlgorithmError`."""
    judging = [reward.name for reward in rewards if reward.steps]
    if judging and not algorithm.steps:
        raise AlgorithmError(
            f"rl.rewards: {', '.join(judging)} judges steps, and rl.algorithm.kind {c.algorithm.kind} learns from "
            "outcomes only; choose grpo, or another reward"
        )
    if judging and c.tools is not None:
        raise AlgorithmError(
            f"rl.tools is set, and {', '.join(judging)} judges steps: what a tool said would be taken for steps of the "
            "policy; leave one of the two out"
        )
    if judging and algorithm.critic is None and getattr(c.algorithm, "scale_rewards", "group") != "group":
        raise AlgorithmError(
            f"rl.algorithm.scale_rewards is {c.algorithm.scale_rewards}, and {', '.join(judging)} judges steps: "
            "they are divided by their deviation in the group (arXiv:2402.03300, section 4.1.3); set it to group"
        )
    if judging and algorithm.penalty is not None and algorithm.critic is None:
        raise AlgorithmError(
            f"rl.algorithm.kl_in is reward, and {', '.join(judging)} judges steps: what the penalty would be "
            "normalised with is not said anywhere; set kl_in to loss"
        )
