"""The trainer's side of one warm process: starts it, asks it, keeps the time, and replaces it when it dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

from grpo_jax.tools import frames
from grpo_jax.tools.backends import ENVIRONMENT
from grpo_jax.tools.groups import make_group
from grpo_jax.tools.results import SandboxError, ToolResult
from grpo_jax.tools.view import DEVICES, View

START_LIMIT = 120.0  # seconds for the libraries to load
GRACE = 5.0  # seconds after a program's limit in which the supervisor must have answered


class Worker:
    """One warm process, used by one thread at a time."""

    def __init__(self, command: Callable[[dict[str, Any]], list[str]], seen: View, place: str):
        self._command = command
        self._group = make_group()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._spec = {
            "root": place,
            "view": {"binds": seen.binds, "empty": seen.empty, "devices": DEVICES},
            "groups": self._group.descriptors,
            "search": seen.search,
            "readable": [*(target for _, target in seen.binds), *DEVICES],
        }

    def start(self) -> dict[str, Any]:
        """Start the process and wait until it is warm; says which layers of protection it has.

        Raises `SandboxError` with the reason if it cannot be started.
        """
        with tempfile.TemporaryFile() as errors:
            try:
                self._process = subprocess.Popen(
                    self._command(self._spec),
                    env=ENVIRONMENT,
                    cwd="/",
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=self._group.descriptors,
                    start_new_session=True,
                )
                answer = frames.receive(self._process.stdout.fileno(), end=time.monotonic() + START_LIMIT)
            except (OSError, frames.Broken) as error:
                self.kill()
                errors.seek(0)
                said = errors.read(4000).decode("utf-8", "replace").strip().splitlines()
                raise SandboxError(said[-1] if said else str(error)) from None
        if "ready" not in answer:
            self.kill()
            raise SandboxError(answer.get("failed", "no answer"))
        layers = answer["ready"] | {"groups": self._group.kinds}
        self._group.settle()
        return layers

    def run(self, blocks: list[str], limits: dict[str, Any]) -> ToolResult:
        """Run a program; whatever happens to it, or to the process, is a result."""
        if self._closed:
            return ToolResult("killed", "Killed: the sandbox was closed")
        try:
            if self._process is None:
                self.start()
            if self._closed:
                raise SandboxError("was closed")
            result = self._ask(blocks, limits)
        except (SandboxError, frames.Broken, OSError) as error:
            self.kill()
            return ToolResult("killed", f"Killed: the sandbox {error}")
        return result

    def kill(self) -> None:
        """Kill the process, and with its namespaces everything in them."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()

    def stop(self) -> None:
        """Kill the process for good, from any thread; the one that waits for an answer gets none."""
        self._closed = True
        process = self._process
        if process is not None:
            _kill(process)

    def close(self) -> None:
        """Kill the process for good, when no thread uses it any more."""
        self.stop()
        self.kill()
        self._group.close()

    def _ask(self, blocks: list[str], limits: dict[str, Any]) -> ToolResult:
        tasks = limits["processes"] * (1 + limits["threads"])
        self._group.bound(memory=limits["memory"] + 2 * limits["disk"], tasks=tasks)
        before = self._group.kills()
        late = limits["wall"] * len(blocks) + GRACE
        end = time.monotonic() + late
        frames.send(self._process.stdin.fileno(), {"blocks": blocks, "limits": limits}, end=end)
        answer = frames.receive(self._process.stdout.fileno(), end=end)
        if "failed" in answer:
            raise SandboxError(f"could not be closed around the program: {answer['failed']}")
        status, text = str(answer["status"]), str(answer["text"])
        if status == "killed" and self._group.kills() > before:
            return ToolResult("memory", text.rpartition("\n")[0] + "\nMemoryError")
        return ToolResult(status, text)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, which dies with its namespaces, and what is still in its group."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
