"""Several systems measured in one run: each in a process of its own that is told when to make a step.

They take turns, round after round, so that what else the machine does falls on all of them alike; a ratio is taken
within a round, and of all rounds the median is told.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

START_LIMIT, STEP_LIMIT, END_LIMIT = 1200.0, 1200.0, 600.0  # seconds
LOG_LINES = 15  # of a dead worker's log that are shown


class WorkerError(RuntimeError):
    """A system that died, hung or answered nonsense; names its log."""

    exit_code = 1


class System(NamedTuple):
    """How a system is started."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = {}


class Step(NamedTuple):
    """One step of one system."""

    system: str
    round: int
    seconds: float
    phases: dict[str, float]
    tokens: int


class Worker:
    """A running system."""

    def __init__(self, system: System, log: Path):
        self.system, self.log = system, log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                system.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | dict(system.environment),
            )

    def ask(self, command: str, kind: str, limit: float) -> dict[str, Any]:
        """Send a command and return what it answers; raises `WorkerError`."""
        try:
            self.process.stdin.write(json.dumps({"command": command}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it is dead; its answer will not come
        return self.answer(kind, limit)

    def answer(self, kind: str, limit: float) -> dict[str, Any]:
        """The next answer, which must be of a kind; raises `WorkerError` if none comes in so many seconds."""
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        if not ready:
            self.stop()
            raise WorkerError(f"{self.system.name}: nothing came for {limit:.0f} s; its log is {self.log}")
        line = self.process.stdout.readline()
        try:
            return json.loads(line)[kind]
        except (ValueError, KeyError, TypeError) as error:
            raise WorkerError(self._obituary(line)) from error

    def _obituary(self, line: bytes) -> str:
        code = self.stop()
        said = f"answered {line[:200]!r}" if line else f"ended with exit code {code}"
        tail = self.log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
        return "\n".join([f"{self.system.name} {said}; its log is {self.log}, which ends with", *tail])

    def stop(self) -> int:
        """End the process if it has not ended, and return its exit code."""
        try:
            return self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Measured(NamedTuple):
    """What a run has found."""

    ready: dict[str, dict[str, Any]]  # by system: start-up, first step, versions, devices
    steps: list[Step]
    finish: dict[str, dict[str, Any]]  # by system: memory, and what it measured by itself at the end


def measure(
    systems: Sequence[System], folder: Path, *, rounds: int, steps: int, tell: Callable[[str], None] = print
) -> Measured:
    """Start all systems, let them take turns, and end them; logs go to `folder`. Raises `WorkerError`."""
    workers: dict[str, Worker] = {}
    done: list[Step] = []
    try:
        ready = {}
        for system in systems:  # one after the other: starting is measured too
            start = time.perf_counter()
            workers[system.name] = Worker(system, folder / f"{system.name.replace('/', '_')}.log")
            ready[system.name] = workers[system.name].answer("ready", START_LIMIT)
            tell(f"{system.name}: ready after {time.perf_counter() - start:.1f} s ({ready[system.name].get('system')})")
        for number in range(rounds):
            for name, worker in workers.items():
                for _ in range(steps):
                    answer = worker.ask("step", "step", STEP_LIMIT)
                    done.append(Step(name, number, answer["seconds"], answer["phases"], answer["tokens"]))
            seconds = (f"{name} {_median(done, name, number):.2f} s" for name in workers)
            tell(f"round {number + 1} of {rounds}: {', '.join(seconds)}")
        finish = {}
        for name, worker in workers.items():
            finish[name] = worker.ask("finish", "finish", END_LIMIT)
        return Measured(ready, done, finish)
    finally:
        for worker in workers.values():
            worker.process.stdin.close()
            worker.stop()


def _median(steps: Sequence[Step], name: str, number: int) -> float:
    return statistics.median(s.seconds for s in steps if (s.system, s.round) == (name, number))


def medians(steps: Sequence[Step], name: str) -> dict[str, float]:
    """Of one system: seconds of a step and of each phase, and tokens of a step."""
    own = [s for s in steps if s.system == name]
    phases = {phase: statistics.median(s.phases[phase] for s in own) for phase in own[0].phases}
    whole = {"step": statistics.median(s.seconds for s in own), "tokens": statistics.median(s.tokens for s in own)}
    return whole | phases


def ratio(steps: Sequence[Step], name: str, base: str) -> float:
    """How many times longer a step of `name` takes than one of `base`: medians within a round, then over rounds."""
    rounds = sorted({s.round for s in steps})
    return statistics.median(_median(steps, name, r) / _median(steps, base, r) for r in rounds)
