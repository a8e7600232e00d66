"""The system calls a program may make, by name, with their numbers on x86-64 and on aarch64; all others are refused.

A list of what is allowed, not of what is forbidden: what the next kernel adds is closed until it is listed here. Not in
it are, among others, execve, socket, ptrace, mount, unshare, setns, keyctl, bpf, io_uring, userfaultfd, memfd_create,
and the shared memory of System V. The numbers are those of the kernel's headers.
"""

from __future__ import annotations

import platform

ALLOWED = """
# files
read 0 63, write 1 64, close 3 57, fstat 5 80, lseek 8 62, pread64 17 67, pwrite64 18 68, readv 19 65,
writev 20 66, preadv 295 69, pwritev 296 70, sendfile 40 71, copy_file_range 326 285, fcntl 72 25,
flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, fallocate 285 47,
fadvise64 221 223, getcwd 79 17, chdir 80 49, fchdir 81 50, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452,
umask 95 166, statfs 137 43, fstatfs 138 44, getdents64 217 61, openat 257 56, mkdirat 258 34,
newfstatat 262 79, unlinkat 263 35, renameat 264 38, renameat2 316 276, linkat 265 37, symlinkat 266 36,
readlinkat 267 78, faccessat 269 48, faccessat2 439 439, statx 332 291, utimensat 280 88, close_range 436 436,
dup 32 23, dup3 292 24, pipe2 293 59, open 2 -, stat 4 -, lstat 6 -, access 21 -, pipe 22 -, dup2 33 -,
getdents 78 -, rename 82 -, mkdir 83 -, rmdir 84 -, link 86 -, unlink 87 -, symlink 88 -, readlink 89 -,
chmod 90 -, utime 132 -, utimes 235 -, futimesat 261 -,
# memory
mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, madvise 28 233, brk 12 214, membarrier 324 283,
# time and signals
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136,
rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128,
nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169,
getitimer 36 102, setitimer 38 103, times 100 153, alarm 37 -, pause 34 -, time 201 -, timer_create 222 107,
timer_settime 223 110, timer_gettime 224 108, timer_delete 226 111, timer_getoverrun 225 109, kill 62 129,
tkill 200 130, tgkill 234 131,
# processes, which are the program's own
getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174, getgid 104 176, geteuid 107 175,
getegid 108 177, getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgid 121 155, getpgrp 111 -,
getsid 124 156, setsid 112 157, setpgid 109 154, getrlimit 97 163, setrlimit 160 164, prlimit64 302 261,
getrusage 98 165, sysinfo 99 179, uname 63 160, getcpu 309 168, getrandom 318 278, capget 125 90,
wait4 61 260, waitid 247 95, exit 60 93, exit_group 231 94, futex 202 98, set_tid_address 218 96,
set_robust_list 273 99, get_robust_list 274 100, rseq 334 293, sched_yield 24 124, sched_getaffinity 204 123,
sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125,
sched_get_priority_min 147 126, getpriority 140 141,
# waiting, and pairs of sockets that lead nowhere else
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20,
epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19,
sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212, shutdown 48 210, getsockopt 55 209,
setsockopt 54 208, getsockname 51 204, getpeername 52 205,
"""

# Allowed for some arguments only: `filters.py` says which.
JUDGED = "clone 56 220, clone3 435 435, fork 57 -, vfork 58 -, prctl 157 167, ioctl 16 29, socketpair 53 199"

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*, and the column of the tables


def architecture(machine: str | None = None) -> str | None:
    """The kernel's name of this machine's architecture; None: there is no table for it."""
    machine = machine or platform.machine()
    return machine if machine in ARCHITECTURES else None


def numbers(table: str, machine: str) -> dict[str, int]:
    """The numbers of the calls in a table, by name, without those that the architecture does not have."""
    column = 1 + list(ARCHITECTURES).index(machine)
    lines = [line for line in table.splitlines() if not line.startswith("#")]
    entries = [entry.split() for entry in " ".join(lines).split(",") if entry.strip()]
    return {entry[0]: int(entry[column]) for entry in entries if entry[column] != "-"}
