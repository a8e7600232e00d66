"""Reinforcement: Algorithm 1 of arXiv:2402.03300, line by line.

    policy <- initial policy                                                        line 1
    for iteration = 1..I:                                                                2
        reference <- policy                                                              3
        for step = 1..M:                                                                 4
            sample a batch of prompts                                                    5
            old policy <- policy                                                         6
            sample G completions for each prompt from the old policy                     7
            compute rewards                                                              8
            compute advantages by group                                                  9
            for update = 1..mu: improve the policy on the objective                  10-11

With mu = 1 the old policy is the policy, and no pass is spent on its log-probabilities. Line 12, the reward model's
continued training, has nothing to do where rewards are rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.config import RLConfig
from grpo_jax.configure import find
from grpo_jax.data.order import batch_indices
from grpo_jax.reporting.metrics import MetricsWriter
from grpo_jax.reporting.progress import Progress
from grpo_jax.reporting.rollouts import drop_rollouts_after, write_rollouts
from grpo_jax.rewards.reward import Reward, load_reward
from grpo_jax.stages import rollouts
from grpo_jax.stages.judging import judge
from grpo_jax.stages.programs import compiled, rl_programs
from grpo_jax.stages.run import Run
from grpo_jax.stages.sources import load_problems, source_record
from grpo_jax.training.health import Health
from grpo_jax.training.optimizer import learning_rate_at, make_optimizer
from grpo_jax.training.state import abstract_copy, abstract_state, create_state
from grpo_jax.training.step import group_cuts
from grpo_jax.types import Problem


class Prepared(NamedTuple):
    """What the stage needs from outside, read and checked before device memory is taken."""

    problems: Sequence[Problem]
    algorithm: Algorithm
    rewards: list[Reward]
    data: dict[str, Any]  # what a checkpoint keeps of the source


def prepare(run: Run) -> Prepared:
    """Read the task prompts, load algorithm and rewards, and say what a step is."""
    c: RLConfig = run.config.rl
    run.check_batch("rl.prompts_per_step", c.prompts_per_step)
    algorithm = find("algorithms", c.algorithm.kind).build(c.algorithm)
    group_cuts(c.prompts_per_step, c.num_generations, c.microbatches, rows=algorithm.rows)
    problems = load_problems(run, c.source)
    run.note(
        f"rl: {len(problems)} problems; a step is {c.prompts_per_step} prompts x {c.num_generations} completions = "
        f"{c.prompts_per_step * c.num_generations} rows of at most {c.sampling.max_completion_length} tokens, "
        f"{c.num_iterations} update(s) in {c.microbatches} micro-batch(es); "
        f"{c.iterations * c.max_steps} steps = {c.iterations * c.max_steps * c.prompts_per_step / len(problems):.2f} epochs"
    )
    if not run.sampling(c.sampling, c.num_generations).distribution.full_support:
        run.note(
            "rl: top_k, top_p, min_p or temperature 0 sample from another distribution than the trainer scores: "
            "the ratio of the two is not 1, and the check of their agreement is off"
        )
    return Prepared(problems, algorithm, [load_reward(r) for r in c.rewards], source_record(problems))


def train(
    run: Run, params: Any, prepared: Prepared, evaluate: Callable[[Any], dict[str, float]] | None = None
) -> Any:
    """Reinforce `params` from where the stage stands; returns the trained parameters.

    `evaluate(params)` gives held-out metrics for the log every `eval_steps`.
    """
    c: RLConfig = run.config.rl
    problems, algorithm, rewards, data = prepared
    total = c.iterations * c.max_steps
    optimizer = make_optimizer(c.optimizer, total * c.num_iterations)
    programs = rl_programs(run, c, algorithm, optimizer, params)
    full_support = run.sampling(c.sampling, c.num_generations).distribution.full_support
    health = Health(c.max_skipped_steps, c.max_logprob_gap if full_support else None)
    freeze = programs.freeze if algorithm.reference else lambda params: {}

    with run.checkpoints("rl", c.save_total_limit) as checkpoints:
        state = abstract_state(params, optimizer, run.mesh)
        abstract = {"state": state, "reference": abstract_copy(freeze, state.params)}
        resumed, start = run.restore(checkpoints, abstract, data)
        state = (
            resumed["state"] if resumed else create_state(params, optimizer, run.config.seed, run.mesh)
        )  # 1
        reference = resumed["reference"] if resumed else None
        del params, resumed  # from here on the state's arrays are donated to each update
        drop_rollouts_after(run.stage("rl"), start)
        with (
            MetricsWriter(run.stage("rl"), run.config.report_to, f"{run.name}/rl") as log,
            Progress("rl", total=total, start=start) as progress,
        ):
            log.truncate_after(start)
            for step in range(start, total):  # 2, 4
                done = step + 1
                if step % c.max_steps == 0:
                    reference = freeze(state.params)  # 3
                indices = batch_indices(
                    len(problems), c.prompts_per_step, seed=run.config.seed, step=step
                )  # 5
                batch = [problems[i] for i in indices]

                with progress.phase("compile and sample" if step == start else "sample"):
                    rollout = programs.sample(
                        state.params, run.prompts(problems, indices), state.key, step
                    )  # 7
                    rollout = run.end_at_stop(rollout, c.sampling.stop)
                    texts = run.texts(rollout)
                with progress.phase("reward"):
                    judged = judge(run, batch, texts, rollout, rewards)  # 8
                with progress.phase("compile and train" if step == start else "train"):
                    old = programs.logprobs(state.params, rollout) if c.num_iterations > 1 else None  # 6
                    ref = programs.logprobs(reference, rollout) if algorithm.reference else None
                    experience = programs.experience(rollout, judged.rewards, old, ref)  # 9
                    updates = []
                    for _ in range(c.num_iterations):  # 10
                        state, update = programs.update(state, experience)  # 11
                        updates.append(update)
                    updates = jax.device_get(updates)

                metrics = rollouts.metrics(rollout, judged, updates, progress.seconds) | {
                    "learning_rate": learning_rate_at(
                        c.optimizer, total * c.num_iterations, done * c.num_iterations - 1
                    ),
                    "compiles": compiled(*programs),
                }
                health.check(done, metrics)
                if evaluate and c.eval_steps and done % c.eval_steps == 0:
                    with progress.phase("evaluate"):
                        metrics |= evaluate(state.params)
                logged = done % c.logging_steps == 0 or done == total
                if logged:
                    log.write(done, metrics)
                if c.rollout_steps and (step % c.rollout_steps == 0 or done == total):
                    groups = rollouts.groups(run, done, batch, indices, texts, rollout, experience, judged)
                    write_rollouts(run.stage("rl"), done, groups)
                with progress.phase("save"):
                    saved = {"state": state, "reference": reference}
                    run.save_if_due(checkpoints, c, done, total, saved, data)
                progress.advance(metrics if logged else None)
    run.finish("rl", total)
    return state.params
