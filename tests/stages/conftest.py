import pytest
from small_runs import EVALUATION, run, write_settings

from grpo_jax.rewards.workers import Workers

# Two outer iterations of two steps, two updates a step.
ITERATED = {"num_iterations": 2, "iterations": 2, "max_steps": 2}


@pytest.fixture(scope="session")
def workers():
    with Workers(max_workers=2) as pool:
        yield pool


@pytest.fixture(scope="session")
def base(tmp_path_factory, workers):
    """An unbroken run of sft and rl: settings and directory."""
    folder = tmp_path_factory.mktemp("base")
    file = write_settings(folder / "run.yaml", rl=ITERATED)
    run(file, folder / "run", workers)
    return file, folder / "run"


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, workers):
    """An unbroken run of rl with evaluations before and after: settings and directory."""
    folder = tmp_path_factory.mktemp("evaluated")
    file = write_settings(folder / "run.yaml", sft=None, rl={"max_steps": 3}, evaluation=EVALUATION)
    run(file, folder / "run", workers)
    return file, folder / "run"
