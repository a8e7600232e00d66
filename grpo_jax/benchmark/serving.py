"""The worker's side of a measurement: a process that holds one system and makes a step when it is told to.

Only the standard library is imported here, so that systems with environments of their own can use it. Commands come as
JSON lines on standard input, answers go as JSON lines to what was standard output; whatever the system prints goes to
the log, which is standard error.

    {"ready": {...}}                   once it has made its first step; how long starting and that step took
    <- {"command": "step"}             -> {"step": {"seconds": ..., "phases": {...}, "tokens": ...}}
    <- {"command": "finish"}           -> {"finish": {...}}, and the process ends
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.time()


class Finished(Exception):
    """Raised out of a training loop that has made all the steps that were asked for."""


class Conversation:
    """The channel to the process that measures, and the clock of the step under way.

    A training loop calls `between_steps` where one step ends and the next begins; the time until it is called again,
    less what was spent in it, is the step's.
    """

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what the system prints goes to the log
        self.started = process_started()
        self.steps = 0
        self.phases: dict[str, float] = {}
        self._clock: float | None = None
        self._first = 0.0

    def begin(self) -> None:
        """The first step begins: all before was starting up."""
        self._starting = time.time() - self.started
        self._clock = time.perf_counter()

    def between_steps(self, tokens: int, **more: Any) -> None:
        """Answer for the step that has just ended, and wait for the next; raises `Finished` when there is none."""
        seconds = time.perf_counter() - self._clock
        if self.steps == 0:
            self.tell("ready", startup_seconds=self._starting, first_seconds=seconds, pid=os.getpid(), **more)
        else:
            phases = {name: round(value, 5) for name, value in self.phases.items()}
            self.tell("step", seconds=seconds, phases=phases, tokens=tokens, **more)
        self.steps += 1
        line = sys.stdin.readline()
        if not line:  # who measured has died; there is nobody to finish for
            os._exit(1)
        if json.loads(line)["command"] == "finish":
            raise Finished
        self.phases = {}
        self._clock = time.perf_counter()

    def tell(self, kind: str, **values: Any) -> None:
        """Send an answer."""
        self._answers.write(json.dumps({kind: values}) + "\n")

    def timed(self, name: str, function: Callable, wait: Callable[[Any], Any] = lambda result: result) -> Callable:
        """The function, whose time (until `wait` of its result returns) is added to a phase of the step."""

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            wait(result)
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start
            return result

        return call

    def finish(self, **values: Any) -> None:
        """The last answer, with the memory that the process took."""
        self.tell("finish", **values)


def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The same for all systems, cheap and of some spread: the share of characters with an even code point."""
    return [sum(ord(c) % 2 == 0 for c in text) / max(len(text), 1) for text in completions]


def process_started() -> float:
    """When this process began, in seconds since the epoch; where the system does not say, when this was imported."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return STARTED


def peak_memory() -> dict[str, int]:
    """Bytes that this process held at its height, and those that its children hold now."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = own if sys.platform == "darwin" else own * 1024
    return {"peak_memory": own, "children_memory": sum(_share(pid) for pid in _descendants(os.getpid()))}


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in parents.get(parent, [])]
        found += front
    return found


def _share(pid: int) -> int:
    """Bytes of a process; of memory that it shares, its part."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
