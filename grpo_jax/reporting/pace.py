"""Where the time goes: seconds by phase of a step, steps a second, time left. No printing."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator

# Phases whose first call compiles, unless a phase named "compile..." came before
COMPILED = ("sample", "train", "evaluate")


@dataclasses.dataclass
class Phase:
    """A part of a step under way; `total` and `done` count its own parts (batches of an evaluation)."""

    name: str
    began: float
    first: bool = False
    total: int | None = None
    done: int = 0

    def advance(self, parts: int = 1) -> None:
        """Say that parts of the phase are done."""
        self.done += parts

    @property
    def title(self) -> str:
        """What the phase does now, in words."""
        parts = f" {self.done}/{self.total}" if self.total else ""
        compiling = ", compiling (first step)" if self.first and self.done == 0 else ""
        return self.name + parts + compiling


class Pace:
    """Clocks of a loop: `unit` is what it counts, phases may nest, and a second belongs to the innermost one only."""

    def __init__(
        self,
        name: str,
        total: int,
        start: int,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "step",
    ):
        self.name, self.total, self.step, self.start = name, total, start, start
        self.clock, self.unit = clock, unit
        self.seconds: dict[str, float] = {}  # of the step under way
        self.totals: dict[str, float] = {}  # of all steps before it
        self.phases: list[Phase] = []
        self.began = self.step_began = self._mark = clock()
        self._seen: set[str] = set()
        self._steps: deque[float] = deque(maxlen=20)

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Count the seconds inside under `name`, those of phases within it excepted."""
        self._settle()
        first = name in COMPILED and not any(seen == name or seen.startswith("compile") for seen in self._seen)
        self._seen.add(name)
        phase = Phase(name, self.clock(), first, total)
        self.phases.append(phase)
        try:
            yield phase
        finally:
            self._settle()
            self.phases.remove(phase)

    def advance(self, steps: int = 1) -> None:
        """End a step: its seconds go to the totals and `seconds` starts anew."""
        self._settle()
        now = self.clock()
        if self.step > self.start:  # the first step compiles and says nothing about the others
            self._steps.append((now - self.step_began) / steps)
        self.step += steps
        for phase in self.phases:
            phase.first = False  # a step within a phase is done: what it runs is compiled
        self.step_began = now
        for name, value in self.seconds.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.seconds = {}

    def _settle(self) -> None:
        now = self.clock()
        if self.phases:
            name = self.phases[-1].name
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._mark
        self._mark = now

    @property
    def rate(self) -> float | None:
        """Steps a second over the last steps; None before the second step is done."""
        spent = sum(tuple(self._steps))  # a copy: the display reads while the loop appends
        return len(self._steps) / spent if spent > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until the last step at the present rate; None while the rate is not known."""
        return (self.total - self.step) / self.rate if self.rate else None

    @property
    def shares(self) -> dict[str, float]:
        """Share of each phase in the time spent in phases, the longest first."""
        spent = {name: self.totals.get(name, 0.0) + self.seconds.get(name, 0.0) for name in self.totals | self.seconds}
        whole = sum(spent.values())
        order = sorted(spent, key=lambda name: -spent[name])
        return {name: spent[name] / whole for name in order} if whole > 0 else {}


def in_words(seconds: float) -> str:
    """A duration as people say it: "42 s", "3:05" or "2:10:00"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
