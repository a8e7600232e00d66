import pytest

from tests.sandboxes import entered


@pytest.fixture(scope="session", params=["namespaces", "bubblewrap"])
def sandbox(request):
    """A pool of each kind that this machine allows."""
    with entered(request.param, 6) as pool:
        yield pool
