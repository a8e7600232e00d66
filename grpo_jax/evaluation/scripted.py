"""A policy that reads its completions from a file: for tests, and to grade what another program has sampled.

Each line is a JSON object {"id": "gsm8k/0", "greedy": text, "samples": [text, ...]}, with "finished" (a list of
booleans, of the samples) where some were cut. Lengths are counted in characters, as there is no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.data.json_lines import read_rows
from grpo_jax.data.rows import RowError
from grpo_jax.evaluation.evaluate import Generate, Sampled
from grpo_jax.types import Problem

PREFIX = "scripted:"


class Lines(NamedTuple):
    """What the file has of one problem."""

    greedy: str
    samples: tuple[str, ...]
    finished: tuple[bool, ...]


def read_script(path: Path) -> dict[str, Lines]:
    """The completions by the problem's id. Raises `RowError` naming the line."""
    script: dict[str, Lines] = {}
    for place, row in read_rows(path):
        if isinstance(row, RowError):
            raise row
        name, greedy, samples = (row.get(key) if isinstance(row, dict) else None for key in ("id", "greedy", "samples"))
        texts = [greedy, *samples] if isinstance(samples, list) else [None]
        if not isinstance(name, str) or not all(isinstance(text, str) for text in texts):
            raise RowError(f"{path}:{place}: expected {{id, greedy, samples: [...]}} with texts")
        if name in script:
            raise RowError(f"{path}:{place}: problem {name} a second time")
        finished = row.get("finished", [True] * len(samples))
        if not isinstance(finished, list) or len(finished) != len(samples):
            raise RowError(f"{path}:{place}: finished should be a list of {len(samples)} booleans")
        script[name] = Lines(greedy, tuple(samples), tuple(map(bool, finished)))
    return script


def generators(
    script: Mapping[str, Lines], problems: Sequence[Problem], n: int, path: Path
) -> tuple[Generate, Generate]:
    """Greedy and sampled completions of these problems from a script.

    Raises `RowError` for a problem that it does not have, or of which it has fewer than `n` samples.
    """
    for problem in problems:
        lines = script.get(problem.id)
        if lines is None or len(lines.samples) < n:
            there = "nothing" if lines is None else f"{len(lines.samples)} samples"
            raise RowError(f"{path}: has {there} of problem {problem.id}, and {n} samples are asked for")

    def greedy(policy: Any, indices: np.ndarray) -> Sampled:
        texts = [script[problems[int(i)].id].greedy for i in indices]
        return Sampled(texts, np.array([len(text) for text in texts]), np.ones(len(texts), bool))

    def sampled(policy: Any, indices: np.ndarray) -> Sampled:
        chosen = [script[problems[int(i)].id] for i in indices]
        texts = [text for lines in chosen for text in lines.samples[:n]]
        finished = [done for lines in chosen for done in lines.finished[:n]]
        return Sampled(texts, np.array([len(text) for text in texts]), np.array(finished, bool))

    return greedy, sampled
