"""The seccomp filter of a program: the calls of `syscalls.py`, and a few by their arguments.

A refused call fails with EPERM (EAGAIN where the kernel says it so: a process that may not be started), so that the
program gets a Python exception and its author a message; nothing is killed by the filter.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence

from grpo_jax.tools import syscalls

# struct seccomp_data: nr, arch, instruction_pointer, args[6]; the low half of an argument comes first.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000

_CLONE_THREAD = 0x00010000
_NAMESPACES = 0x7E020000 | 0x00000080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} and CLONE_NEWTIME
_AF_UNIX = 1
_PRCTL = (15, 16, 3, 23, 39)  # PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS
_IOCTL = (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONBIO, FIONREAD, FIO(N)CLEX

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def program_filter(machine: str, *, processes: bool) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        machine: x86_64 or aarch64.
        processes: whether fork is allowed; threads are in any case, new namespaces and execve never.
    """
    judged = syscalls.numbers(syscalls.JUDGED, machine)
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, syscalls.ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        _fail(errno.EPERM),
    ]
    for number in syscalls.numbers(syscalls.ALLOWED, machine).values():
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for name in ("fork", "vfork"):
        if name in judged:
            lines += _case(judged[name], [(_RETURN, 0, 0, _ALLOW) if processes else _fail(errno.EAGAIN)])
    # glibc falls back to clone, whose flags a filter can read.
    lines += _case(judged["clone3"], [_fail(errno.ENOSYS)])
    lines += _case(judged["clone"], _clone(processes))
    lines += _case(judged["socketpair"], _one_of(0, [_AF_UNIX]))
    lines += _case(judged["prctl"], _one_of(0, _PRCTL))
    lines += _case(judged["ioctl"], _one_of(1, _IOCTL))
    lines += [_fail(errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _fail(code: int) -> Instruction:
    return (_RETURN, 0, 0, _FAIL | code)


def _case(number: int, body: Sequence[Instruction]) -> list[Instruction]:
    """Instructions that run, and return, for one call only."""
    return [(_EQUAL, 0, len(body), number), *body]


def _clone(processes: bool) -> list[Instruction]:
    flags = [(_LOAD, 0, 0, _ARGUMENTS), (_ANY_BIT, 0, 1, _NAMESPACES), _fail(errno.EPERM)]
    allowed = (_RETURN, 0, 0, _ALLOW)
    if processes:
        return [*flags, allowed]
    return [*flags, (_ANY_BIT, 0, 1, _CLONE_THREAD), allowed, _fail(errno.EAGAIN)]


def _one_of(argument: int, values: Sequence[int]) -> list[Instruction]:
    lines: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    for value in values:
        lines += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*lines, _fail(errno.EPERM)]
