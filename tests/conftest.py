"""Tests run on eight fake CPU devices, with compiled programs kept between runs."""

import gc
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "grpo_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
