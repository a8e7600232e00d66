"""Where a conversion runs and its result comes into being: beside its place, gone if it is not finished."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from grpo_jax.config import MeshConfig
from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.parameters import abstract_params
from grpo_jax.reporting.progress import Progress
from grpo_jax.sharding import ShardingError, make_mesh
from grpo_jax.stages.convert_source import ConvertError, bytes_below
from grpo_jax.stages.policy import abstract
from grpo_jax.training.interrupt import Interrupted

BYTES = {"float32": 4, "bfloat16": 2}
SPARE = 1.1  # room asked for, as a multiple of the weights' bytes
MEGABYTE = 10**6
INTERVAL = 0.5  # seconds between two looks at what is written
RESULT = "model"  # in the workspace


class MismatchError(ValueError):
    """What was written is not what was meant; the message says where it lies and what differs."""

    exit_code = 3


def new_directory(out: str, source: Path) -> Path:
    """The place of the result; raises `ConvertError` if there is something, or if it is within what is read."""
    path = Path(out).expanduser().absolute()
    if os.path.lexists(path):
        raise ConvertError(f"{out}: exists and is not overwritten; choose another directory or remove it")
    if path.resolve().is_relative_to(source.resolve()):
        raise ConvertError(f"{out}: lies in {source}, which is only read; choose a directory outside it")
    return path


def require_room(path: Path, size: int) -> None:
    """Raise `ConvertError` unless the disk has room for so many bytes and a tenth more."""
    there = next(parent for parent in path.parents if parent.exists())
    free, needed = shutil.disk_usage(there).free, int(SPARE * size)
    if free < needed:
        raise ConvertError(
            f"{path}: needs {needed:,} bytes (a tenth to spare), {free:,} are free on the disk of {there}; "
            "free some, or choose another directory"
        )


@contextlib.contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """A hidden directory beside the result, for this process alone; removed on leaving, by SIGTERM too.

    What a killed process left there is removed first. Raises `ConvertError` if another one is at work there.
    """
    folder = out.with_name(f".{out.name}.converting")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise ConvertError(f"{out}: cannot be written ({error.strerror})") from error
    with lock, ending_on_sigterm():
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConvertError(f"{out}: another conversion is writing it; wait for it, or stop it") from error
        try:
            for left in (path for path in folder.iterdir() if path.is_dir()):
                shutil.rmtree(left, ignore_errors=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM raises `Interrupted` here, so that what is half done is removed; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: Any) -> None:
        signal.signal(signum, signal.SIG_DFL)
        raise Interrupted("nothing was left; the same command begins again", signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def writing(folder: Path, size: int) -> Iterator[None]:
    """Show how `size` bytes come to lie below a directory, with rate and time left."""
    total = max(size // MEGABYTE, 1)
    done, ended = 0, threading.Event()

    def advance(most: int) -> None:
        nonlocal done
        if most > done:
            progress.advance(steps=most - done)
            done = most

    def watch() -> None:
        while not ended.wait(INTERVAL):
            advance(min(bytes_below(folder) // MEGABYTE, total - 1))

    thread = threading.Thread(target=watch, daemon=True)
    with Progress("write", total=total, unit="megabyte") as progress, progress.phase("write"):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        advance(total)


def finish(work: Path, out: Path, found: list[str]) -> None:
    """Give the result its name; if something was found wrong, another name, and raise `MismatchError`."""
    if found:
        names = (out.with_name(f"{out.name}.mismatch{n or ''}") for n in range(10**6))
        kept = next(name for name in names if not os.path.lexists(name))
        (work / RESULT).rename(kept)
        shown = [*found[:10], f"... and {len(found) - 10} more"] if len(found) > 10 else found
        shown = [line.replace(str(work / RESULT), str(kept)) for line in shown]
        raise MismatchError("\n".join([f"{kept}: what was written is not what was meant:", *shown]))
    if os.path.lexists(out):
        raise ConvertError(f"{out}: has come into being meanwhile, and is not overwritten")
    (work / RESULT).rename(out)
    handle = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def say(message: str) -> None:
    """Tell the user something."""
    print(message, flush=True)


def local_mesh(decoder: DecoderConfig) -> Mesh:
    """All devices of this process, or as many as divide every parameter; raises `ConvertError` if none can be had."""
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise ConvertError(
            f"no device can be had ({str(error).splitlines()[0]}); where a run holds the accelerators, "
            "JAX_PLATFORMS=cpu converts without them"
        ) from error
    for number in range(len(devices), 1, -1):
        mesh = make_mesh(MeshConfig(fsdp=number), devices[:number])
        with contextlib.suppress(ShardingError):
            abstract_params(decoder, mesh)
            abstract(decoder, mesh)
            return mesh
    return make_mesh(MeshConfig(fsdp=1), devices[:1])
