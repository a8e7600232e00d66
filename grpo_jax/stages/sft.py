"""Supervised fine-tuning: demonstrations, packed into rows, maximum likelihood of the completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from grpo_jax.config import SFTConfig
from grpo_jax.data.demonstrations import Example, demonstrations, fit
from grpo_jax.data.packing import PackingPlan, packed_batch
from grpo_jax.models.attention import chosen
from grpo_jax.reporting.progress import Progress
from grpo_jax.stages.policy import abstract
from grpo_jax.stages.programs import compiled, sft_program
from grpo_jax.stages.run import Run
from grpo_jax.stages.sources import read_source, source_record
from grpo_jax.training.health import Health
from grpo_jax.training.optimizer import learning_rate_at, make_optimizer
from grpo_jax.training.state import abstract_state, create_state
from grpo_jax.training.step import MicrobatchError


class Prepared(NamedTuple):
    """What the stage needs from outside, read and checked before device memory is taken."""

    examples: list[Example]
    plan: PackingPlan
    data: dict[str, Any]  # what a checkpoint keeps of the source


def prepare(run: Run) -> Prepared:
    """Read the demonstrations, apply the policy on long ones, and plan which example is in which row."""
    c: SFTConfig = run.config.sft
    run.check_batch("sft.batch_size", c.batch_size)
    run.check_length("sft.max_length", c.max_length)
    if c.batch_size % c.microbatches:
        raise MicrobatchError(
            f"sft.microbatches: {c.batch_size} rows cannot be cut into {c.microbatches} equal parts; "
            f"choose a divisor of sft.batch_size"
        )
    run.check_batch(f"each of {c.microbatches} sft.microbatches", c.batch_size // c.microbatches)
    problems = read_source(run, c.source)
    examples = demonstrations(problems, run.config.prompt, run.tokenizer, run.eos_ids)
    examples = fit(examples, c.max_length, c.overlong_examples, run.note)
    plan = PackingPlan(
        [len(example.tokens) for example in examples],
        max_length=c.max_length,
        batch_size=c.batch_size,
        seed=run.config.seed,
        packing=c.packing,
    )
    run.note(
        f"sft: {len(examples)} examples, {c.batch_size} rows of {c.max_length} tokens a step "
        f"({plan.fill(0):.0%} filled) in {c.microbatches} micro-batch(es), {c.head_chunk} time steps of logits "
        f"at once, attention by {chosen(run.model.config, c.max_length)}, {c.max_steps} steps"
    )
    return Prepared(examples, plan, source_record(problems))


def train(run: Run, initial: Callable[[], Any], prepared: Prepared) -> Any:
    """Fine-tune a policy from where the stage stands; `initial()` loads what is trained, all weights or adapters.

    Returns the same, trained.
    """
    c: SFTConfig = run.config.sft
    params = abstract(run.model.config, run.mesh)
    optimizer = make_optimizer(c.optimizer, c.max_steps)
    update = sft_program(run.model, c, optimizer, params)
    health = Health()

    def rows(step: int) -> Any:
        return run.place(packed_batch(prepared.examples, prepared.plan, step, run.pad_id))

    with run.checkpoints("sft", c.save_total_limit) as checkpoints:
        saved = {"state": abstract_state(params, optimizer, run.mesh)}
        resumed, start = run.restore(checkpoints, lambda step: saved, prepared.data)
        # From here on the state's arrays are donated to each update, those of `initial()` among them.
        state = resumed["state"] if resumed else create_state(initial(), optimizer, run.config.seed, run.mesh)
        del resumed
        with (
            run.metrics_log("sft") as log,
            Progress("sft", total=c.max_steps, start=start) as progress,
        ):
            log.truncate_after(start)
            batch = rows(start) if start < c.max_steps else None
            for step in range(start, c.max_steps):
                done = step + 1
                with progress.phase("compile" if step == start else "train"):
                    state, metrics = update(state, *batch, frozen=run.frozen)
                    batch = rows(done) if done < c.max_steps else None  # while the devices work
                    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
                metrics |= {
                    "learning_rate": learning_rate_at(c.optimizer, c.max_steps, step),
                    "tokens_per_sec": metrics["num_tokens"] / sum(progress.seconds.values()),
                    "compiles": compiled(update),
                }
                taken = {"trained_tokens": metrics["num_tokens"], "optimizer_steps": 1 - metrics["skipped_updates"]}
                run.ledger.count("sft", **taken)
                metrics |= run.ledger.totals("sft")
                logged = done % c.logging_steps == 0 or done == c.max_steps
                if logged:
                    log.write(done, metrics)
                health.check(done, metrics)  # after the log, which shows what was wrong
                with progress.phase("save"):
                    run.save_if_due(checkpoints, c, done, c.max_steps, {"state": state}, prepared.data)
                progress.advance(metrics if logged else None)
    run.finish("sft", c.max_steps)
    return state.params
