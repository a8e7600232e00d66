"""How a launcher ends: one clear message for an error that was foreseen, and the exit code that it stands for.

1 unexpected, 2 bad input, 3 bad checkpoint, 4 the run's health, 130 interrupted from the keyboard, 141 nobody reads
what is printed (`| head`), 143 by SIGTERM.
An exception says its own code in an attribute `exit_code`.
"""

from __future__ import annotations

import os
import select
import sys
import traceback

LINES = 20  # of an error message


def explain(error: BaseException, *, debug: bool) -> int:
    """Print an error, with its traceback if it is unexpected or if asked, and return the exit code."""
    if isinstance(error, BrokenPipeError) and _reader_has_gone():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 141
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    expected = hasattr(error, "exit_code") or isinstance(error, ValueError | OSError)
    code = getattr(error, "exit_code", 2 if expected else 1)
    if debug or not expected:
        traceback.print_exception(error)
    else:
        lines = (str(error) or type(error).__name__).splitlines()
        lines = lines if len(lines) < LINES else [*lines[: LINES - 2], "... (--debug shows all)"]
        print("stopped:" if code > 128 else "error:", "\n".join(lines), file=sys.stderr)
    return code


def _reader_has_gone() -> bool:
    """Whether what is printed goes to a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # no poll on this system, or no file behind stdout
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
