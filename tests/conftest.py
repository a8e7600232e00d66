"""Tests run on eight fake CPU devices, one process a core, with compiled programs kept between runs.

Programs compile in half the time without most of the compiler's optimizations; with all of them:
`JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest`. In one process, as for `-s`, `--pdb` and `-m slow`:
`python -m pytest -n 0`.
"""

import gc
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "grpo_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import pytest

hypothesis.settings.register_profile("patient", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("patient")
# Tracing makes many objects that stay: to look through them took a tenth of the time.
gc.set_threshold(100_000, 50, 100)

ROOT = Path(__file__).resolve().parent.parent

MOST_PROCESSES = 4  # each takes up to 4 GB
LONG = ("stages", "training", "models")  # folders of the longest files


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config) -> None:
    """Give whole folders of tests that are not slow to several processes, a file at a time, unless -n says how many."""
    option = config.option
    if "PYTEST_XDIST_WORKER" in os.environ or getattr(option, "numprocesses", 0) is not None:
        return
    looked_into = option.capture == "no" or option.usepdb or option.trace
    slow = "not slow" not in option.markexpr  # some measure memory or time, and need the machine to themselves
    if looked_into or slow or all(".py" in word for word in config.args):
        return
    option.numprocesses = min(os.cpu_count() or 1, MOST_PROCESSES)
    option.dist, option.loadscopereorder = "loadfile", False


def pytest_collection_modifyitems(items) -> None:
    """Long files begin, so that short ones fill up the last minute of all processes alike."""
    rank = {folder: number for number, folder in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """Begin no test, and set up nothing for it, after the time until which CI lets slow ones begin."""
    if time.time() > float(os.environ.get("GRPO_JAX_TESTS_UNTIL", "inf")):
        pytest.skip("the time is up")


MOST_MAPS = 20_000  # memory maps; Linux gives a process 65,530, and every compiled program takes some


@pytest.fixture(scope="module", autouse=True)
def programs_do_not_pile_up():
    """Let go of compiled programs after a module, before the process has so many that the next one cannot be mapped."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.is_file() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("GRPO_JAX_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}")
    return path


@pytest.fixture(scope="session")
def vectors() -> dict:
    """Golden numbers from an independent NumPy implementation, by id."""
    import json

    entries = json.loads((ROOT / "tests" / "golden" / "vectors.json").read_text())
    return {entry["id"]: entry for entry in entries["vectors"]}
