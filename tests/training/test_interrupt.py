"""A first signal is a request, a second one an order; the exit codes are the shell's."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np

from grpo_jax.training import interrupt
from grpo_jax.training.interrupt import ECHO, Interrupted, Interruption


def test_a_signal_sets_the_flag_and_the_old_handler_comes_back(capfd):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with Interruption("saving, then stopping") as interruption:
            assert not interruption.requested and not interruption.requested_anywhere()
            os.kill(os.getpid(), signum)
            assert interruption.requested and interruption.requested_anywhere()
            stopped = interruption.interrupted("stopped after step 3")
        assert isinstance(stopped, Interrupted) and stopped.exit_code == code
        assert f"{signum.name}: saving, then stopping" in capfd.readouterr().err
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_signal_ends_a_process_whose_main_thread_is_busy():
    code = (
        "import os, signal, time, ctypes\n"
        "from grpo_jax.training.interrupt import Interruption\n"
        "with Interruption():\n"
        "    print('ready', flush=True)\n"
        "    ctypes.CDLL(None).poll(None, 0, 5)\n"
        "    sleep = ctypes.CDLL(None).usleep\n"
        "    for _ in range(3): sleep(20_000_000)  # C code: Python handlers wait\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        time.sleep(0.1)
        process.terminate()
        assert "SIGTERM: stopping after this step" in process.stderr.readline() + process.stderr.readline()
        process.terminate()  # the echo of a launcher that signals a whole group
        time.sleep(ECHO + 0.2)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=15) == 143


def test_outside_the_main_thread_nothing_is_caught():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run():
        with Interruption() as interruption:
            seen.append((signal.getsignal(signal.SIGTERM) is before, interruption.requested))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(True, False)]


def test_all_processes_answer_alike(monkeypatch):
    """A signal that comes while the others are waited for is left for the next question."""
    with Interruption() as interruption:
        monkeypatch.setattr(jax, "process_count", lambda: 2)

        def late(value):
            os.kill(os.getpid(), signal.SIGTERM)
            return np.array([int(value), 0])

        monkeypatch.setattr(interrupt, "start_gathering", late)
        assert not interruption.requested_anywhere()
        monkeypatch.setattr(interrupt, "start_gathering", lambda value: np.array([int(value), 0]))
        assert interruption.requested_anywhere()


def test_a_question_asked_before_is_answered_as_it_was_asked(monkeypatch):
    """What a process hears in between it alone knows; what all have once heard they know from then on."""
    with Interruption() as interruption:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(interrupt, "start_gathering", lambda value: np.array([int(value), 0]))
        asked = interruption.ask()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested and not interruption.requested_anywhere(asked)
        assert interruption.requested_anywhere(interruption.ask()) and interruption.requested_anywhere(asked)

    with Interruption() as interruption:
        other = np.array([0, signal.SIGINT])
        assert interruption.requested_anywhere(other), "the other process was asked"
        assert interruption.interrupted("").exit_code == 130
