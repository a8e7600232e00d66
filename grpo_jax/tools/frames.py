"""Messages over pipes: four bytes of length, then JSON. Never pickle: what comes from a sandbox is only read."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

MOST = 64 << 20  # bytes of a message


class Broken(Exception):
    """The other side is gone, late, or writes what is no message."""


def send(descriptor: int, message: Any, *, end: float = float("inf")) -> None:
    """Write a message; on a pipe that does not block, until the clock (`time.monotonic`) stands at `end`."""
    content = json.dumps(message).encode("ascii")
    rest = memoryview(struct.pack("=I", len(content)) + content)
    while rest:
        _wait(descriptor, select.POLLOUT, end)
        try:
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise Broken(f"cannot be written to: {error}") from None


def receive(descriptor: int, *, end: float = float("inf")) -> Any:
    """Read a message; raises `Broken` at the end of the stream, and when the clock stands at `end`."""
    (size,) = struct.unpack("=I", _read(descriptor, 4, end))
    if size > MOST:
        raise Broken(f"a message of {size} bytes, more than {MOST}")
    try:
        return json.loads(_read(descriptor, size, end))
    except ValueError:
        raise Broken("a message that is no JSON") from None


def _read(descriptor: int, size: int, end: float) -> bytes:
    parts, missing = [], size
    while missing:
        _wait(descriptor, select.POLLIN, end)
        part = os.read(descriptor, min(missing, 1 << 16))
        if not part:
            raise Broken("ended")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _wait(descriptor: int, event: int, end: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    left = end - time.monotonic()
    if not poll.poll(None if left == float("inf") else max(0.0, left * 1000)):
        raise Broken("did not answer in time")
