"""The step of a stage whose held-out metric is the largest, read from its log: so a run that goes on knows it too."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from grpo_jax.reporting.files import finite
from grpo_jax.reporting.metrics import read_metrics

LOG = "metrics.jsonl"


class Best(NamedTuple):
    """A step and its value."""

    step: int
    value: float


def best_step(stage: Path, metric: str, steps: Collection[int] | None = None) -> Best | None:
    """The first of the steps (None: of all) with the largest `eval/<metric>` in a stage's log; None if none has it."""
    path = stage / LOG
    lines = read_metrics(path) if path.is_file() else []
    values = [(line["step"], finite(line.get(f"eval/{metric}"))) for line in lines]
    found = [Best(step, value) for step, value in values if value is not None and (steps is None or step in steps)]
    return max(found, key=lambda best: (best.value, -best.step), default=None)
