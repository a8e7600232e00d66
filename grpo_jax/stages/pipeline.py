"""A pipeline: the sections of the config in their order, each from the weights of the one before."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from grpo_jax.config import Config
from grpo_jax.configure import Command, ConfigError, check_resume, dump
from grpo_jax.configure.documents import read
from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.fingerprint import params_fingerprint
from grpo_jax.reporting.environment import write_environment
from grpo_jax.reporting.files import is_primary, write_atomically
from grpo_jax.reporting.progress import table
from grpo_jax.reporting.report import write_report
from grpo_jax.rewards.workers import Workers
from grpo_jax.sharding import agree, make_mesh
from grpo_jax.stages import evaluation, label, learned, reward_model, rl, sft
from grpo_jax.stages.budget import choose, device_memory, left_open, remembered
from grpo_jax.stages.footprints import open_plant
from grpo_jax.stages.policy import (
    abstract,
    base_record,
    check_weights,
    completion_ends,
    describe_adapters,
    export_adapters,
    export_weights,
    initial_params,
    open_decoder,
    open_tokenizer,
    read_decoder_config,
)
from grpo_jax.stages.run import Run
from grpo_jax.stages.shared_disk import check_shared_disk
from grpo_jax.stages.tooling import open_tools
from grpo_jax.training.interrupt import Interruption
from grpo_jax.training.manifest import CheckpointError
from grpo_jax.training.storage import LOCK, claimed

TRAINING = {"sft": sft, "rl": rl}  # the stages that train the policy
# All in their order; those that are not in TRAINING leave the policy as it is.
STAGES = {"sft": sft, "label": label, "reward_model": reward_model, "rl": rl}
EXPORTS = "exports.json"


def run(command: Command, workers: Workers) -> None:
    """Run the sections that are present (or those of `--only`) and not finished; write the report in any case."""
    directory = Path(command.config.output_dir).absolute()
    with Interruption() as interruption, contextlib.ExitStack() as at_exit:
        if is_primary():
            at_exit.enter_context(claimed(directory))
        check_shared_disk(directory)  # on which rests what follows
        config = remember(directory, command.config)
        check_config(directory, config)
        wanted = command.only or tuple(s for s in (*STAGES, "evaluation") if getattr(config, s))
        this = open_run(config, directory, workers, interruption, wanted)
        at_exit.enter_context(jax.set_mesh(this.mesh))
        tools, records = at_exit.enter_context(open_tools(this.config, wanted))
        this = dataclasses.replace(this, tools=tools)
        prepared = prepare_sections(this, wanted)
        keep_settings(this, records)
        at_exit.callback(report, this)
        run_sections(this, wanted, prepared)


def open_run(
    config: Config,
    directory: Path,
    workers: Workers,
    interruption: Interruption,
    wanted: Collection[str] = tuple(STAGES),
) -> Run:
    """Open everything that can be checked without device memory; nothing is written yet.

    Of the stages that are not `wanted`, sizes that were left open stay so: they may fit on another machine.
    """
    mesh = make_mesh(config.mesh)
    notes = print if is_primary() else lambda message: None
    decoder_config = read_decoder_config(config)  # refuses directories that bring code, before anything is loaded
    tokenizer = open_tokenizer(config, notes)
    model = open_decoder(config, tokenizer, decoder_config)
    check_weights(config, model.config, mesh)
    if model.config.lora:
        notes(describe_adapters(model.config))
    return Run(
        config=with_sizes(config, model.config, mesh, wanted) if left_open(config) else config,
        directory=directory,
        mesh=mesh,
        model=model,
        tokenizer=tokenizer,
        eos_ids=completion_ends(config, tokenizer),
        pad_id=tokenizer.pad_token_id,
        workers=workers,
        interruption=interruption,
        base=base_record(config, model.config),
    )


def with_sizes(config: Config, decoder: DecoderConfig, mesh: jax.sharding.Mesh, wanted: Collection[str]) -> Config:
    """The config with what it leaves open for the wanted stages chosen by the memory of this machine's devices."""
    return choose(open_plant(config, decoder, mesh), device_memory(), stages=wanted)


def remember(directory: Path, config: Config) -> Config:
    """The config with the sizes that were left to the run, as it chose them when it was started (`budget.py`)."""
    saved, started = directory / "config.yaml", started_stages(directory)
    return remembered(config, read(saved).tree, started) if started and saved.is_file() else config


def started_stages(directory: Path) -> list[str]:
    """The stages that have left something in an output directory, were it only a line of metrics."""
    files = {stage: (directory / stage).rglob("*") for stage in (*STAGES, "evaluation")}
    return [stage for stage in files if any(p.is_file() and p.name != LOCK for p in files[stage])]


def check_config(directory: Path, config: Config) -> None:
    """Compare the config with the one that the run was started with, and say what has changed.

    Raises `ConfigError` with the differences if a started stage was computed with other settings.
    """
    started = started_stages(directory)
    changed = check_resume(directory / "config.yaml", config, started=started) if started else []
    for line in changed if is_primary() else []:
        print(f"changed since the run was started: {line}")


def keep_settings(run: Run, tools: Mapping[str, Any]) -> None:
    """Write what the run is made of beside its results; `tools` is what those of the sections say of themselves."""
    if is_primary():
        write_atomically(run.directory / "config.yaml", dump(run.config))
        run.tokenizer.save_pretrained(run.directory / "tokenizer")
        write_environment(run.directory / "environment.json", **({"tools": tools} if tools else {}))


def prepare_sections(run: Run, wanted: Collection[str]) -> dict[str, Any]:
    """Read and check what the wanted sections that are not finished need, so that bad input is refused first."""
    c = run.config
    check_order(run, wanted)
    prepared = {
        stage: section.prepare(run)
        for stage, section in STAGES.items()
        if getattr(c, stage) and stage in wanted and run.finished_step(stage) is None
    }
    if c.evaluation and ("evaluation" in wanted or ("rl" in prepared and c.rl.eval_steps)):
        prepared["evaluation"] = evaluation.prepare(run)
    return prepared


def check_order(run: Run, wanted: Collection[str]) -> None:
    """Refuse `--only` with a section whose weights come from one that is neither wanted nor finished: `ConfigError`."""
    c, only = run.config, f"--only {','.join(wanted)}"
    if c.sft and "sft" not in wanted and run.finished_step("sft") is None:
        raise ConfigError(
            f"{only}: sft comes first and is not finished; add it to --only, or take the section out of the config"
        )
    labelled = "label" in wanted or run.finished_step("label") is not None
    if c.reward_model and c.reward_model.labels is None and "reward_model" in wanted and not labelled:
        raise ConfigError(
            f"{only}: reward_model learns from what label writes, which is not finished; add label to --only, or give "
            "reward_model.labels"
        )
    own = [reward for reward in (c.rl.rewards if c.rl else ()) if reward.kind == "learned" and reward.path is None]
    trained = "reward_model" in wanted or run.finished_step("reward_model") is not None
    if own and c.reward_model and "rl" in wanted and not trained:
        raise ConfigError(
            f"{only}: rl asks the reward model of this run, which is not finished; add reward_model to --only, or give "
            "the reward `learned` a path"
        )


def run_sections(run: Run, wanted: Collection[str], prepared: Mapping[str, Any]) -> None:
    """Train and evaluate in the order of the pipeline."""
    present = [stage for stage in STAGES if getattr(run.config, stage)]
    evaluator = prepared.get("evaluation")
    weights = Weights(run)
    for stage in present:
        run.stop_if_asked(f"before {stage}")
        if stage == "rl" and evaluator and "evaluation" in wanted:
            evaluate_once(run, evaluator, weights, "before")
        if stage in prepared:
            run.note(f"{stage}: starts from {weights.origin}")
            extra = {"evaluate": evaluation.in_loop(evaluator)} if stage == "rl" and evaluator else {}
            result = STAGES[stage].train(run, starting(run, stage, weights), prepared[stage], **extra)
            if stage in TRAINING:
                weights.take(stage, result)
        elif run.finished_step(stage) is not None:
            run.note(f"{stage}: finished before, step {run.finished_step(stage)}")
            if stage in TRAINING:
                weights.take(stage)
        else:
            run.note(f"{stage}: not asked for, and not finished before: left out")
    if evaluator and "evaluation" in wanted:
        if weights.stage == "rl" or not run.config.rl:
            evaluate_once(run, evaluator, weights, "after" if run.config.rl else "policy")
        show_evaluations(run)
    if weights.stage and all(run.finished_step(stage) is not None for stage in present):
        write_policy(run, weights)


def starting(run: Run, stage: str, weights: Weights) -> Callable[[], Any]:
    """The weights that a stage starts from, of which the ledger is told when they are asked for."""

    def params() -> Any:
        found = weights.params()
        start = {"name": weights.origin, "fingerprint": params_fingerprint(found)} | run.base
        models = learned.reward_models(run) if stage == "rl" else []
        run.ledger.tell(stage, starts_from=start, **({"reward_models": models} if models else {}))
        return found

    return params


def write_policy(run: Run, weights: Weights) -> None:
    """Write what was trained for other programs, once: a Hugging Face directory, or the adapters as PEFT's."""
    config, lora = run.model.config, run.model.config.lora
    origin = weights.origin
    path = export_path(run, weights, "adapter" if lora else "hf")
    if not agree(path.exists()):
        if lora:
            export_adapters(weights.params(), run.config, config, run.tokenizer, path)
        else:
            export_weights(weights.params(), config, run.tokenizer, run.eos_ids, path)
        if is_primary():
            write_atomically(run.directory / EXPORTS, json.dumps(exports(run) | {path.name: origin}) + "\n")
    of = f"a PEFT adapter of {run.config.model.model_name_or_path}" if lora else "a Hugging Face directory"
    run.note(f"policy: {path} ({of})")


def exports(run: Run) -> dict[str, str]:
    """The directories that were written for other programs, and the weights that each holds."""
    path = run.directory / EXPORTS
    return json.loads(path.read_text()) if path.is_file() else {}


def export_path(run: Run, weights: Weights, name: str) -> Path:
    """Where the present weights belong: under `name`, or beside it where that holds those of another stage or step."""
    stage, origin = f"{name}_{weights.stage}_{run.finished_step(weights.stage)}", weights.origin
    path = run.directory / name
    ours = not path.exists() or exports(run).get(name) == origin
    return path if agree(ours) else run.directory / stage


class Weights:
    """What is trained, all weights or adapters, at the present point of the pipeline; loaded when first needed."""

    def __init__(self, run: Run):
        self.run, self.stage, self._params = run, None, None

    @property
    def origin(self) -> str:
        """Where they come from, in words."""
        if self.stage:
            return f"{self.stage}, step {self.run.finished_step(self.stage)}"
        model = self.run.config.model
        adapter = model.lora and model.lora.adapter_name_or_path
        name = model.model_name_or_path or "random weights"
        return f"{adapter} on {name}" if adapter else name

    def take(self, stage: str, params: Any = None) -> None:
        """Go on to the result of a stage, which may be at hand."""
        self.stage, self._params = stage, params

    def params(self) -> Any:
        """They themselves, on the mesh."""
        run = self.run
        if self._params is None and self.stage is None:
            self._params = initial_params(run.config, run.model.config, run.mesh)
        elif self._params is None:
            self._params = self._finished(self.stage)
        return self._params

    def _finished(self, stage: str) -> Any:
        """The result of a stage that was finished before."""
        run, step = self.run, self.run.finished_step(stage)
        checkpoints = run.checkpoints(stage)
        run.check_base(checkpoints, step)
        try:
            with checkpoints:
                return checkpoints.restore_params(step, abstract(run.model.config, run.mesh))
        except CheckpointError as error:
            done = run.stage(stage) / "done.json"
            raise CheckpointError(
                f"{error}; bring it back as it was, or delete {done} to train again from the newest good checkpoint"
            ) from error


def evaluate_once(run: Run, evaluator: evaluation.Evaluator, weights: Weights, name: str) -> None:
    """Evaluate the present weights, unless the result that is there is of just these."""
    path, origin = evaluation.result_path(run, name), weights.origin  # an origin is asked of all processes at once
    known = path.is_file() and json.loads(path.read_text())["title"] == origin
    if not agree(known):
        evaluation.run_evaluation(evaluator, run.policy(weights.params()), name, origin)


def show_evaluations(run: Run) -> None:
    """Print the table of before and after."""
    if is_primary():
        paths = [evaluation.result_path(run, name) for name in ("before", "after", "policy")]
        table([json.loads(path.read_text()) for path in paths if path.is_file()])


def report(run: Run) -> None:
    """Write report.html, whatever has been reached, and say where it lies; a report that fails stops nothing."""
    if is_primary() and started_stages(run.directory):
        try:
            run.note(f"report: {write_report(run.directory)}")
        except (OSError, ValueError) as error:  # the run's own end, and its exit code, matter more
            run.note(f"report: could not be written: {error}")
