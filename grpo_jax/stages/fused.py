"""The RL stage with fused steps: a chunk of steps is one program, and the host reads the numbers of all of them after.

The same algorithm as the loop of `rl.py`, with the same tokens and, up to rounding, the same numbers. What needs the
host ends a chunk: a checkpoint, an evaluation, a new reference, a signal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from grpo_jax.config import RLConfig
from grpo_jax.data.order import distinct_indices
from grpo_jax.data.prompts import encode_prompts
from grpo_jax.reporting.metrics import MetricsWriter
from grpo_jax.reporting.progress import Progress
from grpo_jax.rewards.reward import Encoding, Reward, RewardError
from grpo_jax.sharding import global_to_host, host_to_global, named, start_to_host
from grpo_jax.stages.judging import Judged
from grpo_jax.stages.policy import abstract
from grpo_jax.stages.programs import compiled, fused_program
from grpo_jax.stages.rollouts import keep_rollouts, length_metrics, reward_metrics, update_metrics
from grpo_jax.stages.taken import step_counts
from grpo_jax.training.fused import Kept, Told
from grpo_jax.training.health import Health, RunHealthError
from grpo_jax.training.optimizer import learning_rates
from grpo_jax.types import Problem, TrainState

if TYPE_CHECKING:
    from grpo_jax.stages.exploration import Stage


class Fused(NamedTuple):
    """What the steps need and do not change."""

    stage: Stage
    optimizer: optax.GradientTransformation
    data: dict[str, Any]  # what a checkpoint keeps of the source
    health: Health
    look: Callable[[TrainState, int], None]  # evaluates after a step where that is due


class Batches(NamedTuple):
    """The problems of a chunk, by step, and their arrays [n, P, ...]; those after the chunk's end are not used."""

    indices: list[np.ndarray]
    prompts: Any
    columns: Any


def check_fused(c: RLConfig, rewards: Sequence[Reward]) -> None:
    """Refuse rewards that read text, where steps are to be fused."""
    text = [reward.name for reward in rewards if reward.array is None]
    if c.fused_steps and text:
        raise RewardError(
            f"rl.fused_steps is {c.fused_steps}, but reward {', '.join(text)} reads text on the host and has no array "
            "form; set rl.fused_steps to 0, or choose rewards with one: exact, length, or your own with Reward.array"
        )


def chunks(c: RLConfig, start: int) -> list[range]:
    """The steps from `start` on in chunks of at most `fused_steps`.

    A chunk ends where a checkpoint or an evaluation is due, and where an outer iteration ends.
    """
    total, result = c.iterations * c.max_steps, []
    while start < total:
        end = min(start + c.fused_steps, *(start - start % every + every for every in borders(c)))
        result.append(range(start, end))
        start = end
    return result


def borders(c: RLConfig) -> list[int]:
    """Of how many steps each multiple ends a chunk."""
    return [every for every in (c.save_steps, c.eval_steps, c.max_steps) if every]


def shown_steps(c: RLConfig, chunk: range) -> list[int]:
    """The steps of a chunk whose rollouts are kept for the report."""
    last = c.iterations * c.max_steps - 1
    return [step for step in chunk if c.rollout_steps and (step % c.rollout_steps == 0 or step == last)]


def num_slots(c: RLConfig) -> int:
    """The most rollouts that are kept of one chunk, wherever it begins."""
    if not c.rollout_steps:
        return 0
    return min(c.fused_steps, -(-c.fused_steps // c.rollout_steps) + 1)


def train_fused(
    fused: Fused,
    state: TrainState,
    reference: Any,
    start: int,
    checkpoints: Any,
    log: MetricsWriter,
    progress: Progress,
) -> TrainState:
    """Take the steps from `start` on; returns the last state. The state's arrays are donated.

    Where nothing is due at the end of a chunk, the next one starts before the host writes what it was told of this one.
    """
    stage, run, c = fused.stage, fused.stage.run, fused.stage.run.config.rl
    total, todo, program, running = c.iterations * c.max_steps, chunks(c, start), open_program(fused), None
    rates = learning_rates(c.optimizer, total * c.num_iterations)
    batches, since = prepare_batches(fused, todo[0]) if todo else None, time.monotonic()
    for chunk, following in zip(todo, [*todo[1:], None], strict=True):
        if running is None:
            with progress.phase("train"):
                reference = stage.programs.freeze(state.params) if chunk.start % c.max_steps == 0 else reference
                running = program(state, reference, *arguments(fused, chunk, batches), frozen=run.frozen)
        state, told, kept = running
        told, kept = start_to_host((told, kept))  # before the next chunk, or it would wait for that
        after = prepare_batches(fused, following) if following else None
        with progress.phase("train"):
            told = global_to_host(told)
        now = time.monotonic()
        common = {"time/step_s": (now - since) / len(chunk), "compiles": compiled(program, stage.programs.freeze)}
        alarm, since = first_alarm(fused, chunk, told), now
        due = is_due(fused, chunk.stop) or alarm is not None
        running = None if due else program(state, reference, *arguments(fused, following, after), frozen=run.frozen)
        metrics = write_lines(fused, chunk, told, common, rates, log)
        keep_chunk(fused, chunk, batches, told, kept)
        checkpoints.poll()  # a save that failed in the background is known within a chunk
        if due:
            saved = {"state": state, "reference": reference}
            with run.keeping(checkpoints, chunk.stop, saved, fused.data):
                if alarm is not None:
                    raise alarm
            fused.look(state, chunk.stop)
            with progress.phase("save"):
                run.save_if_due(checkpoints, c, chunk.stop, total, saved, fused.data)
            since = time.monotonic()
        progress.advance(metrics, steps=len(chunk))
        batches = after
    return state


def open_program(fused: Fused) -> Callable[..., Any]:
    """The program of a chunk, for the run's settings."""
    stage, c = fused.stage, fused.stage.run.config.rl
    params = abstract(stage.run.model.config, stage.run.mesh)
    programs, algorithm, rewards = stage.programs, stage.algorithm, stage.rewards
    return fused_program(
        programs, stage.run.model, c, algorithm, rewards, fused.optimizer, params, num_slots=num_slots(c)
    )


def is_due(fused: Fused, done: int) -> bool:
    """Whether the host needs the state after so many steps: to save, to evaluate, as a reference, to stop.

    On several hosts every process must ask at the same point.
    """
    run, c = fused.stage.run, fused.stage.run.config.rl
    return any(done % every == 0 for every in borders(c)) or run.interruption.requested_anywhere()


def first_alarm(fused: Fused, chunk: range, told: Told) -> RunHealthError | None:
    """What the first unhealthy step of a chunk would have stopped the run with."""
    try:
        for i, step in enumerate(chunk):
            fused.health.check(step + 1, updates_of(fused, at(told, i)))
    except RunHealthError as alarm:
        return alarm
    return None


def write_lines(
    fused: Fused, chunk: range, told: Told, common: Mapping[str, float], rates: np.ndarray, log: MetricsWriter
) -> dict[str, float] | None:
    """Count each step of a chunk, and write a line of metrics for those that are logged; returns the last one's."""
    stage, c, metrics = fused.stage, fused.stage.run.config.rl, None
    for i, step in enumerate(chunk):
        numbers = updates_of(fused, at(told, i)) | {"num_generated_tokens": int(told.lengths[i].sum())}
        stage.run.ledger.count("rl", **step_counts(c, stage.algorithm, numbers))
        if (step + 1) % c.logging_steps == 0 or step + 1 == c.iterations * c.max_steps:
            rate = {"learning_rate": rates[(step + 1) * c.num_iterations - 1]}
            metrics = step_numbers(fused, at(told, i)) | rate | common
            metrics["tokens_per_sec"] = float(told.lengths[i].sum() / max(common["time/step_s"], 1e-9))
            log.write(step + 1, metrics | stage.run.ledger.totals("rl"))
    return metrics


def prepare_batches(fused: Fused, chunk: range) -> Batches:
    """The prompts of a chunk, and what its rewards know of the problems: line 5 of the algorithm, for each step.

    Arrays have as many steps as a chunk can have, so that one program takes them all.
    """
    stage, run, c = fused.stage, fused.stage.run, fused.stage.run.config.rl
    seed, count = run.config.seed, len(stage.problems)
    indices = [distinct_indices(count, c.prompts_per_step, seed=seed, step=step) for step in chunk]
    encoding = run.encoding(c.sampling.max_completion_length)
    steps = []
    for chosen in indices:
        problems = {int(i): stage.problems[int(i)] for i in chosen}  # made once: a source may make them when asked
        known = [reward.columns and reward.columns(list(problems.values()), encoding) for reward in stage.rewards]
        steps.append((encode_prompts(problems, chosen, run.config.prompt, run.tokenizer), tuple(known)))
    steps += steps[:1] * (c.fused_steps - len(chunk))  # never looked at
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *steps)
    return Batches(indices, *host_to_global(stacked, named(run.mesh, None, "batch")))


def column_shapes(rewards: Sequence[Reward], c: RLConfig) -> tuple[Any, ...]:
    """What rewards know of the problems of a step, in shape: asked for problems that have a question and an answer.

    Raises `RewardError` if a reward wants to know more.
    """
    problems = [Problem(question="0", answer="0", solution="0")] * c.prompts_per_step
    encoding = Encoding(lambda text: [0], (0,), c.sampling.max_completion_length)
    try:
        return tuple(reward.columns and reward.columns(problems, encoding) for reward in rewards)
    except Exception as error:  # of a kind of the user's own
        raise RewardError(
            f"rewards: columns() failed on problems with a question and an answer only ({error!r}), so that the "
            "program's size is not known; set rl.fused_steps to 0 for the plan"
        ) from error


def arguments(fused: Fused, chunk: range, batches: Batches) -> tuple[Any, ...]:
    """What the program takes beside state and reference."""
    c = fused.stage.run.config.rl
    slots = np.full(c.fused_steps, num_slots(c), np.int32)
    for slot, step in enumerate(shown_steps(c, chunk)):
        slots[step - chunk.start] = slot
    return batches.prompts, batches.columns, np.int32(chunk.start), np.int32(len(chunk)), slots


def step_numbers(fused: Fused, told: Told) -> dict[str, float]:
    """The metrics of a step that come from its program."""
    return (
        reward_metrics(judged(fused, told))
        | length_metrics(told.lengths, told.finished, int(told.prompt_tokens))
        | updates_of(fused, told)
    )


def updates_of(fused: Fused, told: Told) -> dict[str, float]:
    """The metrics of the updates of a step."""
    return update_metrics([at(told.updates, u) for u in range(fused.stage.run.config.rl.num_iterations)])


def at(tree: Any, place: int) -> Any:
    """One place of the first axis of all arrays."""
    return jax.tree.map(lambda x: x[place], tree)


def judged(fused: Fused, told: Told) -> Judged:
    """The rewards of a step as its metrics and its rollouts show them."""
    parts = {reward.name: values for reward, values in zip(fused.stage.rewards, told.parts, strict=True)}
    return Judged(None, parts, told.outcome, {}, told.dead)


def keep_chunk(fused: Fused, chunk: range, batches: Batches, told: Told, kept: Kept) -> None:
    """Write the rollouts of the steps of a chunk that the report shows."""
    run, kept = fused.stage.run, global_to_host(kept)
    for slot, step in enumerate(shown_steps(run.config.rl, chunk)):
        i = step - chunk.start
        rollout, experience = at(kept, slot)
        of = judged(fused, at(told, i))
        keep_rollouts(
            run, step + 1, fused.stage.problems, batches.indices[i], rollout, run.texts(rollout), of, experience
        )
