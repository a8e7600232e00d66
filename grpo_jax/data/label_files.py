"""Files of labelled rows: the settings that all of them have, and reading one with an address for every fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_jax.config import Positive, config


@config
class LabelFile:
    """What all files of labelled rows have in common."""

    path: str
    """The file of JSON lines."""
    limit: Positive | None = None
    """Read only the first so many rows."""


def read_labels(c: LabelFile, read: Callable[[Any, str], Any]) -> list[Any]:
    """What `read(row, name)` makes of the rows of the file, a list or one of each; rows that cannot be read are named.

    Raises `RowError` for the first bad row: a wrong key, or a value of another type.
    """
    from grpo_jax.data.json_lines import read_rows
    from grpo_jax.data.rows import RowError

    found: list[Any] = []
    path = Path(c.path).expanduser()
    for number, (place, row) in enumerate(read_rows(path)):
        if number == c.limit:
            break
        if isinstance(row, RowError):
            raise row
        name = f"{path}:{place}"
        try:
            made = read(row, name)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            what = f"has no key {error}" if isinstance(error, KeyError) else f"is not of this form ({error})"
            raise RowError(f"{name}: {what}; check reward_model.labels.kind") from error
        found += made if isinstance(made, list) else [made]
    if not found:
        raise RowError(f"{path}: has no labelled solutions; give a file with at least one row")
    return found
