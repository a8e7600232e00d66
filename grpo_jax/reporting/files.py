"""How the files of a run are written and read: whole or not at all, by one process, line by line."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any


def is_primary() -> bool:
    """Whether this process is the one that writes and prints: process 0, or the only one.

    No device is touched without a cluster: a report can be made while another process holds the accelerator.
    """
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text so that a reader, or a crash, finds the old file or the new one, never a half.

    A lone surrogate (half a character, from a broken completion) becomes its JSON escape.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def finite(value: Any) -> float | None:
    """A finite number read from a file, as a float; None for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def to_json(value: Any) -> str:
    """One line of strict JSON; raises ValueError on NaN and infinities, which are not JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_script_json(value: Any) -> str:
    """JSON that may stand in an HTML script element: no character of it can end the element or open a tag."""
    text = to_json(value)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a JSONL file, and a sentence for every line that is not one.

    A last line without its newline is one still being written, or cut by a crash: it is left out in silence.
    """
    whole, newline, _ = path.read_text("utf-8", "replace").rpartition("\n")
    records, problems = [], []
    for number, line in enumerate(whole.split("\n") if newline else [], start=1):
        record = parse_object(line)
        if record is None:
            problems.append(f"{path}, line {number}: not a JSON object: {line[:60]!r}")
        else:
            records.append(record)
    return records, problems


def parse_object(text: str) -> dict[str, Any] | None:
    """A JSON object, or None where the text is not one; NaN and infinities (not JSON) read as null."""
    try:
        value = json.loads(text, parse_constant=lambda _: None)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
