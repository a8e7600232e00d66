"""The directory of a run's checkpoints as folders: which steps there are, whose it is, whether it has room.

A step is a folder whose name is a whole number. Folders that a save or a deletion leaves when it is killed
have names of their own, so that they are never taken for a step.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from grpo_jax.training.manifest import CheckpointError

UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax renames `<step>.orbax-checkpoint-tmp` to `<step>` at the end
DELETED = ".deleting"
LOCK = ".lock"
MOST_TRIES = 100  # to lock what others remove each time; one is the rule
SPARE = 1.1  # free space asked for, as a multiple of the arrays' bytes


def entries(directory: Path) -> tuple[list[int], list[str]]:
    """Steps, newest first, and the names of other folders that are neither hidden nor leftovers."""
    if not directory.is_dir():
        return [], []
    names = [p.name for p in directory.iterdir() if p.is_dir() and not p.name.startswith(".")]
    names = sorted(name for name in names if UNFINISHED not in name and not name.endswith(DELETED))
    steps = [name for name in names if name.isdecimal() and name == str(int(name))]
    return sorted(map(int, steps), reverse=True), [name for name in names if name not in steps]


def claim(directory: Path) -> IO:
    """Make the directory, lock it against a second run, and remove what a killed run left half done.

    -> the open lock; closing it lets the directory go. Raises `CheckpointError`.
    """
    refused = f"{directory}: another run is writing here; stop it, or choose another output_dir"
    for _ in range(MOST_TRIES):
        lock = _open(directory)
        try:
            # A record lock dies with its process and is not inherited by its workers.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise CheckpointError(refused) from error
        if _is_there(lock, directory / LOCK):
            break
        lock.close()  # who held it removed it before it was locked here: it would keep nobody out
    else:
        raise CheckpointError(refused)
    for path in (*directory.glob(f"*{UNFINISHED}*"), *directory.glob(f"*{DELETED}")):
        shutil.rmtree(path, ignore_errors=True)
    return lock


def _open(directory: Path) -> IO:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return open(directory / LOCK, "a+")
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be written ({error.strerror})") from error


def _is_there(file: IO, path: Path) -> bool:
    """Whether the path still leads to the open file, and not to none or to one made since."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """The directory, claimed as long as it is needed; where nothing else has come into it, the lock goes too."""
    lock = claim(directory)
    try:
        yield
    finally:
        if directory.is_dir() and [path.name for path in directory.iterdir()] == [LOCK]:
            (directory / LOCK).unlink()  # while it is held: who has it open is refused, or finds it gone (`claim`)
        lock.close()


def require_room(directory: Path, size: int) -> None:
    """Raise `CheckpointError` unless the disk has room for `size` bytes and a tenth more."""
    needed, free = int(size * SPARE), shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"{directory}: a checkpoint needs {needed:,} bytes (a tenth to spare), {free:,} are free; "
            "free some, lower save_total_limit, or choose another output_dir"
        )


def remove(path: Path) -> None:
    """Delete a step so that a crash half way leaves no half step."""
    doomed = path.with_name(path.name + DELETED)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def discard(directory: Path, step: int) -> None:
    """Remove what a failed save of this step has left, under either name."""
    for path in (directory / str(step), *directory.glob(f"{step}{UNFINISHED}*")):
        shutil.rmtree(path, ignore_errors=True)
