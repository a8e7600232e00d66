"""Sandboxes for tests, and the processes that belong to one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_jax.tools.results import SandboxError
from grpo_jax.tools.sandbox import Sandbox


@contextlib.contextmanager
def entered(backend: str, workers: int) -> Iterator[Sandbox]:
    """Enter a sandbox without its self-test; skip where this machine has none."""
    with contextlib.ExitStack() as stack:
        try:
            pool = stack.enter_context(Sandbox(backend, workers=workers, attacks=False))
        except SandboxError as error:
            pytest.skip(f"no sandbox of this kind here: {error}")
        yield pool


def descendants(ancestor: int) -> set[int]:
    """Return the ids of a process's children, their children, and so on."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, front = set(), {ancestor}
    while front:
        front = {child for child, parent in parents.items() if parent in front} - found
        found |= front
    return found
