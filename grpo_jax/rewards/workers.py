"""Worker processes that can be killed: what runs in them may hang, crash, exit or eat memory, and costs its item.

The processes are pebble's, forked by a fork server that is started before JAX and never imports it. They do not run
the trainer's main script again, so a script without an `if __name__ == "__main__"` guard is safe. What they print is
thrown away, they cannot see the accelerator, and the death of one is an outcome, not an error.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, TimeoutError, wait
from multiprocessing import context, forkserver
from typing import Any, Literal, NamedTuple

import pebble

PRELOAD = [
    "math_verify",
    "grpo_jax.rewards.symbolic",
]  # loaded once in the fork server, shared by all workers
START_LIMIT = 120.0  # seconds for a worker to start and prepare before the pool counts as broken
MAX_TRIES = 2  # of an item whose pool breaks
TASKS_PER_WORKER = 1000  # then it is replaced, which bounds the caches of sympy
ERROR_LENGTH = 4000  # characters of a traceback that travel back


class Outcome(NamedTuple):
    """What became of one item: its value, the traceback of its error, or nothing within the limit."""

    kind: Literal["value", "error", "timeout"]
    value: Any = None
    text: str = ""


class Workers:
    """A pool of killable processes; as a context manager, entered before JAX is initialised.

    Entering starts only the fork server, which loads math-verify beside the trainer; the workers themselves start
    with the first item, so a run that needs none pays nothing.

    Args:
        max_workers: processes; None: one a core, at most 8.
        time_limit: seconds an item may take where `map` is not told otherwise.
        memory: bytes of address space a worker may take where `map` is not told otherwise.
    """

    def __init__(self, max_workers: int | None = None, time_limit: float = 5.0, memory: int = 1 << 30):
        self.max_workers = max_workers or min(8, os.cpu_count() or 1)
        self.time_limit = time_limit
        self.memory = memory
        self._pool: pebble.ProcessPool | None = None
        self._preparations: tuple[bytes, ...] = ()
        self._turn = threading.RLock()  # of threads: one that gives up on its items replaces the workers of all

    def __enter__(self) -> Workers:
        """Start the fork server."""
        forkserver.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all workers."""
        self.close()

    def close(self) -> None:
        """Kill all workers; the next item starts new ones. Waits for what another thread has given them."""
        with self._turn:
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.stop()
                pool.join()

    def prepare(self, function: Callable[[Any], Any], item: Any) -> None:
        """Let every worker run `function(item)` before it takes work, outside any item's limit (to import a module)."""
        preparation = pickle.dumps((function, item))
        with self._turn:
            if preparation not in self._preparations:
                self._preparations += (preparation,)
                self.close()

    def ensure_started(self) -> None:
        """Start the workers now and wait until one answers."""
        self.map(_answer, [None], time_limit=START_LIMIT)

    def map(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        time_limit: float | None = None,
        memory: int | None = None,
        total: float | None = None,
    ) -> list[Outcome]:
        """Run `function` on every item in the workers and say what became of each, in order.

        Threads take turns: the items of one are all done, and its time has not begun, before those of the next.
        `function` must be importable by name (not from the main script), items and values must pickle.

        Args:
            time_limit: seconds for one item; its worker is killed then.
            memory: bytes of address space for one item.
            total: seconds for all; items that are not done then are timeouts.
        """
        limit = self.time_limit if time_limit is None else time_limit
        memory = self.memory if memory is None else memory
        if function.__module__ == "__main__":
            raise ValueError(
                f"{function.__qualname__} is defined in the main script, which workers do not run: put it in a module"
            )
        payloads = [pickle.dumps((function, item)) for item in items]
        with self._turn:
            return self._map(payloads, limit, memory, total)

    def _map(self, payloads: Sequence[bytes], limit: float, memory: int, total: float | None) -> list[Outcome]:
        end = time.monotonic() + (float("inf") if total is None else total)
        run = _Run(len(payloads))
        while run.waiting or run.running:
            # No more tasks are out than there are workers: a queued task could not be taken back without a kill.
            while run.waiting and len(run.running) < self.max_workers:
                index = run.waiting.pop()
                run.started(index, self._submit(payloads[index], limit, memory), limit)
            stop = min(end, *(stuck for _, stuck in run.running.values()))
            done, _ = wait(run.running, timeout=max(0.0, stop - time.monotonic()), return_when=FIRST_COMPLETED)
            if time.monotonic() >= end:
                break
            if not done or any(_is_broken(future) for future in done):
                run.collect(list(run.running))
                self.close()
            else:
                run.collect(done)
        run.collect([future for future in run.running if future.done() and not _is_broken(future)])
        if run.running:
            # Taking back single tasks would be a race with workers that finish: all workers are replaced.
            self.close()
        late = Outcome("timeout", text=f"not done within the {total} s for all items")
        return [late if outcome is None else outcome for outcome in run.outcomes]

    def _submit(self, payload: bytes, limit: float, memory: int) -> Future:
        if self._pool is not None and not self._pool.active:
            self.close()
        if self._pool is None:
            self._pool = pebble.ProcessPool(
                max_workers=self.max_workers,
                max_tasks=TASKS_PER_WORKER,
                initializer=_initialise,
                initargs=(self._preparations,),
                context=_Context(),
            )
        return self._pool.schedule(_call, args=(payload, limit, memory), timeout=limit)


class _Run:
    """How far one `map` has come."""

    def __init__(self, size: int):
        self.outcomes: list[Outcome | None] = [None] * size
        self.waiting = list(reversed(range(size)))
        self.running: dict[Future, tuple[int, float]] = {}  # -> the item, and when the pool counts as stuck
        self.tries = [0] * size

    def started(self, index: int, future: Future, limit: float) -> None:
        self.tries[index] += 1
        self.running[future] = (index, time.monotonic() + limit + START_LIMIT)

    def collect(self, futures: Iterable[Future]) -> None:
        """Take the outcomes of futures; those that a broken pool has left without one are tried once more."""
        for future in futures:
            index, _ = self.running.pop(future)
            if future.done() and not _is_broken(future):
                self.outcomes[index] = _outcome(future)
            elif self.tries[index] < MAX_TRIES:
                self.waiting.append(index)
            else:
                self.outcomes[index] = Outcome(
                    "error", text=f"the pool of workers broke {MAX_TRIES} times at this item"
                )


def _is_broken(future: Future) -> bool:
    return isinstance(future.exception(), BrokenExecutor)


def _outcome(future: Future) -> Outcome:
    try:
        kind, content = future.result()
        return Outcome("value", pickle.loads(content)) if kind == "value" else Outcome("error", text=content)
    except TimeoutError:
        return Outcome("timeout", text="not done within its time limit")
    except pebble.ProcessExpired as error:
        return Outcome("error", text=f"the worker died (exit code {error.exitcode})")
    except (Exception, CancelledError):
        return Outcome("error", text=f"the worker's answer cannot be read\n{traceback.format_exc()}"[-ERROR_LENGTH:])


# What runs in the worker.


def _initialise(preparations: tuple[bytes, ...]) -> None:
    """Make a fresh worker harmless: own process group, no output, no core file, no accelerator."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for preparation in preparations:
        # A failure here comes again, and is reported, when the item needs what could not be prepared.
        with contextlib.suppress(BaseException):
            function, item = pickle.loads(preparation)
            function(item)


def _call(payload: bytes, limit: float, memory: int) -> tuple[str, Any]:
    """Run one item; only plain values travel through pebble, whose pool breaks on what it cannot unpickle."""
    try:
        _limit_memory(memory)
        # The pool kills at `limit`. Should the trainer be dead by then, the kernel does it, even in C code.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit + 5.0)
        function, item = pickle.loads(payload)
        return "value", pickle.dumps(function(item))
    except BaseException:
        return "error", traceback.format_exc()[-ERROR_LENGTH:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(memory: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _answer(item: Any) -> Any:
    return item


# How workers are started and killed.

_starting = threading.Lock()


class _Process(context.ForkServerProcess):
    """A worker that does not run the trainer's main script again, and dies at once with all its children."""

    @staticmethod
    def _Popen(process):
        from multiprocessing.popen_forkserver import Popen

        main = sys.modules["__main__"]
        missing = object()
        with _starting:
            kept = {name: main.__dict__.get(name, missing) for name in ("__file__", "__spec__")}
            try:
                main.__dict__.pop("__file__", None)
                main.__spec__ = None
                return Popen(process)
            finally:
                main.__dict__.update({name: value for name, value in kept.items() if value is not missing})

    def terminate(self) -> None:
        """Kill the process group: the worker made its own, so its children are the only others in it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        self.kill()


class _Context(context.ForkServerContext):
    Process = _Process
