"""Whether the processes of a run see one disk, which checkpoints, evaluations and going on all take for granted."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grpo_jax.configure import ConfigError
from grpo_jax.reporting.files import is_primary
from grpo_jax.sharding import agree, gathered

PATIENCE, LOOKS = 1.0, 60  # seconds between two looks: a network disk may be late


def check_shared_disk(directory: Path, wait: Callable[[float], None] = time.sleep) -> None:
    """Refuse a directory in which some process does not see what the first one writes; one process is not asked.

    All processes call it at the same point. Raises `ConfigError` on all of them.
    """
    if jax.process_count() == 1:
        return
    mark = directory / f".seen_by_all_{int(agree(np.int32(secrets.randbits(31)))):08x}"
    if is_primary():
        directory.mkdir(parents=True, exist_ok=True)
        mark.touch()
    agree(np.int32(0))  # it is there before anybody looks
    blind = not seen(mark, wait)
    who = np.flatnonzero(gathered(np.bool_(blind)))
    if is_primary():
        mark.unlink(missing_ok=True)
    refuse_blind(directory, who, jax.process_count())


def seen(mark: Path, wait: Callable[[float], None]) -> bool:
    """Whether a file is there, or comes within a minute."""
    for _ in range(LOOKS):
        if mark.exists():
            return True
        wait(PATIENCE)
    return mark.exists()


def refuse_blind(directory: Path, processes: Any, count: int) -> None:
    """Raise `ConfigError` naming the processes that do not see the directory as the first one does."""
    if len(processes):
        who = ", ".join(map(str, processes))
        raise ConfigError(
            f"{directory}: process {who} of {count} does not see what process 0 writes there; several hosts need one "
            "disk that all of them have mounted at this path (NFS, Filestore, a mounted bucket): give it as output_dir"
        )
