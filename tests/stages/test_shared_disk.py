"""Whether hosts see one disk, with processes that are played; real ones are in test_two_processes.py."""

import jax
import numpy as np
import pytest

from grpo_jax.configure import ConfigError
from grpo_jax.stages import shared_disk


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is the second of two; the first one does what the test says when it is waited for."""

    def play(first, others_blind=False):
        answers = iter([np.int32(7), np.int32(0)])
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(shared_disk, "is_primary", lambda: False)
        monkeypatch.setattr(shared_disk, "agree", lambda value: (first(), next(answers))[1])
        monkeypatch.setattr(shared_disk, "gathered", lambda blind: np.array([others_blind, blind]))

    return play


def test_a_disk_of_all(second_of_two, tmp_path):
    second_of_two(lambda: (tmp_path / ".seen_by_all_00000007").touch())
    shared_disk.check_shared_disk(tmp_path)


def test_a_disk_that_is_late(second_of_two, tmp_path):
    """A network disk shows a new file after a while."""
    second_of_two(lambda: None)
    waited = []

    def wait(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            (tmp_path / ".seen_by_all_00000007").touch()

    shared_disk.check_shared_disk(tmp_path, wait)
    assert len(waited) == 3


def test_disks_of_their_own(second_of_two, tmp_path):
    second_of_two(lambda: None)
    with pytest.raises(ConfigError, match=r"process 1 of 2 does not see what process 0 writes there; several hosts"):
        shared_disk.check_shared_disk(tmp_path, lambda seconds: None)


def test_what_another_process_does_not_see_stops_all(second_of_two, tmp_path):
    second_of_two(lambda: (tmp_path / ".seen_by_all_00000007").touch(), others_blind=True)
    with pytest.raises(ConfigError, match=f"{tmp_path}: process 0 of 2 does not see"):
        shared_disk.check_shared_disk(tmp_path)


def test_one_process_is_not_asked(tmp_path):
    shared_disk.check_shared_disk(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
