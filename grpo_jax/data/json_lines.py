"""Reading JSON lines with an address for every fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grpo_jax.data.rows import RowError

LONGEST_LINE = 2**24
"""Bytes; a longer line is a fault, not a problem."""


def read_rows(path: Path, *, constants: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (line, row) of a .jsonl file, or ("entry n", row) of a .json file that holds a list.

    A line that cannot be read is yielded as a `RowError`, so that the caller decides. A byte order mark, CRLF
    and blank lines are taken in silence. NaN, which is no JSON, is a fault unless `constants` lets it be: published
    files of benchmarks have it. Raises `RowError` if there is no such file, or the whole of it is
    unreadable.
    """
    if not path.is_file():
        raise RowError(f"{path}: {_why_not(path)}")
    if path.suffix == ".json":
        yield from _read_list(path)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield str(number), _parse(line, f"{path}:{number}", None if constants else _refuse_constant)


def _parse(line: bytes, name: str, constant: Callable[[str], Any] | None) -> Any:
    if len(line) > LONGEST_LINE:
        return RowError(f"{name}: the line has {len(line)} bytes, more than {LONGEST_LINE}; split the file into lines")
    try:
        return json.loads(line.decode("utf-8").strip(), parse_constant=constant)
    except UnicodeDecodeError as error:
        return RowError(f"{name}: not UTF-8 at byte {error.start + 1}; convert the file to UTF-8")
    except json.JSONDecodeError as error:
        return RowError(
            f"{name}: broken JSON at column {error.colno}: {error.msg.removesuffix(' starting at')}; "
            "mend the line, or set source.bad_rows to skip"
        )
    except RecursionError:
        return RowError(f"{name}: broken JSON: nested too deeply")
    except ValueError as error:
        return RowError(f"{name}: {error}")


def _refuse_constant(literal: str) -> None:
    raise ValueError(f"{literal} is no JSON; write a number, a text or null")


def _read_list(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RowError(f"{path}: not UTF-8 at byte {error.start + 1}; convert the file to UTF-8") from error
    except json.JSONDecodeError as error:
        remedy = "name a file of JSON lines .jsonl" if error.msg == "Extra data" else "mend it"
        raise RowError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"{path}: {error}") from error
    if not isinstance(rows, list):
        raise RowError(f"{path}: expected a list of objects, found a {type(rows).__name__}; use a list, or .jsonl")
    for number, row in enumerate(rows, start=1):
        yield f"entry {number}", row


def _why_not(path: Path) -> str:
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix in (".jsonl", ".json"))
        return f"is a directory; give one file, such as {files[0]}" if files else "is a directory without .jsonl files"
    if not path.parent.is_dir():
        return f"no such file, and no directory {path.parent}; check source.path"
    near = sorted(p.name for p in path.parent.iterdir() if p.suffix == path.suffix)[:5]
    there = ", ".join(near) or f"no {path.suffix} files"
    return f"no such file; check source.path ({path.parent} has: {there})"
