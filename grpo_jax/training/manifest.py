"""The manifest of a checkpoint: what a step directory must hold, byte for byte.

Orbax loads flipped bits without a word, renames a directory before its bytes are on the disk, and keeps no
record of a whole step. So a step counts as saved only once it has this file, written last: names, sizes and
SHA-256 of all files, types and shapes of all arrays, the run's `meta`, and a digest of the manifest itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

NAME = "manifest.json"
FORMAT = 1
THREADS = 8  # hashing releases the interpreter's lock


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or trusted; the message names the path and the reason."""

    exit_code = 3


def leaf_table(tree: Any) -> dict[str, str]:
    """Name, type and shape of every leaf, e.g. `{"state/params/embed": "float32[128, 64]"}`.

    Works on arrays and on ShapeDtypeStructs; None is not a leaf.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def differences(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """One line for each leaf that only one side has, or that has another type or shape."""
    lines = []
    for name in sorted(saved.keys() | wanted.keys()):
        ours, theirs = wanted.get(name), saved.get(name)
        if ours != theirs:
            lines.append(f"{name}: saved {theirs or 'nothing'}, this run has {ours or 'nothing'}")
    return lines


def write(directory: Path, body: dict[str, Any]) -> dict[str, Any]:
    """Bring all files of a step to the disk, then write the manifest in one rename; -> its content.

    `body` holds `step`, `leaves` and `meta` (anything that JSON can hold). A crash at any point leaves either
    no manifest or a whole one.
    """
    names = sorted(str(f.relative_to(directory)) for f in directory.rglob("*") if f.is_file())
    names = [name for name in names if not name.startswith(NAME)]
    with ThreadPoolExecutor(THREADS) as threads:
        digests = list(threads.map(lambda name: _digest(directory / name, sync=True), names))
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in zip(names, digests, strict=True)}
    content = {"format": FORMAT, **body, "files": files}
    partial = directory / (NAME + ".partial")
    with open(partial, "w", encoding="utf-8") as f:
        f.write(_text(content))
        f.flush()
        os.fsync(f.fileno())
    partial.rename(directory / NAME)
    for folder in (*(d for d in directory.rglob("*") if d.is_dir()), directory, directory.parent):
        _sync_folder(folder)
    return content


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a step directory; raises `CheckpointError` if there is none or it was changed."""
    path = directory / NAME
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory}: no {NAME}: the save was never finished, or another program made it"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CheckpointError(f"{path}: is not a manifest of grpo_jax")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: has format {content['format']}, this program reads format {FORMAT}; "
            "use the version of grpo_jax that wrote it"
        )
    content.pop("sha256", None)
    if _text(content) != text:
        raise CheckpointError(f"{path}: does not match its own SHA-256: it was changed after it was written")
    return content


def faults(directory: Path, content: dict[str, Any]) -> list[str]:
    """One line for each file of the manifest that is missing, has another size or other bytes."""
    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(lambda item: _fault(directory / item[0], *item), content["files"].items())
        return [line for line in found if line]


def _fault(path: Path, name: str, expected: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{name} has {size} bytes, {expected['bytes']} were written"
        if _digest(path, sync=False)[1] != expected["sha256"]:
            return f"{name} has other bytes than were written (SHA-256)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def _digest(path: Path, *, sync: bool) -> tuple[int, str]:
    """Size and SHA-256 of a file; with `sync` its bytes are on the disk, not only in memory, afterwards."""
    with open(path, "rb") as f:
        if sync:
            os.fsync(f.fileno())
        digest = hashlib.file_digest(f, "sha256")
        return f.tell(), digest.hexdigest()


def _text(content: dict[str, Any]) -> str:
    """The one way to write a manifest, so that any other byte shows."""
    body = json.dumps(content, sort_keys=True)
    sealed = {**content, "sha256": hashlib.sha256(body.encode()).hexdigest()}
    return json.dumps(sealed, sort_keys=True, indent=1) + "\n"


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
