"""The policy that launch/evaluate.py measures: settings from a run, a model directory or a hub name; then its weights.

| MODEL | what it is |
|---|---|
| an output_dir of launch/train.py, or RUN/STAGE/checkpoints/STEP | that checkpoint, with the run's prompt |
| a directory made by `convert.py from-hf`, a Hugging Face directory, a hub name | its weights |
| scripted:FILE | completions from a file |
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.config import Config
from grpo_jax.configure import Command, ConfigError, resolve
from grpo_jax.configure.documents import Document, read
from grpo_jax.data.prompts import prompt_ids
from grpo_jax.evaluation.scripted import PREFIX
from grpo_jax.rewards.workers import Workers
from grpo_jax.stages.best import best_step
from grpo_jax.stages.convert_folder import is_converted, model_record, restore_as
from grpo_jax.stages.convert_source import choose_step, last_stage, locate
from grpo_jax.stages.evaluation import ask
from grpo_jax.stages.pipeline import TRAINING, open_run
from grpo_jax.stages.policy import abstract, initial_params
from grpo_jax.stages.rounds import Tool
from grpo_jax.stages.run import Run
from grpo_jax.training import manifest
from grpo_jax.training.checkpoint import Checkpoints
from grpo_jax.training.interrupt import Interruption
from grpo_jax.training.storage import entries

HELD_OUT = "held_out"  # the problems of a run's own section `evaluation`
ROWS = 512  # decoded at once, unless another batch is asked for
K = (1, 4, 8, 16, 32, 64)  # of figure 7 of arXiv:2402.03300
PADDING = 32  # prompts are padded to a multiple of it


class Checkpoint(NamedTuple):
    """A checkpoint of a run."""

    root: Path
    stage: str
    step: int

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.root / self.stage / "checkpoints"


class Asking(NamedTuple):
    """What is asked of a model, as the command line says it; None: what the run's own evaluation has."""

    benchmarks: tuple[str, ...]
    data: Mapping[str, str]  # by benchmark, "" for all others
    style: str | None
    shots: str | None
    limit: int | None
    samples: int | None
    k: tuple[int, ...] | None
    temperature: float | None
    max_tokens: int | None
    out: str | None
    scorer: str | None = None  # a run with a reward model


def find_checkpoint(model: str, stage: str | None, step: str | None) -> Checkpoint | None:
    """The checkpoint that a path is in; None for what is no run.

    Raises `ConvertError` and `CheckpointError` as `launch/convert.py` does.
    """
    folder = Path(model).expanduser()
    is_model = (folder / "config.json").is_file() or is_converted(folder)
    if model.startswith(PREFIX) or not folder.exists() or is_model:
        if stage or step:
            raise ConfigError(f"--stage and --step choose a checkpoint of a run, and {model} is none; leave them out")
        return None
    place = locate(model)
    stage = stage or place.stage or last_stage(place.root)
    if stage not in TRAINING:
        raise ConfigError(f"--stage {stage}: there is no such stage; there are {', '.join(TRAINING)}")
    checkpoints = Checkpoints(place.root / stage / "checkpoints")
    number = place.step if step is None else kept_best(place.root, stage) if step == "best" else int(step)
    return Checkpoint(place.root, stage, choose_step(checkpoints, number, stage, print))


def kept_best(root: Path, stage: str) -> int:
    """The step that `rl.best_metric` of a run has kept; raises `ConfigError` if there is none."""
    metric = (read(root / "config.yaml").tree.get(stage) or {}).get("best_metric")
    best = best_step(root / stage, metric, entries(root / stage / "checkpoints")[0]) if metric else None
    if best is None:
        raise ConfigError(f"--step best: {root / stage} has no such checkpoint: no best_metric, or not measured yet")
    return best.step


def settings_of(model: str, checkpoint: Checkpoint | None, asking: Asking, words: Sequence[str], prog: str) -> Command:
    """The settings of an evaluation: the run's model and prompt, what is asked, and the flags over both.

    Raises `ConfigError`, before any device is touched.
    """
    document = read(checkpoint.root / "config.yaml") if checkpoint else Document({}, {})
    own = document.tree.get("evaluation") or {}
    wanted = asking.benchmarks or ((HELD_OUT,) if own.get("source") else ())
    if not wanted:
        raise ConfigError("--benchmarks: none is given; name some, such as gsm8k,cmath (--help lists all)")
    if HELD_OUT in wanted and not own.get("source"):
        raise ConfigError(f"--benchmarks {HELD_OUT}: {model} has no held-out problems (evaluation.source) of its own")
    kept = {key: document.tree[key] for key in ("seed", "model", "mesh", "prompt") if key in document.tree}
    tree = {**kept, "output_dir": asking.out or default_out(model, checkpoint), "report_to": []}
    tree["evaluation"] = section(own, asking, wanted)
    tree["prompt"] = {**tree.get("prompt", {}), "overlong_prompts": "drop"}
    if checkpoint:
        tree["model"] = {**tree["model"], "tokenizer_name_or_path": str(checkpoint.root / "tokenizer")}
    elif not model.startswith(PREFIX):
        tree["model"] = {"model_name_or_path": model}
    origins = {key: at for key, at in document.origins.items() if key[0] in kept}
    return resolve(Document(tree, origins), words, [checkpoint.root / "config.yaml"] if checkpoint else [], prog)


def section(own: Mapping[str, Any], asking: Asking, wanted: Sequence[str]) -> dict[str, Any]:
    """The section `evaluation`: the run's, with what is asked in its place."""
    n = asking.samples or own.get("num_samples") or 8
    sampling = {"temperature": 0.7, **(own.get("sampling") or {})}
    sampling |= {"temperature": asking.temperature} if asking.temperature is not None else {}
    sampling |= {"max_completion_length": asking.max_tokens} if asking.max_tokens else {}
    same = {key: own[key] for key in ("source", "reward") if HELD_OUT in wanted and own.get(key)}
    benchmarks = [benchmark_settings(kind, asking) for kind in wanted if kind != HELD_OUT]
    programs = asking.style in ("tool", "program")
    unused = HELD_OUT not in wanted and asking.style in ("zero_shot", "few_shot")
    tools = None if unused else own.get("tools") or ({"kind": "python"} if programs else None)
    return {
        **same,
        **({"tools": tools} if tools else {}),
        **({"benchmarks": benchmarks} if benchmarks else {}),
        **({"scorer": {"kind": "learned", "path": asking.scorer}} if asking.scorer else {}),
        "num_samples": n,
        "k": chosen_k(own, asking, n),
        "batch_prompts": 2 ** max(0, (ROWS // n).bit_length() - 1),
        "sampling": sampling,
    }


def chosen_k(own: Mapping[str, Any], asking: Asking, n: int) -> list[int]:
    """The k of pass@k and maj@k: those asked for, else the run's if it drew as many samples, else the paper's."""
    if asking.k:
        return list(asking.k)
    return own["k"] if own.get("k") and own.get("num_samples") == n else [k for k in K if k <= n]


def benchmark_settings(kind: str, asking: Asking) -> dict[str, Any]:
    """The settings of one benchmark."""
    given = {"data": asking.data.get(kind, asking.data.get("")), "shots": asking.shots, "limit": asking.limit}
    given |= {"style": asking.style}
    return {"kind": kind, **{key: value for key, value in given.items() if value is not None}}


def default_out(model: str, checkpoint: Checkpoint | None) -> str:
    """Where results go unless --out says: beside the checkpoint's run, or below runs/evaluate."""
    if checkpoint:
        return str(checkpoint.root / "evaluate" / f"{checkpoint.stage}-{checkpoint.step}")
    return str(Path("runs", "evaluate", Path(model.removeprefix(PREFIX)).stem or "model"))


def open_model(
    command: Command, words: Sequence[str], workers: Workers, interruption: Interruption, tools: dict[str, Tool]
) -> Run:
    """Open the model without its weights, the prompts as long as the benchmarks need unless a flag says how long."""
    config = command.config
    run = open_run(config, Path(config.output_dir).absolute(), workers, interruption, ("evaluation",))
    run = dataclasses.replace(run, tools=tools)
    if config.evaluation.benchmarks and not any("max_prompt_length" in word.replace("-", "_") for word in words):
        room = run.model.config.longest - config.evaluation.sampling.max_completion_length
        needed = -(-longest_prompt(run) // PADDING) * PADDING
        prompt = dataclasses.replace(config.prompt, max_prompt_length=max(1, min(needed, room)))
        run = dataclasses.replace(run, config=dataclasses.replace(run.config, prompt=prompt))
    return run


def longest_prompt(run: Run) -> int:
    """The tokens of the longest prompt of all benchmarks; at least the limit of the run's own problems."""
    longest = run.config.prompt.max_prompt_length if run.config.evaluation.source else 1
    for config in run.config.evaluation.benchmarks:
        _, problems, view, _ = ask(run, config)
        lengths = [len(prompt_ids(problem, view.config.prompt, view.tokenizer)) for problem in problems]
        longest = max(longest, int(np.max(lengths)))
    return longest


def load_policy(run: Run, checkpoint: Checkpoint | None) -> Any:
    """The weights that are evaluated, on the mesh, adapters on their base."""
    if checkpoint is None:
        return run.policy(initial_params(run.config, run.model.config, run.mesh))
    checkpoints = Checkpoints(checkpoint.folder)
    run.check_base(checkpoints, checkpoint.step)
    return run.policy(restore_as(checkpoints, checkpoint.step, abstract(run.model.config, run.mesh)))


def identity(model: str, checkpoint: Checkpoint | None, config: Config | None) -> dict[str, Any]:
    """Which weights they are, and in what they compute, so that records of others are not gone on with."""
    dtype = {"dtype": config.model.dtype if config else None}
    if checkpoint:
        seal = manifest.read(checkpoint.folder / str(checkpoint.step))
        digest = hashlib.sha256(repr(sorted(seal["files"].items())).encode()).hexdigest()
        return {"stage": checkpoint.stage, "step": checkpoint.step, "files": digest[:16], **dtype}
    if model.startswith(PREFIX):
        return {"script": hashlib.sha256(Path(model.removeprefix(PREFIX)).read_bytes()).hexdigest()[:16]}
    return dict(model_record(model)) | dtype
