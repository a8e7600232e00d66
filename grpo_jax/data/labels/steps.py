"""Our own form, which the `label` stage writes: the policy's own tokens, step by step, with estimates of each.

    {"id": ..., "question": ..., "answer": ..., "outcome": 1.0, "tokenizer": ..., "prompt_ids": [...],
     "steps": [{"text": "55", "ids": [5, 5, 0], "completions": 8, "right": 6, "hard": 1, "soft": 0.75}, ...]}

Learnt from are the ids, as they were sampled; `tokenizer` says of which vocabulary. Without `prompt_ids` and `ids`,
as a person would write it, the texts are encoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpo_jax.config import config
from grpo_jax.data.label_files import LabelFile, read_labels

if TYPE_CHECKING:
    from grpo_jax.data.labelled import Labelled


@config
class Config(LabelFile):
    """The rows of the `label` stage."""


def build(config: Config, seed: int) -> list[Labelled]:
    """Return the solutions of the file; `seed` changes nothing. Raises `RowError` naming the line."""
    del seed
    return read_labels(config, _solution)


def alphabet(config: Config) -> str:
    """Return no characters: the texts are of problems and policies that have their own sources."""
    del config
    return ""


def _solution(row: Any, name: str) -> Labelled:
    from grpo_jax.data.labelled import Labelled, Sampled
    from grpo_jax.data.rows import RowError
    from grpo_jax.types import Problem

    steps, sampled = row["steps"], None
    if not steps or any(step["soft"] is not None and not 0 <= step["soft"] <= 1 for step in steps):
        raise RowError(f"{name}: a solution without steps, or with a soft label off 0 to 1")
    if "prompt_ids" in row:
        ids = tuple(tuple(step["ids"]) for step in steps)
        sampled = Sampled(tuple(row["prompt_ids"]), ids, row["tokenizer"])
    problem = Problem(row["question"], row.get("answer", ""), source="steps", id=row.get("id") or name)
    texts, labels = tuple(step["text"] for step in steps), tuple(step["soft"] for step in steps)
    return Labelled(problem, texts, labels, row.get("outcome"), sampled)
