"""What Linux offers to lock a process in, through ctypes: namespaces, mounts, capabilities, Landlock, seccomp.

Each function is one system call or two; all raise OSError with the kernel's reason and the name of the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR, _SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522

# Landlock: rights on files by the version of the interface that brought them.
_READ = 1 << 2 | 1 << 3  # READ_FILE, READ_DIR
_MAKE = 1 << 1 | _READ | sum(1 << bit for bit in (4, 5, 7, 8, 10, 12))  # write, remove, make regular/dir/fifo/symlink
_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # REFER, TRUNCATE, IOCTL_DEV
_NETWORK, _SCOPES = 3, 3  # bind and connect over TCP (from 4); abstract sockets and signals (from 6)
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14


def _checked(result: int, call: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that are named by CLONE_NEW* for new ones."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount; for a bind, `kind` stays empty."""
    arguments = (source.encode(), target.encode(), kind.encode() or None)
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def read_only(target: str, *, recursive: bool = True, and_flags: int = MS_NOSUID | MS_NODEV) -> None:
    """Make a mount, and those below it, read-only, without set-user-id and without devices (Linux 5.12)."""
    attributes = struct.pack("=QQQQ", MS_RDONLY | and_flags, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    call = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), flags, attributes, len(attributes))
    _checked(call, f"mount_setattr {target}")


def pivot_root(new: str) -> None:
    """Make a mount the root of this mount namespace; the old root is gone."""
    os.chdir(new)
    _checked(_libc.syscall(_SYS_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def own_proc_files() -> None:
    """Give the files of this process in /proc back to it, after its user changed."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def drop_capabilities() -> None:
    """Give up every capability, and the way to get one by executing a file."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 and ctypes.get_errno() == errno.EINVAL:
            break  # above the last one
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, nothing = struct.pack("=II", _CAPABILITY_VERSION_3, 0), bytes(24)
    _checked(_libc.syscall(_SYS_CAPSET[platform.machine()], header, nothing), "capset")
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def landlock_version() -> int:
    """The version of the kernel's Landlock interface; 0: it has none, or none is switched on."""
    return max(0, _libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def landlock(version: int, *, readable: list[str], writable: list[str]) -> None:
    """Close the file system but for some places, for this process and all it starts; with it TCP and foreign signals.

    Needs `no_new_privs`, which `drop_capabilities` sets.

    Args:
        version: of `landlock_version`, at least 1.
        readable: directories whose files may be read, and nothing else.
        writable: directories in which files may be made, and single files (/dev/null) that may be written.
    """
    handled = sum(rights for since, rights in _RIGHTS.items() if version >= since)
    network, scopes = (_NETWORK if version >= 4 else 0), (_SCOPES if version >= 6 else 0)
    size = 8 * (1 + (version >= 4) + (version >= 6))
    rules = struct.pack("=QQQ", handled, network, scopes)
    created = _libc.syscall(_SYS_LANDLOCK_CREATE, rules, ctypes.c_size_t(size), 0)
    ruleset = _checked(created, "landlock_create_ruleset")
    try:
        rights = {path: _READ for path in readable} | {path: _MAKE | _REFER | _TRUNCATE for path in writable}
        for path, right in rights.items():
            _allow_below(ruleset, path, right & handled)
        _checked(_libc.syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow_below(ruleset: int, path: str, rights: int) -> None:
    if not os.path.isdir(path):
        rights &= _READ & ~(1 << 3) | _WRITE_FILE | _TRUNCATE
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, place)
        _checked(_libc.syscall(_SYS_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(place)


def seccomp(instructions: bytes) -> None:
    """Put a filter over the system calls of this process and all it starts; needs `no_new_privs`."""
    array = ctypes.create_string_buffer(instructions, len(instructions))
    described = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(array))
    _checked(_libc.prctl(_PR_SET_SECCOMP, 2, described, 0, 0), "prctl(PR_SET_SECCOMP)")
