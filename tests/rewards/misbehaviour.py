"""What runs in workers in these tests: functions that do everything wrong, most on the item 1 only."""

import ctypes
import os
import signal
import subprocess
import sys
import time


def double(item):
    return 2 * item


def hang(item):
    while item == 1:
        pass
    return item


def hang_in_c(item):
    return item if item != 1 else 9**9**9


def hang_and_ignore_sigterm(item):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(100 if item == 1 else 0)
    return item


def hang_in_a_child(item):
    subprocess.run(["sleep", item])


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def raise_what_cannot_be_unpickled(item):
    if item == 1:
        raise OddError("odd", 2)
    return item


def leave(item):
    if item == 1:
        sys.exit(0)
    return item


def die(item):
    if item == 1:
        os._exit(3)
    return item


def crash(item):
    if item == 1:
        ctypes.string_at(0)
    return item


def eat_memory(item):
    return len(bytearray(3 << 30)) if item == 1 else item


def print_much(item):
    if item == 1:
        for _ in range(200):
            print("x" * 1_000_000)
            sys.stderr.write("x" * 1_000_000)
    return item


def return_what_cannot_be_pickled(item):
    return (lambda: 0) if item == 1 else item


def process_id(item):
    time.sleep(0.05)
    return os.getpid()


def modules(item):
    return sorted(sys.modules)


def environment(item):
    return os.environ.get("JAX_PLATFORMS"), os.getsid(0) == os.getpid()
