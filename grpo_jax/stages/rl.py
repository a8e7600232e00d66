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

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.config import RLConfig
from grpo_jax.data.order import OrderError, distinct_indices
from grpo_jax.reporting.metrics import MetricsWriter, read_metrics
from grpo_jax.reporting.progress import Progress
from grpo_jax.reporting.rollouts import drop_rollouts_after
from grpo_jax.rewards.reward import Reward, check_rewards, load_rewards
from grpo_jax.sampler.slots import lanes_and_rows
from grpo_jax.sharding import agree, batch_shards
from grpo_jax.stages.fused import Fused, check_fused, train_fused
from grpo_jax.stages.judging import Judged, judge
from grpo_jax.stages.policy import abstract
from grpo_jax.stages.programs import RLPrograms, algorithm_of, compiled, rl_programs
from grpo_jax.stages.rollouts import keep_rollouts, step_metrics
from grpo_jax.stages.run import Run
from grpo_jax.stages.sources import load_answered, source_record
from grpo_jax.training.health import Health
from grpo_jax.training.optimizer import learning_rate_at, make_optimizer
from grpo_jax.training.state import abstract_copy, abstract_state, create_state
from grpo_jax.training.step import group_cuts
from grpo_jax.types import Experience, Problem, Rollout, TrainState

Evaluate = Callable[[Any], dict[str, float] | None]


class Prepared(NamedTuple):
    """What the stage needs from outside, read and checked before device memory is taken."""

    problems: Sequence[Problem]
    algorithm: Algorithm
    rewards: tuple[Reward, ...]
    data: dict[str, Any]  # what a checkpoint keeps of the source


class Stage(NamedTuple):
    """What a step needs and does not change."""

    run: Run
    problems: Sequence[Problem]
    algorithm: Algorithm
    rewards: tuple[Reward, ...]
    programs: RLPrograms


class Collected(NamedTuple):
    """A batch of experience and where it comes from."""

    indices: Sequence[int]  # of the problems
    rollout: Rollout
    texts: list[str]
    judged: Judged
    experience: Experience


def prepare(run: Run) -> Prepared:
    """Read the task prompts, load algorithm and rewards, and say what a step is."""
    c: RLConfig = run.config.rl
    run.check_batch("rl.prompts_per_step", c.prompts_per_step)
    algorithm = algorithm_of(c)
    length = run.config.prompt.max_prompt_length + c.sampling.max_completion_length
    run.check_length("prompt.max_prompt_length + rl.sampling.max_completion_length", length)
    cut = group_cuts(c.prompts_per_step, c.num_generations, c.microbatches, rows=algorithm.rows)
    run.check_batch(f"each of {c.microbatches} rl.microbatches", c.prompts_per_step * cut // c.microbatches)
    lanes_and_rows(c.prompts_per_step, c.num_generations, c.decode_rows, shards=batch_shards(run.mesh))
    rewards = load_rewards(c.rewards)
    check_rewards(rewards, run.workers)
    check_fused(c, rewards)
    problems = load_answered(run, c.source)
    if len(problems) < c.prompts_per_step:
        raise OrderError(
            f"rl.prompts_per_step: {c.prompts_per_step} prompts a step, but the source has {len(problems)} problems; "
            "lower it, or give more problems"
        )
    steps = c.iterations * c.max_steps
    run.note(
        f"rl: {len(problems)} problems; a step is {c.prompts_per_step} prompts x {c.num_generations} completions = "
        f"{c.prompts_per_step * c.num_generations} rows of at most {c.sampling.max_completion_length} tokens, "
        f"{c.num_iterations} update(s) in {c.microbatches} micro-batch(es); "
        f"{steps} steps = {steps * c.prompts_per_step / len(problems):.2f} epochs"
    )
    if not run.sampling(c.sampling, c.num_generations).distribution.full_support:
        run.note(
            "rl: top_k, top_p, min_p or temperature 0 sample from another distribution than the trainer scores: "
            "the ratio of the two is not 1, and the check of their agreement is off"
        )
    return Prepared(problems, algorithm, rewards, source_record(problems))


def train(
    run: Run,
    initial: Callable[[], Any],
    prepared: Prepared,
    evaluate: Evaluate | None = None,
) -> Any:
    """Reinforce a policy from where the stage stands; returns the trained parameters: all, or the adapters.

    `initial()` loads them to begin with, `evaluate(policy)` gives held-out metrics for the log.
    """
    c: RLConfig = run.config.rl
    total, data = c.iterations * c.max_steps, prepared.data
    updates_in_all = total * c.num_iterations
    optimizer = make_optimizer(c.optimizer, updates_in_all)
    sampling = run.sampling(c.sampling, c.num_generations, decode_rows=c.decode_rows)
    params = abstract(run.model.config, run.mesh)
    programs = rl_programs(run.model, c, sampling, prepared.algorithm, optimizer, params)
    stage = Stage(run, prepared.problems, prepared.algorithm, prepared.rewards, programs)
    health = Health(c.max_skipped_steps, c.max_logprob_gap if sampling.distribution.full_support else None)

    with run.checkpoints("rl", c.save_total_limit) as checkpoints:
        state, reference, start = begin(stage, checkpoints, optimizer, initial, data)
        drop_rollouts_after(run.stage("rl"), start)
        with (
            run.metrics_log("rl") as log,
            Progress("rl", total=total, start=start) as progress,
        ):
            log.truncate_after(start)
            if start and not evaluated(log.path, start):  # stopped in the middle of an evaluation
                look(stage, state, start, evaluate, log, progress)
            if c.fused_steps:  # what follows, several steps at once
                fused = Fused(stage, optimizer, data, health, lambda *now: look(stage, *now, evaluate, log, progress))
                state, start = train_fused(fused, state, reference, start, checkpoints, log, progress), total
            for step in range(start, total):  # lines 2 and 4
                if step % c.max_steps == 0:
                    reference = programs.freeze(state.params)  # 3
                saved = {"state": state, "reference": reference}
                with run.keeping(checkpoints, step, saved, data):
                    batch = collect(stage, state, reference, step, progress)  # 5 to 9
                run.leave_if_asked(checkpoints, step, total, saved, data)
                state, updates = improve(stage, state, batch.experience, progress)  # 10, 11
                done, saved = step + 1, {"state": state, "reference": reference}
                metrics = step_metrics(batch.rollout, batch.judged, updates, progress.seconds) | {
                    "learning_rate": learning_rate_at(c.optimizer, updates_in_all, done * c.num_iterations - 1),
                    "compiles": compiled(*programs),
                }
                logged = done % c.logging_steps == 0 or done == total
                if logged:
                    log.write(done, metrics)
                if c.rollout_steps and (step % c.rollout_steps == 0 or done == total):
                    keep_rollouts(run, done, prepared.problems, *batch)
                with run.keeping(checkpoints, done, saved, data):
                    health.check(done, metrics)  # after the log, which shows what was wrong
                look(stage, state, done, evaluate, log, progress)
                with progress.phase("save"):
                    run.save_if_due(checkpoints, c, done, total, saved, data)
                progress.advance(metrics if logged else None)
    run.finish("rl", total)
    return state.params


def begin(
    stage: Stage, checkpoints: Any, optimizer: Any, initial: Callable[[], Any], data: Mapping[str, Any]
) -> tuple[TrainState, Any, int]:
    """The state, the reference and the step to go on from: a checkpoint's, or line 1 of the algorithm.

    The state's arrays are donated to each update, those of `initial()` among them.
    """
    run = stage.run
    state = abstract_state(abstract(run.model.config, run.mesh), optimizer, run.mesh)
    reference = abstract_copy(stage.programs.freeze, state.params)
    resumed, start = run.restore(checkpoints, {"state": state, "reference": reference}, data)
    if resumed:
        return resumed["state"], resumed["reference"], start
    return create_state(initial(), optimizer, run.config.seed, run.mesh), None, 0


def look(
    stage: Stage, state: TrainState, step: int, evaluate: Evaluate | None, log: MetricsWriter, progress: Progress
) -> None:
    """Evaluate on held-out problems where it is due, in a line of metrics of its own.

    A signal breaks it off; the step is then saved, and the evaluation made when the run goes on.
    """
    every = stage.run.config.rl.eval_steps
    if evaluate and every and step % every == 0:
        with progress.phase("evaluate"):
            numbers = evaluate(stage.run.policy(state.params))
        if numbers:
            log.write(step, numbers)


def evaluated(path: Path, step: int) -> bool:
    """Whether the log has the held-out numbers of a step."""
    lines = read_metrics(path) if path.is_file() else []
    return bool(agree(any(line["step"] == step and any(key.startswith("eval/") for key in line) for line in lines)))


def collect(stage: Stage, state: TrainState, reference: Any, step: int, progress: Progress) -> Collected:
    """One exploration: lines 5 to 9 of the algorithm."""
    run, programs, c = stage.run, stage.programs, stage.run.config.rl
    indices = distinct_indices(len(stage.problems), c.prompts_per_step, seed=run.config.seed, step=step)  # 5
    batch = [stage.problems[i] for i in indices]
    policy = run.policy(state.params)
    with progress.phase("sample"):
        rollout = programs.sample(policy, run.prompts(stage.problems, indices), state.key, step)  # 7
        rollout = run.end_at_stop(rollout, c.sampling.stop)
        texts = run.texts(rollout)
    with progress.phase("reward"):
        judged = judge(run, batch, texts, rollout, stage.rewards, step=step + 1)  # 8
    with progress.phase("train"):
        old = programs.logprobs(policy, rollout) if c.num_iterations > 1 else None  # 6
        ref = programs.logprobs(run.policy(reference), rollout) if stage.algorithm.reference else None
        experience = programs.experience(rollout, judged.rewards, old, ref)  # 9
    return Collected(indices, rollout, texts, judged, experience)


def improve(
    stage: Stage, state: TrainState, experience: Experience, progress: Progress
) -> tuple[TrainState, list[dict[str, Any]]]:
    """The updates on one batch: lines 10 and 11; their metrics come to the host."""
    updates = []
    with progress.phase("train"):
        for _ in range(stage.run.config.rl.num_iterations):
            state, update = stage.programs.update(state, experience, frozen=stage.run.frozen)
            updates.append(update)
        return state, jax.device_get(updates)
