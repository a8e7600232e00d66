"""Which tests run, and in how many processes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests import conftest

MADE_UP = """
import os, pytest

def test_long():
    os.environ["GRPO_JAX_TESTS_UNTIL"] = "0"

@pytest.fixture
def costly():
    raise AssertionError("set up for nothing")

def test_late(costly):
    pass
"""


def test_no_test_is_begun_when_the_time_is_up(tmp_path, monkeypatch):
    (tmp_path / "test_made_up.py").write_text(MADE_UP)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    alone = ["-c", os.devnull, "--rootdir", tmp_path, "-p", "no:cacheprovider", "-p", "tests.conftest", "-n", "0"]
    command = [sys.executable, "-m", "pytest", *alone, "-rs", "--no-fold-skipped", tmp_path]
    done = subprocess.run(command, cwd=conftest.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 skipped" in done.stdout
    assert "test_made_up.py::test_late - Skipped: the time is up" in done.stdout


@pytest.mark.parametrize(
    ("expression", "more"), [("not slow", True), ("slow", False), ("slow or other", False), ("", False)]
)
def test_slow_tests_have_the_machine_to_themselves(monkeypatch, expression, more):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    option = SimpleNamespace(numprocesses=None, capture="fd", usepdb=False, trace=False, markexpr=expression)
    conftest.pytest_cmdline_main(SimpleNamespace(option=option, args=["tests"]))
    assert (option.numprocesses is not None) == more
