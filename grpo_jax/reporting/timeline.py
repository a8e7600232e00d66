"""Who waited for whom: what the devices, the loop and the graders did and when, and how long they had nothing to do.

Each process watches its own devices. A thread waits for one program after the other, in the order in which they were
started, so that the loop never does; a program runs from its start, or from the end of the one before, to the time its
result is there. Times are of the monotonic clock.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from grpo_jax.reporting.files import is_primary, read_json_lines, to_json, write_atomically

NAME = "timeline.jsonl"
KEPT = 8  # steps of a run whose spans are kept
DEVICE, LOOP, GRADERS = "device", "loop", "graders"
ASIDE = "aside"  # what is done between two steps and is no part of one: all of them wait for it, and none is idle


class Span(NamedTuple):
    """Something that took from `start` to `end`, in seconds."""

    where: str  # device, loop (the main thread), graders (the thread that reads and judges) or aside
    what: str
    step: int  # the step it is part of, from 1
    start: float
    end: float


class Running(NamedTuple):
    """A program that was started: when, and the arrays that are there when it has ended."""

    what: str
    step: int
    started: float
    arrays: Sequence[jax.Array]


class Timeline:
    """Records the spans of a loop of steps `start` to `total`; a context manager.

    `<directory>/timeline.jsonl` gets a line for each of the first, the last and some steps between; process 0 writes.
    """

    def __init__(self, directory: Path, total: int, start: int = 0, clock: Callable[[], float] = time.monotonic):
        self.path = directory / NAME
        self._total = total
        self._kept = kept_steps(total)
        self._clock = clock
        self._lock = threading.Condition()
        self._spans: list[Span] = []  # of the step under way, and what began in it
        self._waits: list[tuple[float, float]] = []  # of the loop
        self._running: list[Running] = []  # in the order of the device
        self._device_free = self._began = clock()
        self._queue: queue.SimpleQueue[Running | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="timeline", daemon=True)
        if is_primary():
            drop_after(self.path, start)

    def __enter__(self) -> Timeline:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join(timeout=1.0)  # what still runs after an error is not waited for

    def run(self, what: str, step: int, program: Callable[..., Any], *args: Any, of: Callable = lambda x: x, **named):
        """Start a program and return its result; `of` picks arrays of it that are not donated later."""
        before = self._clock()
        result = program(*args, **named)
        arrays = [leaf for leaf in jax.tree.leaves(of(result)) if isinstance(leaf, jax.Array)]
        at_once = all(array.is_ready() for array in arrays)  # a small one may run within the call
        running = Running(what, step, before if at_once else self._clock(), arrays)
        with self._lock:
            self._running.append(running)
        self._queue.put(running)
        return result

    @contextlib.contextmanager
    def span(self, where: str, what: str, step: int) -> Iterator[None]:
        """Record what the loop or the graders do."""
        start = self._clock()
        try:
            yield
        finally:
            self._add(Span(where, what, step, start, self._clock()))

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """The loop waits for others."""
        start = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._waits.append((start, self._clock()))

    def finish(self, step: int) -> dict[str, float]:
        """End a step: seconds that the devices, and that the whole host, had nothing to do, and those of each program.

        The host is idle while the loop waits and the graders neither read nor judge. Of a program that runs on, what
        has passed is counted; what was done aside is neither work of the devices nor their waiting. Keeps the spans if
        it is one of the steps that are kept. The last step ends when all programs have.
        """
        self._settle(everything=step == self._total)
        with self._lock:
            now, began = self._clock(), self._began
            spans, waits = [*self._spans, *self._open(now)], self._waits
            self._spans = [span for span in self._spans if span.step > step]  # sampled ahead
            self._waits, self._began = [], now
        within = [clip(span, began, now) for span in spans if span.end > began and span.start < now]

        def of(*places: str) -> list[tuple[float, float]]:
            return merged([(span.start, span.end) for span in within if span.where in places])

        idle = overlap(merged(waits), gaps(of(GRADERS), began, now))
        if step in self._kept and is_primary():
            self._keep(step, within, began, now)
        told = {"time/device_idle_s": now - began - length(of(DEVICE, ASIDE)), "time/host_idle_s": length(idle)}
        for span in spans:
            if (span.where, span.step) == (DEVICE, step):
                name = f"time/device_{span.what}_s"
                told[name] = told.get(name, 0.0) + span.end - span.start
        return told

    def _keep(self, step: int, spans: Sequence[Span], began: float, now: float) -> None:
        told = [span._asdict() | {"start": span.start - began, "end": span.end - began} for span in spans]
        rounded = [span | {name: round(span[name], 6) for name in ("start", "end")} for span in told]
        line = {"step": step, "seconds": round(now - began, 6), "spans": sorted(rounded, key=lambda s: s["start"])}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")

    def _add(self, span: Span) -> None:
        with self._lock:
            self._spans.append(span)

    def _open(self, now: float) -> list[Span]:
        """What the device runs now."""
        if not self._running:
            return []
        first = self._running[0]
        start = max(first.started, self._device_free)
        return [Span(DEVICE, first.what, first.step, start, now)] if start < now else []

    def _settle(self, *, everything: bool = False) -> None:
        """Wait until the thread has seen the end of what has ended, or of everything."""
        with self._lock:
            if everything:
                self._lock.wait_for(lambda: not self._running)
                return
            over = itertools.takewhile(lambda r: all(array.is_ready() for array in r.arrays), self._running)
            left = len(self._running) - sum(1 for _ in over)
            self._lock.wait_for(lambda: len(self._running) <= left, timeout=1.0)

    def _watch(self) -> None:
        while (running := self._queue.get()) is not None:
            with contextlib.suppress(Exception):  # a program that fails tells the loop
                for array in running.arrays:
                    array.block_until_ready()
            with self._lock:
                now = self._clock()
                start = max(running.started, self._device_free)
                self._device_free = now
                self._running.pop(0)
                self._spans.append(Span(DEVICE, running.what, running.step, min(start, now), now))
                self._lock.notify_all()


def kept_steps(total: int) -> set[int]:
    """The steps, from 1, whose spans are kept: the first two, the last, and some at equal distances between."""
    return {1, 2, *(round(1 + i * (total - 1) / (KEPT - 2)) for i in range(KEPT - 1))} & set(range(1, total + 1))


def clip(span: Span, start: float, end: float) -> Span:
    """The part of a span between two times."""
    return span._replace(start=max(span.start, start), end=min(span.end, end))


def merged(pieces: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of intervals, in order and apart."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(pieces):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((start, end))
    return result


def gaps(pieces: Sequence[tuple[float, float]], start: float, end: float) -> list[tuple[float, float]]:
    """What merged intervals leave of the time from start to end."""
    ends = [start, *(end for _, end in pieces)]
    starts = [*(start for start, _ in pieces), end]
    return [(a, b) for a, b in zip(ends, starts, strict=True) if b > a]


def overlap(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The intersection of two lists of merged intervals."""
    both = [(max(s, t), min(e, f)) for s, e in a for t, f in b]
    return [(start, end) for start, end in both if end > start]


def length(pieces: Sequence[tuple[float, float]]) -> float:
    """Seconds in merged intervals."""
    return sum(end - start for start, end in pieces)


def drop_after(path: Path, step: int) -> None:
    """Drop the lines after a step: a run that resumes there writes them again."""
    if path.exists():
        kept = [line for line in read_json_lines(path)[0] if line.get("step", 0) <= step]
        write_atomically(path, "".join(to_json(line) + "\n" for line in kept))
