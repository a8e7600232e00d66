"""Checkpoints on disk: the one place that knows Orbax.

A step is a directory `<directory>/<step>/`. It is saved in the background and *announced* only when its bytes
are on the disk and its manifest (manifest.py) has been written last and read back. What has no whole manifest
was never saved. Reading checks every byte against the manifest; a step that fails is passed over by name.

Paths are local or mounted (NFS, FUSE); on several hosts all of them see the same directory.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.training import manifest, storage
from grpo_jax.training.manifest import CheckpointError

SHOWN = 5  # differences and faults named in one message


class Saved(NamedTuple):
    """A checkpoint that is on the disk."""

    step: int
    path: Path
    bytes: int
    seconds: float  # from the call of `save` to the manifest read back


class Latest(NamedTuple):
    """The newest good step, or None, and a line for each newer one that is not good."""

    step: int | None
    passed_over: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one stage in one directory.

    With a `save_total_limit` the directory is opened for writing: it is made, locked against a second run,
    and what a killed run left half done is removed. Without, it is only read. `announce(saved)` is called on
    process 0, from the saving thread, each time that a checkpoint has reached the disk; `spare(steps)` then says which
    of those there is not to be deleted, whatever the limit. All processes call
    every method at the same point of the program. As a context manager it waits for the last save on leaving.

    Raises `CheckpointError` (exit code 3) for a directory that another run writes to or that cannot be made.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        save_total_limit: int | None = None,
        *,
        announce: Callable[[Saved], None] = lambda saved: None,
        spare: Callable[[list[int]], int | None] = lambda steps: None,
    ):
        if "://" in str(directory):
            raise CheckpointError(f"{directory}: checkpoints need a local or mounted path; mount the bucket")
        self.directory = Path(directory).absolute()
        self._limit, self._announce, self._spare = save_total_limit, announce, spare
        self._checked: set[int] = set()  # steps whose every byte this process has compared or written
        self._ours: set[int] = set()  # steps that this run has saved or goes on from
        self._saved: Saved | None = None
        self._pending: Future | None = None
        self._orbax = self._lock = self._thread = None
        if save_total_limit is not None:
            self._open_for_writing()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Save a tree of arrays and a JSON-like `meta`; returns once the arrays may be donated or deleted.

        Waits for the save before this one, and raises its error if it failed. A step that this run has saved
        or restored is not saved again. Raises `CheckpointError` if the disk has no room for the arrays and a
        tenth more, or if a good checkpoint of this number is there that this run knows nothing of.
        """
        if self._thread is None:
            raise CheckpointError(f"{self.directory}: opened for reading; give a save_total_limit to save")
        started = time.monotonic()
        meta = json.loads(json.dumps(meta))  # what is no JSON shows here, and tuples are lists from now on
        self.wait()
        if not self._on_process_zero(lambda: self._make_room(step, state)):
            return
        self._orbax.save(self.directory / str(step), args=_orbax().args.PyTreeSave(state))
        body = {"step": step, "leaves": manifest.leaf_table(state), "meta": meta, "versions": _versions()}
        self._pending = self._thread.submit(self._finish, step, body, started)

    def poll(self) -> Saved | None:
        """The newest announced checkpoint of this run; raises the error of a failed save. Never waits."""
        return self.wait() if self._pending is not None and self._pending.done() else self._saved

    def wait(self) -> Saved | None:
        """Wait until the save in flight is on the disk; -> the newest announced, or the error of the save."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._saved = pending.result()
            self._checked.add(self._saved.step)
            self._ours.add(self._saved.step)
        return self._saved

    def latest(self, *, strict: bool = False) -> Latest:
        """The newest step whose every byte is as written, and why newer ones are passed over (on process 0).

        Waits for a save in flight. `strict` raises `CheckpointError` instead of passing over any.
        """
        self.wait()
        passed_over: list[str] = []

        def find() -> int:
            steps, others = storage.entries(self.directory)
            passed_over.extend(f"{self.directory / name}: its name is not a step" for name in others)
            for step in steps:
                try:
                    self._check(step)
                except CheckpointError as error:
                    passed_over.append(str(error))
                else:
                    break
            else:
                step = -1
            if strict and passed_over:
                raise CheckpointError("; ".join(passed_over))
            return step

        step = self._on_process_zero(find)
        return Latest(step if step >= 0 else None, tuple(passed_over))

    def meta(self, step: int) -> dict[str, Any]:
        """What was given to `save` as `meta`, after JSON; the arrays are not touched."""
        return manifest.read(self.directory / str(step))["meta"]

    def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """A saved tree, its containers and key types as in `abstract`, and its `meta`.

        `abstract` is a tree of ShapeDtypeStructs whose shardings say where the arrays go: any mesh will do.
        Raises `CheckpointError` naming changed files, or leaves whose name, type or shape is another.
        """
        content = self._trusted(step)
        self._compare(step, content["leaves"], manifest.leaf_table(abstract))
        ocp = _orbax()
        tree = self._load(step, ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(abstract))
        self._ours.add(step)
        return tree, content["meta"]

    def restore_params(self, step: int, abstract: Any, *, at: tuple[str, ...] = ("state", "params")) -> Any:
        """Only the part of a saved tree that lies at the path `at`; the rest is not read into memory.

        `abstract` is that part's tree of ShapeDtypeStructs with shardings. Raises as `restore`.
        """
        prefix = "/".join(at) + "/"
        leaves = self._trusted(step)["leaves"].items()
        saved = {name.removeprefix(prefix): leaf for name, leaf in leaves if name.startswith(prefix)}
        self._compare(step, saved, manifest.leaf_table(abstract))
        nested = abstract
        for name in reversed(at):
            nested = {name: nested}
        ocp = _orbax()
        where = ocp.checkpoint_utils.construct_restore_args(nested)
        args = ocp.args.PyTreeRestore(item=nested, restore_args=where, partial_restore=True)
        tree = self._load(step, ocp.PyTreeCheckpointHandler(), args)
        for name in at:
            tree = tree[name]
        return tree

    def close(self) -> None:
        """Wait for the save in flight and let the directory go; raises the error of a save that failed."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._orbax.close()
            if self._lock is not None:
                self._lock.close()
            self._thread = self._orbax = self._lock = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except CheckpointError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # the first error is the one to see

    def _open_for_writing(self) -> None:
        def claim() -> int:
            self._lock = storage.claim(self.directory)
            return 0

        self._on_process_zero(claim)
        ocp = _orbax()
        # Trained numbers hardly compress (8 %), and trying takes ten times as long as writing them.
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._thread = ThreadPoolExecutor(1, "checkpoint")

    def _make_room(self, step: int, state: Any) -> int:
        """1 if the step is to be saved, 0 if it already is; a broken step of this number is removed."""
        path = self.directory / str(step)
        if path.exists():
            try:
                self._check(step)
            except CheckpointError:
                storage.remove(path)
            else:
                if step in self._ours:
                    return 0
                raise CheckpointError(
                    f"{path}: is a good checkpoint that this run neither saved nor goes on from; "
                    "move it away, or choose another output_dir"
                )
        leaves = jax.tree.leaves(state)
        storage.require_room(self.directory, sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves))
        return 1

    def _finish(self, step: int, body: dict[str, Any], started: float) -> Saved:
        """In the saving thread: wait for Orbax, seal the step, read the seal, announce, delete old steps."""
        path = self.directory / str(step)
        try:
            self._orbax.wait_until_finished()
            if jax.process_index():
                return Saved(step, path, 0, time.monotonic() - started)
            written = manifest.write(path, body)
            if manifest.read(path) != written:
                raise CheckpointError(f"{path / manifest.NAME} reads back otherwise than it was written")
        except Exception as error:
            if jax.process_index() == 0:
                storage.discard(self.directory, step)
            reason = "the disk is full" if "No space left" in str(error) else str(error).partition("\n")[0]
            raise CheckpointError(
                f"{path}: not saved; earlier checkpoints still stand: {reason or type(error).__name__}"
            ) from error
        size = sum(file["bytes"] for file in written["files"].values())
        saved = Saved(step, path, size, time.monotonic() - started)
        self._announce(saved)
        self._delete_old(step)
        return saved

    def _delete_old(self, step: int) -> None:
        """Keep this step and the newest sealed ones before it, `save_total_limit` in all, and the one to spare."""
        steps = [number for number in storage.entries(self.directory)[0] if number <= step]
        sealed = [number for number in steps if (self.directory / str(number) / manifest.NAME).exists()]
        kept = {*sealed[: self._limit], self._spare(sealed)}
        for number in steps:
            if number not in kept:
                storage.remove(self.directory / str(number))

    def _check(self, step: int) -> dict[str, Any]:
        """The manifest of a step whose every byte is as written; raises `CheckpointError` otherwise."""
        path = self.directory / str(step)
        if not path.is_dir():
            steps = storage.entries(self.directory)[0]
            raise CheckpointError(f"{path}: there is no such checkpoint; there are {steps or 'none'}")
        content = manifest.read(path)
        if step not in self._checked:
            lines = manifest.faults(path, content)
            if lines:
                raise CheckpointError(f"{path}: {_some(lines)}")
            self._checked.add(step)
        return content

    def _trusted(self, step: int) -> dict[str, Any]:
        """The manifest of a step, its bytes compared by process 0 for all; waits for a save in flight."""
        self.wait()
        self._on_process_zero(lambda: bool(self._check(step)))
        return manifest.read(self.directory / str(step))

    def _compare(self, step: int, saved: dict[str, str], wanted: dict[str, str]) -> None:
        lines = manifest.differences(saved, wanted)
        if lines:
            raise CheckpointError(
                f"{self.directory / str(step)}: does not fit this run: {_some(lines)}; use the model and "
                "optimizer settings that it was saved with, or another output_dir"
            )

    def _load(self, step: int, handler: Any, args: Any) -> Any:
        path = self.directory / str(step)
        try:
            with _orbax().Checkpointer(handler) as checkpointer:
                return checkpointer.restore(path, args=args)
        except Exception as error:
            raise CheckpointError(f"{path}: Orbax cannot restore it: {error}") from error

    def _on_process_zero(self, function: Callable[[], int]) -> int:
        """Let process 0 decide and tell the others, so that all go the same way; its error is everybody's."""
        if jax.process_count() == 1:
            return function()
        from jax.experimental import multihost_utils

        error, answer = None, np.zeros(2, np.int32)
        if jax.process_index() == 0:
            try:
                answer[1] = function()
            except CheckpointError as raised:
                error, answer[0] = raised, 1
        failed, value = multihost_utils.broadcast_one_to_all(answer)
        if failed:
            raise error or CheckpointError(f"{self.directory}: refused by process 0, which says why")
        return int(value)


def _some(lines: list[str]) -> str:
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def _versions() -> dict[str, str]:
    return {"jax": jax.__version__, "orbax": _orbax().__version__}


def _orbax():
    """Orbax, imported late since it takes a while; what it logs with a traceback is raised here anyway."""
    import orbax.checkpoint

    logger = logging.getLogger("absl")
    if _not_from_orbax not in logger.filters:
        logger.addFilter(_not_from_orbax)
    return orbax.checkpoint


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname
