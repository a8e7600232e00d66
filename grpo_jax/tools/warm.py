"""The warm process: has the libraries loaded, forks a supervisor for each program, and never sees a program itself.

The supervisor reads the request, forks the program into a process namespace of its own, keeps its time, reads its
output, answers, and ends. So nothing of one program is in the memory of the next.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import mmap
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from typing import Any, NamedTuple

from grpo_jax.tools import filters, frames, kernel, program, syscalls
from grpo_jax.tools.capture import Capture

# Loads what numpy and sympy load late, so that no program waits for it: numpy.random alone took 12 ms of each.
FIRST = """
import numpy, sympy, mpmath, fractions, decimal, itertools, collections, math, random, threading
import bisect, cmath, datetime, functools, heapq, operator, re, statistics, string, time
import numpy.fft, numpy.linalg, numpy.polynomial, numpy.random
numpy.random.seed(0), str(numpy.linalg.solve(numpy.eye(2), numpy.ones(2)))
x, y = sympy.symbols("x y")
sympy.solve([x + y - 3, x - y - 1], [x, y]), sympy.solve(x**2 - 2, x), sympy.simplify(sympy.sin(x) ** 2 + x)
sympy.N(sympy.integrate(x**2, (x, 0, 1))), str(sympy.factor(x**2 - 1)), sympy.latex(sympy.sqrt(x))
"""
MARK_BYTES = 1 << 16  # of what a program's runner says about its end
GRACE = 0.2  # seconds for the pipes of a program that is dead


def serve(spec: dict[str, Any]) -> None:
    """Load the libraries, say so, and serve programs until the standard input ends; never returns."""
    os.environ.clear()
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    sys.path[:] = spec["search"]
    importlib.invalidate_caches()
    exec(compile(FIRST, "<warm>", "exec"), {})
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    machine = syscalls.architecture()
    layers = {
        "namespaces": spec["namespaces"],
        "landlock": kernel.landlock_version(),
        "seccomp": machine is not None,
    }
    filtered = [filters.program_filter(machine, processes=many) for many in (False, True)] if machine else []
    spec |= {"layers": layers, "baseline": _address_space(), "filters": filtered}
    gc.collect()
    gc.freeze()
    frames.send(1, {"ready": layers, "baseline": spec["baseline"]})
    while True:
        _wait_for_input()
        supervisor = os.fork()
        if not supervisor:
            _supervise(spec)
        _, status = os.waitpid(supervisor, 0)
        if status:
            os._exit(1)


def _wait_for_input() -> None:
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.poll()


def _address_space() -> int:
    """Bytes of address space of this process, found with the limit itself, as there may be no /proc."""
    low, high, old = 0, 1 << 40, resource.getrlimit(resource.RLIMIT_AS)
    while high - low > 1 << 20:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (middle, old[1]))
        try:
            mmap.mmap(-1, 4096).close()
            high = middle
        except OSError:
            low = middle
        finally:
            resource.setrlimit(resource.RLIMIT_AS, old)
    return high


def _supervise(spec: dict[str, Any]) -> None:
    """Serve one program; exits with 0 if the answer is written."""
    try:
        request = frames.receive(0)
        spec["scratch"] = None if spec["namespaces"] else tempfile.mkdtemp()
        output, mark = os.pipe(), os.pipe()
        if spec["namespaces"]:
            kernel.unshare(kernel.CLONE_NEWPID)
        child = os.fork()
        if not child:
            program.main(request, spec, output[1], mark[1])
        os.close(output[1])
        os.close(mark[1])
        answer = _watch(child, output[0], mark[0], request)
        if spec["scratch"]:
            shutil.rmtree(spec["scratch"], ignore_errors=True)
        frames.send(1, answer)
        os._exit(0)
    except BaseException:
        os._exit(1)


class _End(NamedTuple):
    """How a program's process ended: its exit code, or minus a signal; None: it was killed at its time limit."""

    code: int | None
    seconds: float  # of computing


def _watch(child: int, output: int, mark: int, request: dict[str, Any]) -> dict[str, Any]:
    """Read what a program writes until it ends or its time is over, and say what became of it."""
    limits, earlier = request["limits"], len(request["blocks"]) - 1
    printed, said = Capture(limits["output"]), Capture(MARK_BYTES)
    handle = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (output, mark, handle, 0):
        poll.register(descriptor, 0 if descriptor == 0 else select.POLLIN)
    end, started = time.monotonic() + limits["wall"] * max(1, earlier), not earlier
    ended = late = False
    while not ended:
        left = end - time.monotonic()
        late = late or left <= 0
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, left * 1000) if not late else 0)}
        if late or 0 in ready:  # 0: whoever asked is gone
            break
        for descriptor, capture in ((output, printed), (mark, said)):
            if descriptor in ready and not capture.read(descriptor):
                poll.unregister(descriptor)
        if not started and said.size > len(program.LOCKED):
            end, started = time.monotonic() + limits["wall"], True  # once: a program may forge it
        ended = handle in ready
    # The first process of a namespace takes all others with it.
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    for descriptor, capture in ((output, printed), (mark, said)):
        _drain(descriptor, capture)
    code = os.waitstatus_to_exitcode(status) if ended else None
    return _answer(printed, said, _End(code, usage.ru_utime + usage.ru_stime), limits, earlier)


def _drain(descriptor: int, capture: Capture) -> None:
    end = time.monotonic() + GRACE
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while time.monotonic() < end and capture.read(descriptor):
            pass


def _answer(printed: Capture, said: Capture, end: _End, limits: dict[str, Any], earlier: int) -> dict[str, Any]:
    """The status and text of a program that is dead."""
    verdict = said.text()
    if end.code is not None and not verdict.startswith(program.LOCKED):
        return {"failed": verdict or f"the process ended with {end.code} before it was locked in"}
    verdict = verdict.removeprefix(program.LOCKED)
    began = not earlier or verdict.startswith(program.STARTED)
    kind, text = verdict.removeprefix(program.STARTED)[:1], verdict.removeprefix(program.STARTED)[1:]
    before = printed.text().rstrip()
    if end.code is None:
        return _ended("timeout", before, f"Timeout: no result within {limits['wall']:g} s")
    if end.code == -signal.SIGKILL and end.seconds > 0.9 * limits["cpu"] * (1 + earlier):
        return _ended("timeout", before, f"Timeout: more than {limits['cpu']:g} s of computing")
    if end.code < 0:
        return _ended("killed", before, f"Killed: {_signal(-end.code)}")
    if not began:
        return _ended("killed", before, "Killed: an earlier block ended the program")
    if not kind:  # os._exit, or its descriptors are gone
        return _ended("killed", before, f"Killed: the program ended its process with {end.code}")
    if kind == program.ERROR:
        return _ended("error", before, text)
    if kind == program.MEMORY:
        return _ended("memory", before, text)
    return {"status": "truncated" if printed.cut or said.cut else "ok", "text": before or text}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _ended(status: str, before: str, last: str) -> dict[str, Any]:
    return {"status": status, "text": f"{before}\n{last}" if before else last}
