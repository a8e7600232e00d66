"""What a program may use, and what comes back of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Status = Literal["ok", "error", "timeout", "memory", "killed", "truncated", "refused"]


class SandboxError(Exception):
    """No sandbox can be had here, or one that does not hold; the message names the way out."""

    exit_code = 2


class ToolResult(NamedTuple):
    """How a program ended, and the text for the model.

    ok: it ended by itself. truncated: so it did, and the middle of its output was cut out. error: an exception, whose
    last line ends the text. timeout: over its wall or CPU time. memory: over its memory. killed: by a signal, or by
    ending its own process, or the sandbox died under it. refused: not run.
    """

    status: Status
    text: str


@dataclass(frozen=True)
class Limits:
    """Bounds of one program; the earlier blocks it continues have each the same time again."""

    wall: float = 10.0
    """Seconds on the clock."""
    cpu: float = 10.0
    """Seconds of computing, over all threads; rounded up."""
    memory: int = 512 << 20
    """Bytes beyond those of the warm process, over all processes of the program."""
    processes: int = 1
    """Processes of the program; 1: it cannot fork."""
    threads: int = 16
    """Threads beyond the first of each process."""
    file_size: int = 16 << 20
    """Bytes of one file it writes."""
    disk: int = 64 << 20
    """Bytes of all files it writes (in /tmp, and as much again in /dev/shm)."""
    output: int = 64 << 10
    """Bytes of output that are kept, half of them from its start and half from its end."""
    code: int = 256 << 10
    """Characters of all blocks together."""

    def __post_init__(self) -> None:
        """Raise ValueError naming the first bound that is not positive."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"limits: {name} is {value}, and must be above 0")
