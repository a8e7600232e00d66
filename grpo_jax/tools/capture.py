"""Bytes of a pipe, of which a bounded part is kept: its start and its end."""

from __future__ import annotations

import os

CHUNK = 1 << 16
GAP = "\n...\n"


class Capture:
    """Keeps half of `most` bytes from the start of what it reads and half from its end."""

    def __init__(self, most: int):
        self.size = 0  # of all that came
        self._most_head, self._most_tail = most // 2, most - most // 2
        self._head, self._tail = bytearray(), bytearray()

    @property
    def cut(self) -> bool:
        """Whether something was thrown away."""
        return self.size > self._most_head + self._most_tail

    def read(self, descriptor: int) -> bool:
        """Read once; False at the end of the stream."""
        data = os.read(descriptor, CHUNK)
        self.add(data)
        return bool(data)

    def add(self, data: bytes) -> None:
        """Take bytes."""
        self.size += len(data)
        room = self._most_head - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        del self._tail[: -self._most_tail]

    def text(self) -> str:
        """What was kept, as text; bytes that are no UTF-8 become U+FFFD."""
        if not self.cut:
            return bytes(self._head + self._tail).decode("utf-8", "replace")
        return self._head.decode("utf-8", "replace") + GAP + self._tail.decode("utf-8", "replace")
