"""Run programs of a model: one, or many at once in warm processes.

    run("print(1 + 1)")                          ToolResult(status="ok", text="2")
    with Sandbox(workers=8) as sandbox:
        future = sandbox.submit("x + 1", earlier=["x = 41"])    # answers while others generate
        future.result()                          # always a ToolResult: what a program does is no error of the trainer

A program of several blocks is run anew at each block: the earlier ones first, in silence, then the last, all in one
namespace. So no process waits with a row's state while the model writes, any worker can take any block, and a worker's
death costs one result. Random numbers and the hash of strings have fixed seeds: the state is the same each time.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from grpo_jax.tools import selftest
from grpo_jax.tools.backends import BACKENDS, SAFE, WAY_OUT, candidates
from grpo_jax.tools.results import Limits, SandboxError, ToolResult
from grpo_jax.tools.view import PACKAGES, View, view
from grpo_jax.tools.worker import Worker

DEFAULT = Limits()


class Sandbox:
    """A pool of warm processes; as a context manager. Entering starts them and tries known attacks on them.

    Args:
        backend: auto, bubblewrap, namespaces, or unsafe.
        workers: programs at once; None: one a core, at most 8.
        packages: what programs can import beside the standard library, where installed.
        attacks: whether to try them; the result is in `record`. They are never tried on `unsafe`.

    Raises `SandboxError` on entering if there is no sandbox here, or an attack gets through one.
    """

    def __init__(
        self,
        backend: str = "auto",
        *,
        workers: int | None = None,
        packages: tuple[str, ...] = PACKAGES,
        attacks: bool = True,
    ):
        self.record: dict[str, Any] = {"asked": backend}
        self._candidates = candidates(backend)
        self._size = workers or min(8, os.cpu_count() or 1)
        self._packages, self._attacks = packages, attacks
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._workers: list[Worker] = []
        self._threads: ThreadPoolExecutor | None = None
        self._place = ""

    def __enter__(self) -> Sandbox:
        """Start the workers with the first backend that works here."""
        if self._threads is not None:
            raise SandboxError("the sandbox is entered already")
        self._place = tempfile.mkdtemp(prefix="grpo-jax-")
        # A worker dies with the thread that started it: these threads live as long as the pool.
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="sandbox")
        try:
            self._start(view(self._packages))
            if self._attacks and self.record["backend"] in SAFE:
                self.record["attacks"] = selftest.attack(self.submit, self._size)
                self._judge(self.record["attacks"])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all workers."""
        self.close()

    def submit(self, code: str, limits: Limits = DEFAULT, *, earlier: Sequence[str] = ()) -> Future[ToolResult]:
        """Run a program as soon as a worker is free; `earlier` are the blocks that it goes on from."""
        if self._threads is None:
            raise SandboxError("the sandbox is closed")
        blocks = [*earlier, code]
        refused = refusal(blocks, limits)
        if refused:
            future: Future[ToolResult] = Future()
            future.set_result(refused)
            return future
        return self._threads.submit(self._run, blocks, limits)

    def map(self, codes: Sequence[str], limits: Limits = DEFAULT) -> list[ToolResult]:
        """Run programs, as many at once as there are workers, and give their results in order."""
        return [future.result() for future in [self.submit(code, limits) for code in codes]]

    def close(self) -> None:
        """Kill all workers and what runs in them."""
        threads, self._threads = self._threads, None
        for worker in self._workers:
            worker.stop()
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._workers = []
        shutil.rmtree(self._place, ignore_errors=True)

    def _run(self, blocks: list[str], limits: Limits) -> ToolResult:
        worker = self._idle.get()
        try:
            return worker.run(blocks, asdict(limits))
        finally:
            self._idle.put(worker)

    def _start(self, seen: View) -> None:
        reasons = []
        for name in self._candidates:
            workers = [Worker(functools.partial(BACKENDS[name], seen), seen, self._place) for _ in range(self._size)]
            try:
                started = [self._threads.submit(worker.start) for worker in workers]
                layers, *_ = [future.result() for future in started]
            except SandboxError as error:
                reasons.append(f"{name}: {error}")
                for worker in workers:
                    worker.close()
                continue
            self._workers = workers
            for worker in workers:
                self._idle.put(worker)
            self.record |= {"backend": name, "layers": layers, "workers": self._size, "not_used": reasons}
            return
        raise SandboxError(f"no sandbox for programs here ({'; '.join(reasons)}): {WAY_OUT}")

    def _judge(self, attacks: dict[str, str]) -> None:
        through = {name: how for name, how in attacks.items() if how != selftest.CONTAINED}
        if through:
            listed = "; ".join(f"{name}: {how}" for name, how in through.items())
            raise SandboxError(f"the sandbox ({self.record['backend']}) does not hold: {listed}. {WAY_OUT}")


def refusal(blocks: Sequence[str], limits: Limits) -> ToolResult | None:
    """Why a program is not run; None: it is."""
    if not all(isinstance(block, str) for block in blocks):
        return ToolResult("refused", "Refused: a program must be text")
    size = sum(map(len, blocks))
    if size > limits.code:
        return ToolResult("refused", f"Refused: {size} characters of code, more than {limits.code}")
    return None


def run(code: str, limits: Limits = DEFAULT, *, earlier: Sequence[str] = (), backend: str = "auto") -> ToolResult:
    """Run one program; the first call starts a worker, which is kept for the next.

    Where there is no sandbox the result is `refused`, with the way out; `backend="unsafe"` runs it nevertheless.
    """
    try:
        return _single(backend, os.getpid()).submit(code, limits, earlier=earlier).result()
    except SandboxError as error:
        return ToolResult("refused", f"Refused: {error}")


@functools.cache
def _single(backend: str, process: int) -> Sandbox:
    sandbox = Sandbox(backend, workers=1, attacks=False).__enter__()
    atexit.register(_close, sandbox, process)
    return sandbox


def _close(sandbox: Sandbox, process: int) -> None:
    if os.getpid() == process:
        with contextlib.suppress(Exception):
            sandbox.close()
