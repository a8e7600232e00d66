"""Make the environment of a peer: python launch/benchmark_peers/make.py trl|tunix [DIRECTORY] [options of pip install]

A virtual environment with pinned packages, by default where launch/benchmark.py looks for it. What this package depends
on is not in it, and it is no dependency of this package. Without options torch comes with its libraries for GPUs, some
gigabytes; on a machine without one give pip the index of its CPU builds.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

# In order, each list by one pip command. torch comes first, or what comes with accelerate is whichever build is newest.
# Tunix takes transformers 5.12.1 and a jax below 0.11.1 itself, which is why it shares no environment with this
# package; it warns of missing TPUs, and needs a mesh even on one CPU device.
PACKAGES = {
    "trl": (("torch==2.13.0",), ("trl==1.16.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")),
    "tunix": (("google-tunix==0.1.7", "jax==0.10.2", "flax==0.12.8"),),
}


def main(argv: list[str]) -> int:
    """Make what a command line says and return the exit code."""
    if not argv or argv[0] not in PACKAGES:
        print(__doc__, file=sys.stderr)
        return 2
    name, *rest = argv
    named = rest and not rest[0].startswith("-")
    place = Path(rest.pop(0) if named else f"~/.cache/grpo_jax/peers/{name}").expanduser()
    if place.exists():
        print(f"error: {place} is there; delete it, or name another directory", file=sys.stderr)
        return 2
    venv.create(place, with_pip=True)
    for packages in PACKAGES[name]:
        command = [str(place / "bin" / "python"), "-m", "pip", "install", *packages, *rest]
        if subprocess.run(command).returncode:
            print(f"error: {' '.join(command)} failed; delete {place} and try again", file=sys.stderr)
            return 1
    print(f"{name}: {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
