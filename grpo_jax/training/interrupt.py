"""Stopping on request: SIGTERM and SIGINT set a flag that a loop asks for at its host-side boundaries.

The loop then saves its last finished step and raises `Interrupted`; what is half done is thrown away and made
again, bit for bit, on resuming. A second signal, a moment later, ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import jax
import numpy as np

from grpo_jax.sharding import global_to_host, start_gathering

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 1.0  # seconds in which a repeated signal is the same request: launchers signal a whole process group


class Interrupted(Exception):
    """The run was asked to stop and did; `exit_code` is 143 after SIGTERM and 130 after SIGINT."""

    exit_code = 143

    def __init__(self, message: str, signum: int = signal.SIGTERM):
        super().__init__(message)
        self.exit_code = 128 + signum


class Interruption:
    """A context in which SIGTERM and SIGINT only set a flag.

    Python hands a signal to the main thread, which may sit in a compilation for minutes; so a thread reads
    the signals as well, says at once that the first was heard, and ends the process on the second. Outside
    the main thread, where Python allows no handlers, the context does nothing.
    """

    def __init__(self, notice: str = "stopping after this step; a second signal stops at once"):
        self._notice = notice
        self._signum: int | None = None
        self._told = False  # whether all processes know that one has been asked to stop

    def __enter__(self) -> Interruption:
        self._before = None
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {s: signal.signal(s, self._note) for s in SIGNALS}
        self._watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        if self._before is None:
            return
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._before_fd)
        os.close(self._writer)  # the watcher reads the end of the pipe and ends
        self._watcher.join()
        os.close(self._reader)

    @property
    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._signum is not None

    def ask(self) -> Any:
        """Start to ask all processes; `requested_anywhere` of what this returns tells the answer.

        On several hosts the question is a program, which waits for those that were started before it: ask before you
        start what takes long.
        """
        return start_gathering(np.int32(self._signum or 0)) if jax.process_count() > 1 else None

    def requested_anywhere(self, asked: Any = None) -> bool:
        """Whether any process has been asked to stop: the same answer on all, so that they leave together.

        Every process must call it at the same point, and with what `ask` gave it, or ask now.
        """
        if jax.process_count() == 1:
            return self.requested
        heard = int(global_to_host(self.ask() if asked is None else asked).max())
        if heard:
            self._signum, self._told = self._signum or heard, True
        return self._told  # a signal that came after the question was asked waits for the next one

    def interrupted(self, message: str) -> Interrupted:
        """The exception to raise once the last finished step is saved."""
        return Interrupted(message, self._signum or signal.SIGTERM)

    def _note(self, signum, frame) -> None:
        self._signum = signum

    def _watch(self) -> None:
        first = None
        while data := os.read(self._reader, 64):
            for signum in (s for s in data if s in SIGNALS):
                if first is not None:
                    if time.monotonic() - first > ECHO:
                        os._exit(128 + signum)
                    continue
                first = time.monotonic()
                os.write(2, f"\n{signal.Signals(signum).name}: {self._notice}\n".encode())
