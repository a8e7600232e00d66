"""PRM800K's published form (arXiv:2305.20050): people's ratings of each step, -1, 0 or 1.

    {"question": {"problem": ...}, "label": {"finish_reason": "solution", "steps": [
        {"completions": [{"text": ..., "rating": 1}], "chosen_completion": 0, "human_completion": null}, ...]}}

A row is a tree: at each step there are alternatives, of which one is gone on with. Every alternative that was not
chosen is a solution of its own that ends there, its earlier steps unlabelled, as they are labelled in the chosen one.
Of a chosen solution that was finished, the last rating is taken for its outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from grpo_jax.config import config
from grpo_jax.data.label_files import LabelFile, read_labels

if TYPE_CHECKING:
    from grpo_jax.data.labelled import Labelled


@config
class Config(LabelFile):
    """The rows of PRM800K, as released."""

    neutral: Literal["good", "bad", "none"] = "good"
    """What a rating of 0 is worth (their paper: as good); `none`: the step has no label."""
    alternatives: bool = True
    """Whether the steps that were not gone on with are learnt from too."""


def build(config: Config, seed: int) -> list[Labelled]:
    """Return the solutions of the file; `seed` changes nothing. Raises `RowError` naming the line."""
    from functools import partial

    del seed
    return read_labels(config, partial(_solutions, c=config))


def _solutions(row: Any, name: str, *, c: Config) -> list[Labelled]:
    from grpo_jax.data.labelled import Labelled
    from grpo_jax.types import Problem

    worth = {1: 1.0, 0: {"good": 1.0, "bad": 0.0, "none": None}[c.neutral], -1: 0.0, None: None}
    question, label = row["question"], row["label"]
    problem = Problem(question["problem"], question.get("ground_truth_answer") or "", source="prm800k", id=name)
    steps: tuple[str, ...] = ()
    labels: tuple[float | None, ...] = ()
    found = []
    for step in label["steps"]:
        chosen, completions = step["chosen_completion"], step["completions"] or []
        for number, completion in enumerate(completions):
            if c.alternatives and number != chosen:
                unsaid = (None,) * len(steps)
                found.append(Labelled(problem, (*steps, completion["text"]), (*unsaid, worth[completion["rating"]])))
        going_on = step["human_completion"] if chosen is None else completions[chosen]
        if going_on is None:
            break
        steps, labels = (*steps, going_on["text"]), (*labels, 1.0 if chosen is None else worth[going_on["rating"]])
    if steps:
        finished = label["finish_reason"] == "solution"
        found.insert(0, Labelled(problem, steps, labels, labels[-1] if finished else None))
    return found
