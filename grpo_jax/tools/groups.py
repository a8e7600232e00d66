"""Control groups: bounds on the memory and the number of processes of a program over all its processes, by the kernel.

They need rights that a trainer does not always have; without them the bounds of each process and the ban on forking
do the same. Version 2 is used where it can be, else version 1.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from pathlib import Path

_NAME = "grpo-jax"
_count = itertools.count()


class Group:
    """One control group in each hierarchy that bounds memory or processes; there may be none."""

    def __init__(self, folders: list[Path]):
        self._folders = folders
        self.descriptors = [os.open(folder / "cgroup.procs", os.O_WRONLY) for folder in folders]
        self._bounds = (0, 0)
        self._settled = (0, 0)

    @property
    def kinds(self) -> list[str]:
        """What is bounded: memory, pids."""
        known = (("memory", ("memory.max", "memory.limit_in_bytes")), ("pids", ("pids.max",)))
        return [kind for kind, names in known if self._files(*names)]

    def settle(self) -> None:
        """Take what is in use now for what the warm process needs; bounds are counted from here."""
        self._bounds = (0, 0)
        used = sum(int(file.read_text()) for file in self._files("memory.current", "memory.usage_in_bytes"))
        tasks = max([int(file.read_text()) for file in self._files("pids.current")], default=0)
        self._settled = (used, tasks + 1)  # and the supervisor

    def bound(self, *, memory: int, tasks: int) -> None:
        """Set bounds in bytes and in processes and threads, beyond the warm process."""
        if self._bounds == (memory, tasks):
            return
        self._bounds = (memory, tasks)
        memory, tasks = memory + self._settled[0], tasks + self._settled[1]
        for names, most in (
            (("memory.max", "memory.limit_in_bytes"), memory),
            (("memory.swap.max",), 0),
            (("memory.memsw.limit_in_bytes",), memory),
            (("pids.max",), tasks),
        ):
            for file in self._files(*names):
                with contextlib.suppress(OSError):  # a limit cannot sink below what is in use
                    file.write_text(str(most))

    def kills(self) -> int:
        """How many processes the kernel killed in it for memory."""
        files = self._files("memory.events", "memory.oom_control")
        found = [re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE) for file in files]
        return sum(int(match[1]) for match in found if match)

    def close(self) -> None:
        """Remove it; nothing may run in it."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        for folder in self._folders:
            _remove(folder)
        self.descriptors, self._folders = [], []

    def _files(self, *names: str) -> list[Path]:
        return [folder / name for folder in self._folders for name in names if (folder / name).exists()]


def make_group() -> Group:
    """A new group below this process's own, wherever the kernel and its owner allow one."""
    folders: list[Path] = []
    with contextlib.suppress(OSError):
        for parent in _parents():
            for old in parent.glob(f"{_NAME}-*"):
                if not Path(f"/proc/{old.name.split('-')[2]}").exists():
                    _remove(old)
            folder = parent / f"{_NAME}-{os.getpid()}-{next(_count)}"
            with contextlib.suppress(OSError):
                folder.mkdir()
                if any((folder / name).exists() for name in ("memory.max", "memory.limit_in_bytes", "pids.max")):
                    folders.append(folder)
                else:
                    _remove(folder)
    return Group(folders)


def _parents() -> list[Path]:
    """This process's groups with a memory or process controller, from /proc/self/cgroup and the mounts."""
    mounts = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, (kind, _, options) = line.split()[:6], None, line.partition(" - ")[2].split(maxsplit=2)
        if kind in ("cgroup", "cgroup2"):
            for name in ["" if kind == "cgroup2" else option for option in options.split(",")]:
                mounts[name] = (Path(fields[4]), fields[3])
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name in mounts and name in ("", "memory", "pids"):
                place, root = mounts[name]
                relative = os.path.relpath(path, root)
                found.append(place / ("." if relative.startswith("..") else relative))
    return [folder for folder in found if folder.is_dir()]


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
