"""environment.json: on what a run was made, so that its numbers can be explained and had again."""

from __future__ import annotations

import collections
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from grpo_jax.reporting.files import is_primary, parse_object, write_atomically

PACKAGES = (
    "grpo-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tensorflow-datasets",
    "math-verify",
    "numpy",
)
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def environment() -> dict[str, Any]:
    """Versions, devices, processes, git commit, compiler flags and command line of this process."""
    import jax

    devices = collections.Counter(device.device_kind for device in jax.devices())
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [without_home(argument) for argument in sys.argv],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "platform": jax.default_backend(),
        "devices": dict(devices),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "git": git_state(Path(__file__).resolve().parent),
        "variables": {
            name: without_home(value)
            for name, value in sorted(os.environ.items())
            if name in VARIABLES or name.startswith("JAX_")
        },
    }


def write_environment(path: str | Path, **more: Any) -> dict[str, Any]:
    """Write environment.json and return its content, `more` included; what a resumed run finds moves into "earlier".

    Only process 0 writes.
    """
    path = Path(path)
    found = environment() | more
    if is_primary():
        before = parse_object(path.read_text("utf-8")) if path.is_file() else None
        if before:
            found["earlier"] = [*before.pop("earlier", []), before]
        write_atomically(path, json.dumps(found, indent=2) + "\n")
    return found


def version(package: str) -> str | None:
    """The installed version, without importing the package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(directory: Path) -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None without git, or where git does not track the files."""
    try:
        git(directory, "ls-files", "--error-unmatch", ".")
        commit = git(directory, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(git(directory, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def git(directory: Path, *arguments: str) -> str:
    """The output of a git command in a directory."""
    command = ["git", "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def without_home(text: str) -> str:
    """The text with the home directory written as ~: a report is shown to others."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
