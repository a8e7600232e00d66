"""A file of JSON lines that grows as work is done, so that work goes on where it was stopped or killed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_jax.reporting.files import is_primary, read_json_lines, to_json


class JournalError(ValueError):
    """A journal that cannot be gone on with; the message names the file and the remedy."""

    exit_code = 3


class Journal:
    """Lines that are on the disk once `add` returns; what a crash left half written is cut off.

    The first line says what the work is of; a journal of other work is refused with `JournalError`. Every process
    reads, the first one writes.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path, self.lines = path, []
        if path.is_file():
            whole, problems = read_json_lines(path)
            if problems:
                raise JournalError(f"{problems[0]}; delete the file to do its work again")
            if whole and whole[0] != about:
                raise JournalError(
                    f"{path}: is of other work: {to_json(whole[0])} then, {to_json(about)} now; bring that back, or "
                    "start in another output_dir"
                )
            self.lines = whole[1:]
            if is_primary():
                text = path.read_bytes()
                with path.open("r+b") as file:
                    file.truncate(text.rfind(b"\n") + 1)
        if not path.is_file() or not path.stat().st_size:
            self._write([about])

    def add(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append lines; they are on the disk when this returns."""
        self.lines += lines
        self._write(lines)

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        if not is_primary():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write("".join(to_json(line) + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
