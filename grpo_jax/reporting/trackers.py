"""Where numbers go besides metrics.jsonl: TensorBoard files and Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from grpo_jax.reporting.files import write_atomically


class TrackerError(ValueError):
    """A tracker that cannot be started; the message says how to get it or how to do without."""

    exit_code = 2


class Tracker(Protocol):
    """Takes the numbers of a step; may fail, since the training does not depend on it."""

    name: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<directory>/tensorboard`, written without TensorFlow."""

    name = "tensorboard"

    def __init__(self, directory: Path):
        require("tensorboardX", self.name)
        self.directory = directory / "tensorboard"
        self._writer: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # purge_step hides what an interrupted run wrote at and after the step at which this one goes on
            self._writer = SummaryWriter(str(self.directory), purge_step=step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """A wandb run; its id is kept in `<directory>/wandb.json`, so that a resumed run goes on in it."""

    name = "wandb"

    def __init__(self, directory: Path, run_name: str, config: Mapping[str, Any] | None):
        require("wandb", self.name)
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "grpo_jax"),
                name=run_name or None,
                id=run_id(directory / "wandb.json"),
                dir=str(directory),
                config=dict(config or {}),
                resume="allow",
            )
        except Exception as error:
            raise TrackerError(
                f"report_to: wandb could not start ({error}); "
                "set WANDB_MODE=offline, log in with `wandb login`, or leave wandb out of report_to"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def run_id(path: Path) -> str:
    """The id in the file, or a new one, written there."""
    if path.is_file():
        return json.loads(path.read_text("utf-8"))["id"]
    new = secrets.token_hex(4)
    write_atomically(path, json.dumps({"id": new}) + "\n")
    return new


def require(module: str, name: str) -> None:
    """Raise `TrackerError` with the command that installs it if a module is missing."""
    if importlib.util.find_spec(module) is None:
        raise TrackerError(
            f"report_to: {name} needs the package {module}, which is not installed; "
            f"run `python -m pip install {module}`, or leave {name} out of report_to"
        )


def start_trackers(
    report_to: Iterable[str], directory: Path, run_name: str, config: Mapping[str, Any] | None
) -> list[Tracker]:
    """The trackers asked for by name; raises `TrackerError` for an unknown name or a missing package."""
    known = {
        "tensorboard": lambda: TensorBoard(directory),
        "wandb": lambda: WeightsAndBiases(directory, run_name, config),
    }
    names = list(report_to)
    for name in names:
        if name not in known:
            raise TrackerError(f"report_to: unknown tracker {name!r}; there are {', '.join(sorted(known))}")
    return [known[name]() for name in names]
