"""The numbers of a stage: one JSON object a line in metrics.jsonl, and the trackers that were asked for.

A line is `{"step": 12, "time": 1764000000.123, "reward": 0.5, ...}`. A value that is not finite is null, and
`"nonfinite": {"kl": "nan"}` says which and what it was: every line is strict JSON.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.reporting.files import is_primary, read_json_lines, to_json, write_atomically
from grpo_jax.reporting.trackers import Tracker, start_trackers

RESERVED = ("step", "time", "nonfinite")


class MetricsWriter:
    """Writes the numbers of a stage to `<directory>/metrics.jsonl` and the trackers; only process 0 writes.

    A context manager. Raises `TrackerError` at once if a tracker of `report_to` cannot start; a tracker that
    fails later is warned about once and never stops the training.
    """

    def __init__(
        self,
        directory: str | Path,
        report_to: Iterable[str] = (),
        run_name: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        self.path = Path(directory) / "metrics.jsonl"
        self._active = is_primary()
        self._trackers: list[Tracker] = []
        self._failed: set[str] = set()
        if self._active:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            drop_torn_line(self.path)
            self._trackers = start_trackers(report_to, self.path.parent, run_name, config)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append the line of a step; values are numbers, NumPy or JAX scalars.

        Raises ValueError for a value that is not one number, and for a key of the line's own (step, time).
        """
        if not self._active:
            return
        numbers = {key: number(key, value) for key, value in metrics.items()}
        line = to_json(make_line(step, round(time.time(), 3), numbers))
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        for tracker in self._trackers:
            self._guard(tracker, lambda tracker=tracker: tracker.log(step, numbers))

    def truncate_after(self, step: int) -> None:
        """Drop the lines after a step, atomically: a run that resumes there writes them again.

        Raises ValueError, and leaves the file as it is, if a line cannot be read.
        """
        if not self._active or not self.path.exists():
            return
        kept = [record for record in read_metrics(self.path) if record["step"] <= step]
        write_atomically(self.path, "".join(to_json(record) + "\n" for record in kept))

    def close(self) -> None:
        """Close the trackers; the file needs no closing."""
        for tracker in self._trackers:
            self._guard(tracker, tracker.close)
        self._trackers = []

    def _guard(self, tracker: Tracker, action: Any) -> None:
        try:
            action()
        except Exception as error:
            if tracker.name not in self._failed:
                self._failed.add(tracker.name)
                warnings.warn(
                    f"{tracker.name} failed ({error!r}); training goes on, the numbers are in {self.path}",
                    stacklevel=3,
                )


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; a last line cut by a crash is left out.

    Raises ValueError naming file and line if another line is not a JSON object with a step.
    """
    records, problems = read_json_lines(Path(path))
    problems += [f"{path}: a line without a step: {record}" for record in records if "step" not in record]
    if problems:
        raise ValueError(f"{problems[0]}; repair or delete the line")
    return records


def make_line(step: int, seconds: float, numbers: Mapping[str, float | int]) -> dict[str, Any]:
    """The object of one line: null where a number is not finite, and such keys under "nonfinite"."""
    line: dict[str, Any] = {"step": int(step), "time": seconds}
    line |= {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    nonfinite = {key: str(value) for key, value in numbers.items() if not math.isfinite(value)}
    return line | ({"nonfinite": nonfinite} if nonfinite else {})


def number(key: str, value: Any) -> float | int:
    """A Python int or float from a number, or from an array with one element."""
    if key in RESERVED:
        raise ValueError(f"metric {key!r}: the name belongs to the line itself; choose another")
    array = np.asarray(value)
    if array.size != 1 or (array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16"):
        raise ValueError(f"metric {key!r}: {array.dtype} of shape {array.shape}, expected one number")
    return int(array.item()) if array.dtype.kind in "biu" else float(array.item())


def drop_torn_line(path: Path) -> None:
    """Remove a last line without its newline, which a crash left: what is appended must start a line."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        whole, newline, _ = content.rpartition(b"\n")
        write_atomically(path, (whole + newline).decode("utf-8", "replace"))
