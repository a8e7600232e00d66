import jax
import pytest
from small_runs import run, write_settings

from grpo_jax.rewards.workers import Workers

ITERATED = {"num_iterations": 2, "iterations": 2, "max_steps": 2}


@pytest.fixture(scope="session")
def workers():
    with Workers(max_workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs that compile in half the time and run slower, where a test is about what is around them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def base(tmp_path_factory, workers):
    """An unbroken run of sft and rl (2 outer iterations of 2 steps, 2 updates a step): settings and directory."""
    folder = tmp_path_factory.mktemp("base")
    file = write_settings(folder / "run.yaml", rl=ITERATED)
    run(file, folder / "run", workers)
    return file, folder / "run"
