"""The reward model: labelled solutions, packed into rows; a score for each step, each solution, or each of a pair.

It starts from the policy as it stands, or from a model of its own, and leaves the policy as it is. What it leaves:

    reward_model/model/               a Hugging Face directory: a sequence classifier, or a language model (two_token)
    reward_model/reward_model.json    how it is to be asked: supervision, head, tokens, tag, and of which tokenizer
    reward_model/held_out.json        its last measures on held-out solutions
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from grpo_jax.config import RewardModelConfig
from grpo_jax.configure import find, kind_class
from grpo_jax.data.encoding import encode
from grpo_jax.data.labelled import (
    LabelError,
    Labelled,
    Preference,
    Scored,
    Writing,
    fitting,
    hold_out,
    scored_examples,
    tokenizer_mark,
)
from grpo_jax.data.packing import PackingPlan
from grpo_jax.data.replay import with_replay
from grpo_jax.data.scored_rows import scored_rows
from grpo_jax.data.tokenizer import load_tokenizer
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.fingerprint import params_fingerprint
from grpo_jax.models.folder import find_folder
from grpo_jax.models.hf import read_config
from grpo_jax.models.parameters import abstract_params
from grpo_jax.models.scores import Candidates, with_score_head
from grpo_jax.reporting.files import is_primary, write_atomically
from grpo_jax.reporting.progress import Progress
from grpo_jax.sharding import agree, run_key
from grpo_jax.stages.convert_folder import check_model, head_of_files, load_model
from grpo_jax.stages.held_out import measure, measuring_program, opening
from grpo_jax.stages.learned import CARD, MODEL
from grpo_jax.stages.policy import decoder_options, export_weights
from grpo_jax.stages.programs import compiled, update_program
from grpo_jax.stages.run import Run
from grpo_jax.training.health import Health
from grpo_jax.training.optimizer import learning_rate_at, make_optimizer
from grpo_jax.training.scoring import ScoreBatch, bradley_terry, cross_entropy, scoring_step
from grpo_jax.training.state import abstract_state, create_state


class Continued(NamedTuple):
    """What makes the stage a part of reinforcement: line 12 of Algorithm 1."""

    iteration: int  # after which it comes, from 1
    old: tuple[Any, ...]  # labels of before, of which some are learnt again


class Prepared(NamedTuple):
    """What the stage needs from outside, checked before device memory is taken."""

    decoder: DecoderConfig  # of the reward model
    start: DecoderConfig | None  # of the model to start from; None: the policy
    candidates: Candidates | None
    writing: Writing
    continued: Continued | None = None  # None: a stage of its own
    section: str = "reward_model"  # of the settings, for what is said of them


class Programs(NamedTuple):
    """What runs on the devices, and the optimizer that is a part of it."""

    optimizer: optax.GradientTransformation
    update: Callable[..., Any]
    score: Callable[..., Any]


class Examples(NamedTuple):
    """The labelled solutions as tokens."""

    learnt: list[Scored]
    held_out: list[Scored]
    plan: PackingPlan
    data: dict[str, Any]  # what a checkpoint keeps of them


def prepare(run: Run) -> Prepared:
    """Check batch, tokens and the model to start from, and read the labels: what cannot work is refused here."""
    c: RewardModelConfig = run.config.reward_model
    run.check_batch("reward_model.batch_size", c.batch_size)
    run.check_batch(f"each of {c.microbatches} reward_model.microbatches", c.batch_size // c.microbatches)
    run.check_length("reward_model.max_length", c.max_length)
    tag = () if c.step_tag is None else tuple(encode(run.tokenizer, c.step_tag, continues=True))
    writing = Writing(run.config.prompt, run.tokenizer, run.eos_ids[0], tag)
    candidates = _candidates(c, run.tokenizer) if c.head == "two_token" else None
    start = None if c.model_name_or_path is None else _start(run, c)
    base = dataclasses.replace(run.model.config if start is None else start, lora=None)
    decoder = dataclasses.replace(base, head="scalar" if candidates is None else "lm")
    prepared = Prepared(decoder, start, candidates, writing)
    if c.labels is not None:
        read_examples(run, prepared, note=lambda message: None)
    return prepared


def read_examples(run: Run, prepared: Prepared, note: Callable[[str], None]) -> Examples:
    """The labelled solutions as tokens, what is learnt from and what is measured on."""
    c: RewardModelConfig = run.config.reward_model

    def examples(solutions: Sequence[Labelled | Preference]) -> list[Scored]:
        found = scored_examples(solutions, c.supervision, prepared.writing, target=c.target)
        return fitting(found, c.max_length, note, section=prepared.section)

    learnt, held_out = examples(read_labels(run, c.labels or own_labels(run))), []
    sources = prepared.continued.old if prepared.continued else (c.old_labels,) if c.old_labels else ()
    old = [example for labels in sources for example in examples(read_labels(run, labels))]
    if c.eval_labels is not None:
        held_out = examples(read_labels(run, c.eval_labels))
    elif c.held_out:
        learnt, held_out = hold_out(learnt, c.held_out, run.config.seed)
        old, _ = hold_out(old, c.held_out, run.config.seed)
    if not learnt:
        raise LabelError(
            f"{prepared.section}.held_out: {c.held_out} leaves none of {len(held_out)} solutions to learn from; "
            "lower it"
        )
    if sources:
        fresh, iteration = len(learnt), prepared.continued.iteration if prepared.continued else 0
        learnt = with_replay(learnt, old, share=c.replay, seed=run.config.seed, iteration=iteration)
        note(f"reward_model: {fresh} fresh solutions and {len(learnt) - fresh} of {len(old)} old ones")
    plan = PackingPlan(
        [len(example.tokens) for example in learnt],
        max_length=c.max_length,
        batch_size=c.batch_size,
        seed=run.config.seed,
        packing=c.packing,
    )
    labels = sum(int(example.mask.sum()) for example in learnt)
    note(
        f"reward_model: {c.supervision}, head {c.head}: {len(learnt)} solutions with {labels} labels to learn from, "
        f"{len(held_out)} held out; {c.batch_size} rows of {c.max_length} tokens a step ({plan.fill(0):.0%} filled) in "
        f"{c.microbatches} micro-batch(es), {c.max_steps} steps"
    )
    return Examples(learnt, held_out, plan, _record(learnt))


def read_labels(run: Run, labels: Any) -> Sequence[Labelled | Preference]:
    """The labelled solutions that a config names."""
    return find("data.labels", labels.kind).build(labels, run.config.seed)


def own_labels(run: Run) -> Any:
    """What the `label` stage of this run has written, as a source of labels."""
    return kind_class("data.labels", "steps")(path=str(run.stage("label") / "labels.jsonl"))


def open_programs(run: Run, prepared: Prepared) -> Programs:
    """The programs of the stage, for the settings of section `reward_model`; compiled when they are first needed."""
    c: RewardModelConfig = run.config.reward_model
    optimizer = make_optimizer(c.optimizer, c.max_steps)
    objective = bradley_terry if c.supervision == "preference" else cross_entropy
    form = {"model": Decoder(prepared.decoder), "candidates": prepared.candidates}
    step_of = partial(scoring_step, **form, objective=objective, optimizer=optimizer, microbatches=c.microbatches)
    update = update_program(step_of, optimizer, abstract_params(prepared.decoder, run.mesh))
    return Programs(optimizer, update, measuring_program(**form))


def train(run: Run, policy: Callable[[], Any], prepared: Prepared, programs: Programs | None = None) -> Any:
    """Train a reward model from where the stage stands; `policy()` loads the policy. Returns its own parameters.

    One that is continued is measured before its first update as well.
    """
    c: RewardModelConfig = run.config.reward_model
    examples = read_examples(run, prepared, run.note)
    optimizer, update, score = programs or open_programs(run, prepared)
    params = abstract_params(prepared.decoder, run.mesh)
    held_out = opening(run, examples.held_out, c.max_length, c.batch_size, score)
    health = Health()

    with run.checkpoints("reward_model", c.save_total_limit) as checkpoints:
        saved = {"state": abstract_state(params, optimizer, run.mesh)}
        resumed, start = run.restore(checkpoints, lambda step: saved, examples.data)
        state = resumed["state"] if resumed else None
        if state is None:
            state = create_state(initial(run, prepared, policy), optimizer, run.config.seed, run.mesh)
        del resumed
        with (
            run.metrics_log("reward_model") as log,
            Progress("reward_model", total=c.max_steps, start=start) as progress,
        ):
            log.truncate_after(start or -1)
            if prepared.continued and examples.held_out and not start:
                with progress.phase("evaluate"):
                    numbers = measure(held_out, state.params, c.supervision)
                log.write(0, eval_line(run, numbers))
            for step in range(start, c.max_steps):
                done = step + 1
                with progress.phase("compile" if step == start else "train"):
                    state, metrics = update(state, run.place(rows_of(examples, step, run.pad_id)))
                    metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
                metrics |= {
                    "learning_rate": learning_rate_at(c.optimizer, c.max_steps, step),
                    "tokens_per_sec": metrics["num_tokens"] / sum(progress.seconds.values()),
                    "compiles": compiled(update),
                }
                taken = {"trained_tokens": metrics["num_tokens"], "labels": metrics["num_labels"]}
                run.ledger.count("reward_model", optimizer_steps=1 - metrics["skipped_updates"], **taken)
                metrics |= run.ledger.totals("reward_model")
                logged = done % c.logging_steps == 0 or done == c.max_steps
                if logged:
                    log.write(done, metrics)
                health.check(done, metrics)  # after the log, which shows what was wrong
                if examples.held_out and (done == c.max_steps or (c.eval_steps and done % c.eval_steps == 0)):
                    with progress.phase("evaluate"):  # before the save: what is saved was measured
                        numbers = measure(held_out, state.params, c.supervision)
                    log.write(done, eval_line(run, numbers))
                with progress.phase("save"):
                    run.save_if_due(checkpoints, c, done, c.max_steps, {"state": state}, examples.data)
                progress.advance(metrics if logged else None)
    numbers = measure(held_out, state.params, c.supervision) if examples.held_out else {}
    keep(run, prepared, state.params, numbers)
    run.finish("reward_model", c.max_steps)
    return state.params


def eval_line(run: Run, numbers: dict[str, float]) -> dict[str, float]:
    """What was measured on held-out solutions, as a line of metrics."""
    return {f"eval/{name}": value for name, value in numbers.items()} | run.ledger.totals("reward_model")


def initial(run: Run, prepared: Prepared, policy: Callable[[], Any]) -> Any:
    """The parameters to start from: a trunk with a new score head, said so, or a whole model."""
    c: RewardModelConfig = run.config.reward_model
    start = prepared.start or run.model.config
    params = load_model(c.model_name_or_path, start, run.mesh) if prepared.start else policy()
    name = c.model_name_or_path or "the policy"
    if prepared.start:
        run.ledger.tell("reward_model", starts_from={"name": name, "fingerprint": params_fingerprint(params)})
    if start.head == prepared.decoder.head:
        run.note(f"reward_model: starts from {name}, its {start.head} head included")
        return jax.jit(lambda tree: jax.tree.map(lambda p: p + 0, tree))(params)
    run.note(f"reward_model: starts from the trunk of {name}; its language head is left out, the score head is new")
    return with_score_head(params, prepared.decoder, run_key(run.config.seed), run.mesh)


def keep(run: Run, prepared: Prepared, params: Any, measures: dict[str, float]) -> None:
    """Write the model, how it is to be asked, and its measures, for the reward `learned` and other programs."""
    c, stage = run.config.reward_model, run.stage("reward_model")
    card = {
        "supervision": c.supervision,
        "head": c.head,
        "candidates": prepared.candidates,
        "step_tag": prepared.writing.step_tag,
        "tokenizer": tokenizer_mark(run.tokenizer),
    }
    if not agree((stage / MODEL).exists()):
        ends = run.eos_ids
        export_weights(params, prepared.decoder, run.tokenizer, ends, stage / MODEL, dtype="float32")
    if is_primary():
        write_atomically(stage / "held_out.json", json.dumps(measures, indent=1) + "\n")
        write_atomically(stage / CARD, json.dumps(card, indent=1) + "\n")
    run.note(f"reward_model: {stage / MODEL}")
    if measures:
        run.note("reward_model, held out: " + ", ".join(f"{name} {value:.4g}" for name, value in measures.items()))


def rows_of(examples: Examples, step: int, pad: int) -> ScoreBatch:
    """The rows of a step, as host arrays."""
    plan = examples.plan
    return ScoreBatch(*scored_rows(examples.learnt, plan.rows(step), max_length=plan.max_length, pad=pad))


def _start(run: Run, c: RewardModelConfig) -> DecoderConfig:
    """The decoder of the model to start from; its tokenizer must be the run's."""
    name = c.model_name_or_path
    head = head_of_files(find_folder(name))
    start = read_config(name, **decoder_options(run.config), head=head)
    theirs = tokenizer_mark(load_tokenizer(name, lambda message: None, prompt_format="text"))
    if theirs != (mine := tokenizer_mark(run.tokenizer)):
        raise LabelError(
            f"reward_model.model_name_or_path: {name} is of tokenizer {theirs}, the run's is {mine}: the same ids "
            "would be other text; give a model of the run's tokenizer"
        )
    if head == "scalar" and c.head == "two_token":
        raise LabelError(f"reward_model.head: two_token needs a language model, and {name} has a scalar head")
    check_model(name, start, run.mesh)
    return start


def _candidates(c: RewardModelConfig, tokenizer: Any) -> Candidates:
    found = []
    for key in ("good_token", "bad_token"):
        ids = encode(tokenizer, getattr(c, key), continues=True)
        if len(ids) != 1:
            raise LabelError(
                f"reward_model.{key}: {getattr(c, key)!r} is {len(ids)} tokens for this tokenizer; give one token"
            )
        found.append(ids[0])
    return found[0], found[1]


def _record(examples: Sequence[Scored]) -> dict[str, Any]:
    """How many solutions, and a digest of their tokens and targets."""
    digest = hashlib.sha256()
    for example in examples:
        for array in (example.tokens, example.mask, example.targets, np.int32(example.second)):
            digest.update(array.tobytes())
    return {"problems": len(examples), "fingerprint": digest.hexdigest()[:16]}
