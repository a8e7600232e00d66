"""The first process of a sandbox: gives itself a small read-only system, leaves its user behind, becomes the warm one.

It runs without site-packages, in an empty environment, with one JSON argument:

    root        a mount point for the system, or None where bubblewrap has made one
    namespaces  whether to use namespaces at all
    view        what is seen
    groups      descriptors of the control groups' lists of processes
    search      sys.path of programs
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from grpo_jax.tools import frames, kernel, warm

NOBODY = 65534


def main() -> None:
    """Run until the standard input ends, or say in one message why not."""
    spec = json.loads(sys.argv[1])
    try:
        for group in spec["groups"]:
            os.write(group, b"0")  # this process, and so all that come of it
            os.close(group)
        if spec["root"] is not None:
            make_system(spec["root"], spec["view"])
        if spec["namespaces"]:
            leave_user()
        warm.serve(spec)
    except (OSError, ImportError, frames.Broken) as error:
        frames.send(1, {"failed": str(error)})
        os._exit(1)


def make_system(root: str, view: dict[str, Any]) -> None:
    """Make a system of its own below `root`, without network, and go there.

    Raises OSError where the kernel refuses namespaces.
    """
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    if os.path.exists("/proc/self/ns/cgroup"):
        flags |= kernel.CLONE_NEWCGROUP
    if os.geteuid() == 0:
        kernel.unshare(flags)
    else:
        own_user_namespace(flags)
    socket.sethostname("sandbox")
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755,size=1m")
    for source, target in view["binds"]:
        _bind(source, root + target)
        kernel.read_only(root + target)
    for device in view["devices"]:
        _bind(device, root + device)
        kernel.read_only(root + device, and_flags=kernel.MS_NOSUID | kernel.MS_NOEXEC)
    for path in view["empty"]:
        kernel.mount("tmpfs", root + path, "tmpfs", kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV, "size=4k")
    for path in ("/tmp", "/dev/shm", "/proc"):
        os.makedirs(root + path, exist_ok=True)
    # For the maps of the next user namespace; each program has an empty directory over it.
    kernel.mount("/proc", f"{root}/proc", flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.read_only(root, recursive=False)
    kernel.pivot_root(root)


def leave_user() -> None:
    """Go on, in a child, as nobody and first process of new namespaces.

    Being nobody matters: root is not bound by the limit on processes, and its files are those of the machine. Raises
    OSError where the kernel refuses the namespaces.
    """
    if is_real_root():
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        kernel.own_proc_files()
    own_user_namespace(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWPID, name=NOBODY)
    child = os.fork()
    if child:
        os.close(0)
        os.close(1)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.die_with_parent()


def is_real_root() -> bool:
    """Whether this process is root of the machine, not only of a user namespace that has no other user to become."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        mapped = [line.split() for line in file]
    return os.geteuid() == 0 and any(int(first) <= NOBODY < int(first) + int(size) for first, _, size in mapped)


def own_user_namespace(flags: int, *, name: int | None = None) -> None:
    """Enter new namespaces with all rights in them, and none that this process did not have outside.

    Args:
        flags: CLONE_NEW* of the others.
        name: the user's number inside; None: the one it has.
    """
    user, group = os.geteuid(), os.getegid()
    inside = (user, group) if name is None else (name, name)
    kernel.unshare(kernel.CLONE_NEWUSER | flags)
    maps = {"setgroups": "deny", "uid_map": f"{inside[0]} {user} 1", "gid_map": f"{inside[1]} {group} 1"}
    for file, content in maps.items():
        with open(f"/proc/self/{file}", "w", encoding="ascii") as opened:
            opened.write(content)


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "a", encoding="ascii"):
            pass
    kernel.mount(source, target, flags=kernel.MS_BIND | kernel.MS_REC)
