"""Preferences, for Bradley-Terry: the better and the worse of two solutions.

{"prompt": ..., "chosen": ..., "rejected": ...}        texts, or "question" instead of "prompt"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpo_jax.config import config
from grpo_jax.data.label_files import LabelFile, read_labels

if TYPE_CHECKING:
    from grpo_jax.data.labelled import Preference


@config
class Config(LabelFile):
    """Rows of prompt (or question), chosen and rejected, texts."""


def build(config: Config, seed: int) -> list[Preference]:
    """Return the pairs of the file; `seed` changes nothing. Raises `RowError` naming the line."""
    del seed
    return read_labels(config, _pair)


def _pair(row: Any, name: str) -> Preference:
    from grpo_jax.data.labelled import Preference
    from grpo_jax.data.rows import RowError
    from grpo_jax.types import Problem

    texts = (row["prompt"] if "prompt" in row else row["question"], row["chosen"], row["rejected"])
    if not all(isinstance(text, str) and text for text in texts):
        raise RowError(f"{name}: prompt, chosen and rejected should be texts; conversations are not read here")
    return Preference(Problem(texts[0], "", source="preferences", id=name), *texts[1:])
