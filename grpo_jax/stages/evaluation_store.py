"""What an evaluation leaves on the disk: a record a sample, kept as it is made, and what they were made with.

OUT/<task>/settings.json     what was asked; a second run with other settings is refused
OUT/<task>/greedy.jsonl      one line a completion
OUT/<task>/samples.jsonl
OUT/<task>/result.json       the numbers
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.configure import ConfigError, difference
from grpo_jax.evaluation.evaluate import TOO_LONG, Completion, Graded, Place, graded
from grpo_jax.reporting.files import is_primary, to_json, write_atomically

SETTINGS, RESULT = "settings.json", "result.json"
FILES = {"greedy": "greedy.jsonl", "sampled": "samples.jsonl"}


class Store:
    """The records of one way of completing, in one file that only grows.

    Every line was on the disk before the next batch began; a line that a kill has cut is removed, and its sample made
    again. Of a prompt that was too long and fits now there are two lines, and the later one counts. Only process 0
    writes.
    """

    def __init__(self, path: Path, ids: list[str]):
        self.path, self.ids = path, ids
        self.known: dict[Place, Completion] = {}
        if path.is_file():
            self._read()

    def keep(self, made: list[Completion]) -> None:
        """Append the completions of a batch."""
        if not is_primary():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [to_json({"id": self.ids[one.index], **one._asdict()}) + "\n" for one in made]
        with self.path.open("ab") as file:
            file.write("".join(lines).encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content) and is_primary():
            with self.path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            one = record_of(line, f"{self.path}:{number}")
            before = self.known.get((one.index, one.sample))
            if before is not None and (before.reason != TOO_LONG or one.reason == TOO_LONG):
                raise ConfigError(f"{self.path}:{number}: sample {one.sample} of problem {one.index} a second time")
            self.known[one.index, one.sample] = one


def record_of(line: bytes, place: str) -> Completion:
    """A line of the records; raises `ConfigError` naming it if it is none."""
    try:
        fields = json.loads(line)
        return Completion(**{name: fields[name] for name in Completion._fields})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{place}: is no record of a sample ({error}); mend it, or evaluate into another --out"
        ) from error


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what is asked, or compare it with what the records there were made with.

    Raises `ConfigError` with the differences.
    """
    path, now = folder / SETTINGS, json.loads(json.dumps(settings))
    if not path.is_file():
        if is_primary():
            write_atomically(path, json.dumps(now, indent=1, ensure_ascii=False) + "\n")
        return
    lines = difference(json.loads(path.read_text("utf-8")), now)
    if lines:
        shown = "".join(f"  {line}\n" for line in lines[:12])
        raise ConfigError(
            f"{path}: what is there was made with other settings (then -> now):\n{shown}"
            "take them back to go on with it, or give another --out"
        )


def read_graded(folder: Path, mode: str, problems: int, samples: int) -> Graded | None:
    """The verdicts of a finished evaluation; None if its records are not complete."""
    if not (folder / FILES[mode]).is_file():
        return None
    known = Store(folder / FILES[mode], []).known
    places = [[(i, g) for g in range(samples)] for i in range(problems)]
    if not all(place in known for row in places for place in row):
        return None
    return graded([[known[place] for place in row] for row in places])


def read_scores(path: Path, task: str, ids: list[str], samples: int) -> np.ndarray | None:
    """Scores [problems, n] from JSON lines {id, sample, score}; None where the file has none for this task.

    Raises `ConfigError` for a line that is none, and if some samples have no score.
    """
    numbers = {name: i for i, name in enumerate(ids)}
    scores = np.full((len(ids), samples), np.nan)
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            i, g, score = numbers.get(row["id"]), int(row["sample"]), float(row["score"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: expected {{id, sample, score}}: {error}") from error
        if i is not None and 0 <= g < samples:
            scores[i, g] = score
    absent = np.argwhere(~np.isfinite(scores))
    if len(absent) == scores.size:
        return None
    if len(absent):
        i, g = absent[0]
        raise ConfigError(f"{path}: has no score of sample {g} of {ids[i]}, and of {len(absent) - 1} others of {task}")
    return scores
