"""Problems from a file of JSON lines (.jsonl), or a JSON file that holds a list (.json)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_jax.config import config
from grpo_jax.data.rows import RowConfig

if TYPE_CHECKING:
    from grpo_jax.types import Problem


@config
class Config(RowConfig):
    """One row a line: {question, answer}, {prompt, completion} or {messages}."""

    path: str
    """The file."""


def build(config: Config, seed: int) -> Sequence[Problem]:
    """Return the file's problems in its order, with ids "file:line"; `seed` changes nothing.

    Raises `RowError` naming file, line and field.
    """
    from pathlib import Path

    from grpo_jax.data.json_lines import read_rows
    from grpo_jax.data.rows import problems_from_rows

    del seed
    path = Path(config.path).expanduser()
    return problems_from_rows(read_rows(path), config, str(path), path.name)
