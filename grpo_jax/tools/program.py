"""The process of one program: locks itself in, runs the blocks, and says how they ended.

What it says, on descriptor 3, is letters and a text. A program can forge them once it runs, as it can print what it
likes; only the first letter, which says that it is locked in, is written before.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import errno
import math
import os
import random
import resource
import signal
import sys
import threading
import traceback
import types
from typing import Any

from grpo_jax.tools import kernel

LOCKED, STARTED, VALUE, ERROR, MEMORY = "L", "S", "V", "E", "M"  # in this order; one of the last three
_SAID, _KEPT = 3, 4  # the descriptors of a program: 0, 1, 2, and these for its runner
_MOST_TEXT = 1 << 15
_FILES = 64  # descriptors


def main(request: dict[str, Any], spec: dict[str, Any], output: int, said: int) -> None:
    """Become the program; never returns."""
    code = 1
    try:
        try:
            said = _descriptors(output, said)
            confine(request["limits"], len(request["blocks"]), spec)
        except BaseException as error:
            say(f"{type(error).__name__}: {error}", said)
            os._exit(1)
        say(LOCKED)
        run(request["blocks"])
        code = 0
    finally:
        os._exit(code)


def confine(limits: dict[str, Any], blocks: int, spec: dict[str, Any]) -> None:
    """Take everything from this process that a program does not need.

    Raises OSError if the kernel refuses a part of it that the kernel was found to have.
    """
    os.setsid()
    kernel.die_with_parent()
    if spec["namespaces"]:
        _private_places(limits["disk"])
    home = spec["scratch"] or "/tmp"
    os.chdir(home)
    os.environ.clear()
    os.environ.update(HOME=home, TMPDIR=home, LANG="C.UTF-8", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    _bound(limits, blocks, spec)
    kernel.drop_capabilities()
    if spec["layers"]["landlock"]:
        writable = [home, "/dev/null", *([] if spec["scratch"] else ["/dev/shm"])]
        readable = [path for path in spec["readable"] if os.path.exists(path)]
        kernel.landlock(spec["layers"]["landlock"], readable=readable, writable=writable)
    if spec["filters"]:
        kernel.seccomp(spec["filters"][limits["processes"] > 1])


def _private_places(size: int) -> None:
    """Put new empty directories over those that can be written, and over what tells of processes."""
    kernel.unshare(kernel.CLONE_NEWNS)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    for path in ("/tmp", "/dev/shm"):
        kernel.mount("tmpfs", path, "tmpfs", flags, f"size={size},nr_inodes=4096,mode=1777")
    kernel.mount("tmpfs", "/proc", "tmpfs", flags | kernel.MS_RDONLY, "size=4k,mode=555")


def _descriptors(output: int, said: int) -> int:
    """Leave open: nothing to read, the output, no place for errors, and the runner's two; say where `said` is now."""
    null = os.open(os.devnull, os.O_RDWR)
    wanted = (null, output, null, said, output)
    for number, descriptor in enumerate(wanted):
        os.dup2(descriptor, _FILES + number)  # out of the way first
    for number in range(len(wanted)):
        os.dup2(_FILES + number, number)
    os.closerange(len(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return _SAID


def _bound(limits: dict[str, Any], blocks: int, spec: dict[str, Any]) -> None:
    processes, threads = limits["processes"], limits["threads"]
    bounds = {
        resource.RLIMIT_AS: spec["baseline"] + limits["memory"] // processes,
        resource.RLIMIT_CPU: math.ceil(limits["cpu"] * blocks),
        resource.RLIMIT_FSIZE: limits["file_size"],
        resource.RLIMIT_NOFILE: _FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if spec["namespaces"]:
        # Counted in the user namespace: the warm process, the supervisor, and the program's own.
        bounds[resource.RLIMIT_NPROC] = 2 + processes * (1 + threads)
    for name, most in bounds.items():
        resource.setrlimit(name, (most, most))


def run(blocks: list[str]) -> None:
    """Run the blocks in one namespace, all but the last in silence, and say how the last one ended."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv[:] = [""]
    builtins.exit = builtins.quit = sys.exit  # as `site` has them, which is not loaded here
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    if len(blocks) > 1:
        os.dup2(0, 1)
        _new_output()
        for block in blocks[:-1]:
            with contextlib.suppress(BaseException):
                execute(block, module.__dict__)
        os.dup2(_KEPT, 1)
        say(STARTED)
    os.close(_KEPT)
    _new_output()
    kind, text = _ending(blocks[-1], module.__dict__)
    with contextlib.suppress(BaseException):
        threading._shutdown()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    say(kind + text[:_MOST_TEXT])


def _new_output() -> None:
    # By lines, so that what was printed is there whatever the program does next.
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115


def _ending(block: str, namespace: dict[str, Any]) -> tuple[str, str]:
    try:
        value = execute(block, namespace)
        return VALUE, "" if value is None else str(value)
    except SystemExit as error:
        return (VALUE, "") if error.code in (None, 0) else (ERROR, f"SystemExit: {error.code}")
    except BaseException as error:
        full = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        return MEMORY if full else ERROR, last_line(error)


def execute(block: str, namespace: dict[str, Any]) -> Any:
    """Run a block; the value of its last statement if that is an expression, else None."""
    tree = ast.parse(block, "<program>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<program>", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "<program>", "eval"), namespace) if last else None


def last_line(error: BaseException) -> str:
    """The line that ends the error's traceback; its type alone where there is no memory for the message."""
    try:
        lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
        return lines[-1] if lines else type(error).__name__
    except BaseException:
        return "MemoryError" if isinstance(error, MemoryError) else "an error that cannot be shown"


def say(text: str, descriptor: int = _SAID) -> None:
    """Tell the supervisor."""
    with contextlib.suppress(OSError):
        os.write(descriptor, text.encode("utf-8", "replace"))
