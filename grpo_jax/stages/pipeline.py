"""A pipeline: the sections of the config in their order, each from the weights of the one before."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from grpo_jax.config import Config
from grpo_jax.configure import Command, check_resume, dump
from grpo_jax.reporting.environment import write_environment
from grpo_jax.reporting.files import is_primary, write_atomically
from grpo_jax.reporting.progress import table
from grpo_jax.reporting.report import write_report
from grpo_jax.rewards.workers import Workers
from grpo_jax.sharding import make_mesh
from grpo_jax.stages import evaluation, rl, sft
from grpo_jax.stages.policy import (
    abstract,
    completion_ends,
    export,
    initial_params,
    open_decoder,
    open_tokenizer,
)
from grpo_jax.stages.run import Run
from grpo_jax.training.interrupt import Interruption

TRAINING = {"sft": sft, "rl": rl}


def run(command: Command, workers: Workers) -> None:
    """Run the sections that are present (or those of `--only`) and not finished; write the report in any case."""
    with Interruption() as interruption:
        this = open_run(command.config, workers, interruption)
        wanted = command.only or tuple(s for s in ("sft", "rl", "evaluation") if getattr(this.config, s))
        with contextlib.ExitStack() as at_exit, jax.set_mesh(this.mesh):
            at_exit.callback(report, this)
            run_sections(this, wanted)


def open_run(config: Config, workers: Workers, interruption: Interruption) -> Run:
    """Open the output directory and everything that can be checked without device memory."""
    directory = Path(config.output_dir).absolute()
    settle_config(directory, config)
    mesh = make_mesh(config.mesh)
    notes = print if is_primary() else lambda message: None
    tokenizer = open_tokenizer(config, notes)
    model = open_decoder(config, tokenizer)
    abstract(model.config, mesh)
    if is_primary():
        tokenizer.save_pretrained(directory / "tokenizer")
        write_environment(directory / "environment.json")
    return Run(
        config=config,
        directory=directory,
        mesh=mesh,
        model=model,
        tokenizer=tokenizer,
        eos_ids=completion_ends(config, tokenizer),
        pad_id=tokenizer.pad_token_id,
        workers=workers,
        interruption=interruption,
    )


def settle_config(directory: Path, config: Config) -> None:
    """Keep the config beside the results, after comparing it with the one that is there.

    Raises `ConfigError` with the differences if a started stage was computed with other settings.
    """
    saved = directory / "config.yaml"
    started = [stage for stage in TRAINING if (directory / stage).exists()]
    if (directory / "evaluation").exists():
        started.append("evaluation")
    for line in check_resume(saved, config, started=started):
        print(f"changed since the run was started: {line}")
    if is_primary():
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(saved, dump(config))


def run_sections(run: Run, wanted: Collection[str]) -> None:
    """Prepare all that will run (so that bad input is refused first), then train and evaluate in order."""
    present = [stage for stage in TRAINING if getattr(run.config, stage)]
    unfinished = [stage for stage in present if stage in wanted and run.finished_step(stage) is None]
    prepared = {stage: TRAINING[stage].prepare(run) for stage in unfinished}
    evaluator = None
    if run.config.evaluation and ("evaluation" in wanted or (run.config.rl and run.config.rl.eval_steps)):
        evaluator = evaluation.prepare(run)
    weights = Weights(run)
    for stage in present:
        if stage == "rl" and evaluator and "evaluation" in wanted:
            evaluate_once(run, evaluator, weights, "before")
        if stage in prepared:
            run.note(f"{stage}: starts from {weights.origin}")
            extra = {"evaluate": evaluation.in_loop(evaluator)} if stage == "rl" and evaluator else {}
            weights.take(stage, TRAINING[stage].train(run, weights.params(), prepared[stage], **extra))
        elif run.finished_step(stage) is not None:
            run.note(f"{stage}: finished before, step {run.finished_step(stage)}")
            weights.take(stage)
        else:
            run.note(f"{stage}: not asked for, and not finished before: left out")
    if evaluator and "evaluation" in wanted:
        evaluate_once(run, evaluator, weights, "after" if run.config.rl else "policy")
        show_evaluations(run)
    if present and all(run.finished_step(stage) is not None for stage in present):
        run.note(f"policy: {run.directory / 'hf'} (a Hugging Face directory)")
        export(weights.params(), run.model.config, run.tokenizer, run.eos_ids, run.directory / "hf")


class Weights:
    """The weights at the present point of the pipeline, loaded when they are first needed."""

    def __init__(self, run: Run):
        self.run, self.stage, self._params = run, None, None

    @property
    def origin(self) -> str:
        """Where they come from, in words."""
        if self.stage:
            return f"{self.stage}, step {self.run.finished_step(self.stage)}"
        return self.run.config.model.model_name_or_path or "random weights"

    def take(self, stage: str, params: Any = None) -> None:
        """Go on to the result of a stage, which may be at hand."""
        self.stage, self._params = stage, params

    def params(self) -> Any:
        """The weights on the mesh."""
        run = self.run
        if self._params is None and self.stage is None:
            self._params = initial_params(run.config, run.model.config, run.mesh)
        elif self._params is None:
            with run.checkpoints(self.stage) as checkpoints:
                self._params = checkpoints.restore_params(
                    run.finished_step(self.stage), abstract(run.model.config, run.mesh)
                )
        params = self._params
        return params


def evaluate_once(run: Run, evaluator: evaluation.Evaluator, weights: Weights, name: str) -> None:
    """Evaluate the present weights unless it was done before."""
    if evaluation.read_result(run, name) is None:
        evaluation.run_evaluation(evaluator, weights.params(), name, weights.origin)


def show_evaluations(run: Run) -> None:
    """Print the table of before and after."""
    results = [evaluation.read_result(run, name) for name in ("before", "after", "policy")]
    table([result for result in results if result])


def report(run: Run) -> None:
    """Write report.html, whatever has been reached, and say where it lies."""
    if is_primary():
        run.note(f"report: {write_report(run.directory)}")
