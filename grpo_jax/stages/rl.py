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
        continue to train the reward model on fresh samples and replayed ones       12

With mu = 1 the old policy is the policy, and no pass is spent on its log-probabilities. Line 12 is in `continued.py`;
it has nothing to do where rewards are rules, nor after the last iteration, behind which nobody asks the reward model.
What is done is told line by line in `rl/events.jsonl` (`reporting/events.py`), but for fused steps.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.config import RLConfig
from grpo_jax.models.values import value_model
from grpo_jax.reporting.metrics import MetricsWriter, read_metrics
from grpo_jax.reporting.progress import Progress
from grpo_jax.reporting.rollouts import drop_rollouts_after
from grpo_jax.reporting.timeline import ASIDE, LOOP
from grpo_jax.sampler.sample import Sampling
from grpo_jax.sharding import agree
from grpo_jax.stages.continued import (
    Continuation,
    close_rewards,
    continue_reward_model,
    open_continuation,
    open_rewards,
)
from grpo_jax.stages.exploration import (
    Collected,
    Drawn,
    Stage,
    abstract_ahead,
    draw,
    draw_again,
    open_stage,
    start_telling,
)
from grpo_jax.stages.fused import Fused, train_fused
from grpo_jax.stages.policy import abstract
from grpo_jax.stages.preparation import Prepared, prepare
from grpo_jax.stages.programs import RLPrograms, compiled, critic_optimizer, rl_programs, rl_state
from grpo_jax.stages.refill import collect
from grpo_jax.stages.rollouts import keep_rollouts, step_metrics
from grpo_jax.stages.run import Run
from grpo_jax.stages.taken import step_counts
from grpo_jax.stages.tooling import in_rounds, tool_metrics
from grpo_jax.training.critic import with_critic
from grpo_jax.training.health import Health
from grpo_jax.training.interrupt import Interrupted
from grpo_jax.training.optimizer import learning_rates, make_optimizer
from grpo_jax.training.state import abstract_copy, create_state
from grpo_jax.types import TrainState

__all__ = ["prepare", "train"]

Evaluate = Callable[[Any], dict[str, float] | None]


def train(run: Run, initial: Callable[[], Any], prepared: Prepared, evaluate: Evaluate | None = None) -> Any:
    """Reinforce a policy from where the stage stands; returns the trained parameters: all, or the adapters.

    `initial()` loads them to begin with, `evaluate(policy)` gives held-out metrics for the log.
    """
    c: RLConfig = run.config.rl
    continuation = open_continuation(run, prepared.rewards)
    total, data = c.iterations * c.max_steps, prepared.data
    updates_in_all = total * c.num_iterations
    optimizer = make_optimizer(c.optimizer, updates_in_all)
    programs, health = open_programs(run, prepared.algorithm, optimizer)
    rates = learning_rates(c.optimizer, updates_in_all)

    with run.checkpoints("rl", c.save_total_limit) as checkpoints:
        state, reference, resumed, start = begin(run, programs, prepared, checkpoints, optimizer, initial)
        drop_rollouts_after(run.stage("rl"), start)
        with (
            open_stage(run, *prepared[:3], programs, total, start) as stage,
            run.metrics_log("rl") as log,
            Progress("rl", total=total, start=start) as progress,
        ):
            stage = open_rewards(stage, start)  # the only one to hold the weights of reward models
            log.truncate_after(start)
            if start and not told(log.path, start, "eval/"):  # stopped in the middle of an evaluation
                look(stage, state, start, evaluate, log, progress)
            if c.fused_steps:  # what follows, several steps at once
                fused = Fused(stage, optimizer, data, health, lambda *now: look(stage, *now, evaluate, log, progress))
                state, start = train_fused(fused, state, reference, start, checkpoints, log, progress), total
            ahead = deque([draw_again(stage, **resumed, step=start)] if resumed else [])
            for step in range(start, total):  # lines 2 and 4
                if step % c.max_steps == 0:
                    if continuation and step:
                        checkpoints.save(step, to_save(stage, state, reference), run.kept(checkpoints, step, data))
                        stage = close_rewards(stage)  # their weights make room for what line 12 needs
                        stage = go_on_learning(stage, continuation, state, step, log, progress)  # 12, of the one before
                    reference = refresh(stage, state, step)  # 3
                draw_ahead(stage, state, reference, ahead, step)  # 5, 7, if that is not done yet
                drawn = ahead.popleft()
                saved, asked = to_save(stage, state, reference, drawn), run.interruption.ask()
                with run.keeping(checkpoints, step, saved, data), contextlib.suppress(Interrupted):
                    batch = collect(stage, state, reference, drawn, progress)  # 6, 8, 9
                run.leave_if_asked(checkpoints, step, total, saved, data, asked)
                state, reference, updates, batch = improve(stage, state, reference, batch, step)  # 10, 11
                asked = run.interruption.ask()  # here: behind the completions to come it would wait for them
                if (step + 1) % c.max_steps or c.steps_off_policy:  # else lines 12 and 3 come first
                    with contextlib.suppress(Interrupted):  # by a tool's rounds: this step is finished and saved first
                        draw_ahead(stage, state, reference, ahead, step + 1)  # 5, 7 to come, while the host writes
                done, saved = step + 1, to_save(stage, state, reference, *ahead)
                batch, metrics = measure(stage, drawn, batch, updates, progress)
                metrics |= {"learning_rate": rates[done * c.num_iterations - 1], "compiles": compiled(*programs)}
                logged = record(stage, log, done, total, metrics, batch)
                with run.keeping(checkpoints, done, saved, data):
                    health.check(done, metrics)  # after the log, which shows what was wrong
                look(stage, state, done, evaluate, log, progress)
                with progress.phase("save"), stage.timeline.span(LOOP, "save", done):
                    run.save_if_due(checkpoints, c, done, total, saved, data, asked)
                progress.advance(metrics if logged else None)
    run.finish("rl", total)
    return state.params


def open_programs(run: Run, algorithm: Algorithm, optimizer: Any) -> tuple[RLPrograms, Health]:
    """What runs on the devices, compiled when it is first needed, and what stops the run."""
    c: RLConfig = run.config.rl
    sampling = run.sampling(c.sampling, c.num_generations, decode_rows=c.decode_rows, weights=c.rollout_weights)
    params = abstract(run.model.config, run.mesh)
    programs = in_rounds(run, rl_programs(run.model, c, sampling, algorithm, optimizer, params), sampling)
    return programs, health_of(c, sampling, algorithm)


def health_of(c: RLConfig, sampling: Sampling, algorithm: Algorithm) -> Health:
    """What stops the run; sampler and trainer are compared where they have one distribution."""
    compared = sampling.distribution.full_support and algorithm.sampler != "data"
    return Health(c.max_skipped_steps, c.max_logprob_gap if compared else None, corrected=c.rollout_weights != "same")


def begin(
    run: Run,
    programs: RLPrograms,
    prepared: Prepared,
    checkpoints: Any,
    optimizer: Any,
    initial: Callable[[], Any],
) -> tuple[TrainState, Any, dict[str, Any] | None, int]:
    """State, reference, what was sampled ahead, and the step to go on from: a checkpoint's, or line 1 of the algorithm.

    The state's arrays are donated to each update, those of `initial()` among them.
    """
    c, algorithm = run.config.rl, prepared.algorithm
    state = rl_state(run.model, c, algorithm, optimizer, abstract(run.model.config, run.mesh))
    kept = {"state": state, "reference": abstract_copy(programs.freeze, state.params)}
    resumed, start = run.restore(checkpoints, lambda step: kept | abstract_ahead(run, step), prepared.data)
    if resumed:
        return resumed["state"], resumed["reference"], resumed.get("ahead"), start
    state = create_state(initial(), optimizer, run.config.seed, run.mesh)
    if algorithm.critic is not None:
        values = value_model(run.model.config)
        state = with_critic(state, values, critic_optimizer(c, algorithm), run.config.seed, run.mesh)
    return state, None, None, 0


def draw_ahead(stage: Stage, state: TrainState, reference: Any, ahead: deque[Drawn], step: int) -> None:
    """Start to sample the steps that are to be sampled from the policy before update `step`, if there are so many.

    That is the step itself, and one step off policy the next as well: at each update it has one step more in hand.
    """
    c = stage.run.config.rl
    for later in range(step + len(ahead), min(step + 1 + c.steps_off_policy, c.iterations * c.max_steps)):
        ahead.append(draw(stage, state, reference, later))


def to_save(stage: Stage, state: TrainState, reference: Any, *ahead: Drawn) -> dict[str, Any]:
    """All that a run needs to go on: of what was sampled ahead only what can no longer be sampled again."""
    kept = {"state": state, "reference": reference}
    if stage.run.config.rl.steps_off_policy and ahead:  # the weights of the first are gone
        kept |= {"ahead": {"rollout": stage.programs.join(ahead[0].parts), "gap": ahead[0].gap}}
    return kept


def record(
    stage: Stage, log: MetricsWriter, done: int, total: int, metrics: Mapping[str, Any], batch: Collected
) -> bool:
    """Write the metrics and the rollouts of a step where they are due; returns whether a line was written."""
    run, c = stage.run, stage.run.config.rl
    logged = done % c.logging_steps == 0 or done == total
    with stage.timeline.span(LOOP, "write", done):
        if logged:
            log.write(done, metrics | run.ledger.totals("rl"))
        if c.rollout_steps and ((done - 1) % c.rollout_steps == 0 or done == total):
            keep_rollouts(run, done, stage.problems, *batch[:5])
    return logged


def look(
    stage: Stage, state: TrainState, step: int, evaluate: Evaluate | None, log: MetricsWriter, progress: Progress
) -> None:
    """Evaluate on held-out problems where it is due, in a line of metrics of its own.

    A signal breaks it off; the step is then saved, and the evaluation made when the run goes on.
    """
    every = stage.run.config.rl.eval_steps
    if evaluate and every and step % every == 0:
        with progress.phase("evaluate"), stage.timeline.span(ASIDE, "evaluate", step + 1):
            numbers = evaluate(stage.run.policy(state.params))
        if numbers:
            log.write(step, numbers | stage.run.ledger.totals("rl"))


def refresh(stage: Stage, state: TrainState, step: int) -> Any:
    """Line 3 before a step: the reference becomes the policy."""
    stage.events.write(3, step + 1)
    return stage.programs.freeze(state.params)


def go_on_learning(
    stage: Stage, continuation: Continuation, state: TrainState, step: int, log: MetricsWriter, progress: Progress
) -> Stage:
    """Line 12 between two iterations, after so many steps; the stage then has rewards by the new model."""
    aside = stage.timeline.span(ASIDE, "reward model", step + 1)
    paused = stage.run.ledger.paused("rl")  # what it takes is counted in a ledger of its own
    with progress.phase("reward model"), progress.paused(), paused, aside:
        stage, numbers = continue_reward_model(stage, continuation, state, step)
    known = told(log.path, step, "reward_model/")  # of a run that was stopped just after
    if numbers and not known:
        log.write(step, numbers | stage.run.ledger.totals("rl"))
    return stage


def told(path: Path, step: int, prefix: str) -> bool:
    """Whether the log has numbers of a step whose names begin so."""
    lines = read_metrics(path) if path.is_file() else []
    return bool(agree(any(line["step"] == step and any(key.startswith(prefix) for key in line) for line in lines)))


def improve(
    stage: Stage, state: TrainState, reference: Any, batch: Collected, step: int
) -> tuple[TrainState, Any, list[dict[str, Any]], Collected]:
    """Start the updates on one batch: lines 10 and 11; their metrics are on the devices yet.

    The reference follows where it is to, for the batches to come. What is told of the batch is then on its way to the
    host, before the next completions are started.
    """
    timeline, updates, c = stage.timeline, [], stage.run.config.rl
    with timeline.span(LOOP, "start update", step + 1):
        for u in range(c.num_iterations):
            stage.events.write(11, step + 1)
            # what is watched is not given to the next update to overwrite
            update = partial(stage.programs.update, frozen=stage.run.frozen)
            state, metrics = timeline.run("update", step + 1, update, state, batch.experience, of=itemgetter(1))
            updates.append(metrics)
            if c.sync_ref_model and (step * c.num_iterations + u + 1) % c.ref_model_sync_steps == 0:
                stage.events.write(3, step + 1, alpha=c.ref_model_mixup_alpha)
                reference = stage.programs.mix(reference, state.params)
    return state, reference, updates, start_telling(batch)


def measure(
    stage: Stage, drawn: Drawn, batch: Collected, updates: Sequence[Any], progress: Progress
) -> tuple[Collected, dict[str, float]]:
    """Wait for the end of a step, and count it; the batch with its rewards on the host, and the step's metrics."""
    with progress.phase("train"), stage.timeline.wait():
        updates = jax.device_get(updates)
    batch = batch._replace(judged=batch.judged.on_host())
    waited = stage.timeline.finish(drawn.step + 1)
    metrics = step_metrics(batch.rollout, batch.judged, updates, progress.seconds, waited)
    metrics |= jax.device_get({**drawn.gap, **batch.numbers}) | tool_metrics(batch.uses)
    stage.run.ledger.count("rl", **step_counts(stage.run.config.rl, stage.algorithm, metrics, batch.uses))
    return batch, metrics
