"""PRMBench's form (arXiv:2501.03124): a solution with steps made wrong, and the numbers of these, from 1.

    {"question": ..., "original_process": [...], "modified_process": [...], "error_steps": [5, 6], "idx": ...}

The steps named are bad and the others good; of the process before the change all are good. A number beyond the last
step (4 of the 263 rows of its subset `deception`) names none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpo_jax.config import config
from grpo_jax.data.label_files import LabelFile, read_labels

if TYPE_CHECKING:
    from grpo_jax.data.labelled import Labelled


@config
class Config(LabelFile):
    """The rows of PRMBench, as released."""

    original: bool = True
    """Whether the solutions before the change are learnt from too."""


def build(config: Config, seed: int) -> list[Labelled]:
    """Return the solutions of the file; `seed` changes nothing. Raises `RowError` naming the line."""
    from functools import partial

    del seed
    return read_labels(config, partial(_solutions, c=config))


def _solutions(row: Any, name: str, *, c: Config) -> list[Labelled]:
    from grpo_jax.data.labelled import Labelled
    from grpo_jax.types import Problem

    problem = Problem(row["modified_question"], "", source="prmbench", id=name)
    steps, wrong = tuple(row["modified_process"]), set(row["error_steps"])
    labels = tuple(float(number not in wrong) for number in range(1, len(steps) + 1))
    found = [Labelled(problem, steps, labels)]
    if c.original:
        first = problem if row["original_question"] == problem.question else Problem(row["original_question"], "")
        steps = tuple(row["original_process"])
        found.append(Labelled(first, steps, (1.0,) * len(steps)))
    return found
