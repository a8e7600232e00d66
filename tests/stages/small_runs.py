"""Pipelines that take seconds: their settings, running them in this process, and comparing what they leave."""

import contextlib
import json
import os
import shutil
import signal
import warnings
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint
import yaml

from grpo_jax.configure import load
from grpo_jax.reporting.ledger import read_ledger
from grpo_jax.reporting.metrics import read_metrics
from grpo_jax.sharding import make_mesh
from grpo_jax.stages import pipeline
from grpo_jax.stages.run import Run
from grpo_jax.training.interrupt import Interrupted
from launch.train import main

QUICK = "jax_disable_most_optimizations"

SUMS = {"kind": "arithmetic", "first_digits": 1, "steps": 1}

SETTINGS = {
    "model": {
        "architecture": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 4,
            "intermediate_size": 32,
        }
    },
    "prompt": {"format": "text", "max_prompt_length": 5},
    "sft": {
        "source": {**SUMS, "slip_rate": 0.5},
        "max_steps": 4,
        "batch_size": 8,
        "max_length": 16,
        "optimizer": {"learning_rate": 1e-2},
        "logging_steps": 1,
        "save_steps": 0,
    },
    "rl": {
        "source": SUMS,
        "algorithm": {"kind": "grpo", "beta": 0.04},
        "rewards": [{"kind": "accuracy"}, {"kind": "tests.stages.rewards_for_tests"}],
        "max_steps": 4,
        "prompts_per_step": 4,
        "num_generations": 4,
        "sampling": {"max_completion_length": 4},
        "optimizer": {"learning_rate": 1e-2},
        "head_chunk": 4,
        "rollout_steps": 1,
        "save_steps": 0,
    },
    "report_to": [],
}

EVALUATION = {
    "source": {**SUMS, "split": "test"},
    "reward": {"kind": "accuracy"},
    "num_samples": 2,
    "k": [1, 2],
    "batch_prompts": 8,
    "sampling": {"max_completion_length": 4},
}


FAMILY_SIZES = {"hidden": 32, "layers": 2, "heads": 4, "kv-heads": 2, "head-dim": 16, "mlp": 48}


def two_steps_on(path) -> dict:
    """The RL section of two small GRPO steps on a file of problems."""
    return {
        "source": {"kind": "jsonl", "path": str(path), "limit": 60},
        "rewards": [{"kind": "accuracy"}, {"kind": "tests.stages.rewards_for_tests"}],
        "max_steps": 2,
        "prompts_per_step": 2,
        "num_generations": 2,
        "sampling": {"max_completion_length": 6},
    }


def settings(**changes):
    """The settings with changes: sections are merged, None leaves one out."""
    merged = json.loads(json.dumps(SETTINGS))
    for section, values in changes.items():
        both = isinstance(values, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **values} if both else values
    return {section: values for section, values in merged.items() if values is not None}


def write_settings(path: Path, **changes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings(**changes), sort_keys=False))
    return path


def run(file: Path, directory: Path, workers, *flags: str) -> None:
    """What launch/train.py does, on as many of the fake devices as the mesh asks for (-1: one)."""
    command = load([str(file), "--output_dir", str(directory), *flags])
    with quick_compilation(), mock.patch.object(pipeline, "make_mesh", on_few_devices):
        pipeline.run(command, workers)


def begin_with_sft_of(directory: Path, begun: Path) -> None:
    """Let a run whose settings differ from those of another in what comes after sft go on from its sft."""
    shutil.copytree(directory / "sft", begun / "sft")
    shutil.copy(directory / "config.yaml", begun)


@contextlib.contextmanager
def quick_compilation():
    """Programs that compile in half the time and run slower: here they are small and run a few times."""
    before = jax.config.read(QUICK)
    jax.config.update(QUICK, True)
    try:
        yield
    finally:
        jax.config.update(QUICK, before)


def on_few_devices(config):
    sizes = [size for size in (config.data, config.fsdp, config.tensor) if size != -1]
    return make_mesh(config, jax.devices()[: int(np.prod(sizes))])


def interrupted_after(stage: str, step: int, signum=signal.SIGTERM):
    """A patch under which this process gets a signal when a step of a stage is finished."""
    original = Run.save_if_due

    def save_if_due(self, checkpoints, config, done, *rest):
        if (checkpoints.directory.parent.name, done) == (stage, step):
            os.kill(os.getpid(), signum)
        return original(self, checkpoints, config, done, *rest)

    return mock.patch.object(Run, "save_if_due", save_if_due)


def run_interrupted(file: Path, directory: Path, workers, stage: str, step: int, *flags: str) -> Interrupted:
    """Run until the signal; returns what the run said."""
    with interrupted_after(stage, step):
        try:
            run(file, directory, workers, *flags)
        except Interrupted as stopped:
            return stopped
    raise AssertionError(f"not interrupted after step {step} of {stage}")


def steps(directory: Path, stage: str) -> list[int]:
    return sorted(int(p.name) for p in (directory / stage / "checkpoints").iterdir() if p.name.isdecimal())


def checkpoint(directory: Path, stage: str, step: int | None = None) -> dict[str, np.ndarray]:
    """Every leaf of a checkpoint by name, as it is on the disk."""
    path = directory / stage / "checkpoints" / str(steps(directory, stage)[-1] if step is None else step)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        tree = orbax.checkpoint.PyTreeCheckpointer().restore(path)
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(where): plain(leaf) for where, leaf in flat}


def plain(leaf) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


CLOCKED = ("time", "tokens_per_sec", "compiles")  # first words of names


def metrics(directory: Path, stage: str) -> list[dict]:
    """The lines of a stage's metrics without what a clock or this process decides."""
    lines = read_metrics(directory / stage / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k.partition("/")[0] not in CLOCKED} for line in lines]


def rollouts(directory: Path) -> dict[str, str]:
    """The files of rollouts by name; they hold no times, so that equal runs leave equal bytes."""
    return {path.name: path.read_text("utf-8") for path in sorted((directory / "rl" / "rollouts").iterdir())}


def ledger(directory: Path) -> dict:
    """The ledger of a run without its name and what a clock decides."""
    found = read_ledger(directory)
    del found["run"]
    for part in (found["totals"], *(stage["counts"] for stage in found["stages"].values())):
        part.pop("seconds"), part.pop("device_seconds")
    for stage in found["stages"].values():
        assert stage.pop("began")
    return found


def assert_equal_runs(got: Path, expected: Path, *, moved: Path | None = None, base: Path | None = None) -> None:
    """Every leaf of the last checkpoints, every metric, rollout and count is the same, bit for bit.

    `moved` is where the first run found what the other found at `base`.
    """
    for stage in ("sft", "rl"):
        assert_equal_leaves(got, expected, stage)
        for line, other in zip(metrics(got, stage), metrics(expected, stage), strict=True):
            assert line == other, f"{stage}: step {other['step']}"
    assert rollouts(got) == rollouts(expected)
    there = json.dumps(ledger(got))
    assert json.loads(there.replace(str(moved), str(base)) if moved else there) == ledger(expected)


def assert_equal_leaves(got: Path, expected: Path, stage: str) -> set[str]:
    """The last checkpoints of a stage are of one step and equal; returns the names of their leaves."""
    assert steps(got, stage)[-1] == steps(expected, stage)[-1]
    ours, theirs = checkpoint(got, stage), checkpoint(expected, stage)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    for name, leaf in theirs.items():
        assert np.array_equal(ours[name], leaf), f"{stage}: {name}"
    return set(theirs)


def launched(argv: list[str], capsys, *, all_devices: bool = False) -> tuple[int, str]:
    """Exit code and what was printed on stderr."""
    capsys.readouterr()
    meshes = pipeline.make_mesh if all_devices else on_few_devices
    with quick_compilation(), mock.patch.object(pipeline, "make_mesh", meshes):
        code = main(argv)
    return code, capsys.readouterr().err


def assert_well_said(message: str, words: tuple[str, ...]) -> None:
    assert "Traceback" not in message and message.startswith("error: ")
    assert len(message.splitlines()) <= 20
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
