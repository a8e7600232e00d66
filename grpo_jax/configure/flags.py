"""What launchers that are no pipelines share of their command lines: a parser that raises, and sizes in bytes."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from grpo_jax.configure.documents import ConfigError

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class Parser(argparse.ArgumentParser):
    """Errors are raised as `ConfigError`, and printed as all others are."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise ConfigError(f"{message}; {self.prog} --help shows what there is")


def in_bytes(text: str) -> int:
    """A size such as 5GB, 500MiB or 1000000; raises `ArgumentTypeError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 5GB, 500MB or 2GiB")
    return int(float(match[1]) * UNITS[match[2]])


def device_memory(text: str) -> int:
    """The memory of an accelerator, from 1 MB to 10 TB; raises `ArgumentTypeError`."""
    size = in_bytes(text)
    if not 1e6 < size < 1e13:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory of a device; write 80GB or 40GiB")
    return size
