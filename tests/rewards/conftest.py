import pytest

from grpo_jax.rewards.workers import Workers


@pytest.fixture(scope="session")
def workers():
    with Workers(max_workers=2, time_limit=1.0) as pool:
        pool.ensure_started()
        yield pool
