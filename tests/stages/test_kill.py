"""Processes that are ended from outside: asked to stop, or killed without a word."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import QUICK, assert_equal_runs, run, steps

ROOT = Path(__file__).resolve().parents[2]
SAVING = ("--sft.save_steps", "1", "--rl.save_steps", "1")


@contextlib.contextmanager
def training(file: Path, directory: Path, *, quick: bool = True):
    """The command line in a process of its own, on one device; `quick` as `small_runs.quick_compilation`."""
    command = [sys.executable, "launch/train.py", str(file), "--output_dir", str(directory), *SAVING]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), QUICK.upper(): str(int(quick))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen, path: Path, lines: int = 1) -> None:
    """Until a file of the run has so many lines."""
    while not path.is_file() or path.read_text("utf-8").count("\n") < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def finishes(file: Path, directory: Path, *, quick: bool = True) -> str:
    with training(file, directory, quick=quick) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_asked_to_stop(stopped):
    """SIGTERM: the last finished step is saved, the exit code is 143, and it says what it did."""
    directory, code, out, err = stopped
    assert code == 143
    assert "SIGTERM: stopping after this step" in err and "Traceback" not in err
    said = re.search(
        r"stopped: stopped (after step (\d) of 4, which is saved|before rl|before the first step); the same command",
        err,
    )
    assert said, err
    stage, last = re.findall(r"^(\w+): step (\d) is saved", out, re.MULTILINE)[-1]  # of rl on a machine with much to do
    assert last == (said[2] or "4") and (directory / stage / "checkpoints" / last).is_dir()
    assert f"report: {directory / 'report.html'}" in out


@pytest.fixture(scope="module")
def stopped(base, tmp_path_factory):
    """A run that was asked to stop in sft: directory, exit code, what it printed."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    with training(base[0], directory) as process:
        wait_for(process, directory / "sft" / "metrics.jsonl")
        process.terminate()
        out, err = process.communicate(timeout=120)
    return directory, process.returncode, out, err


def test_killed_and_finished(base, stopped, workers, capfd):
    """kill -9 at a random moment of rl; the same settings then end with the checkpoint of the unbroken run."""
    file, unbroken = base
    directory = stopped[0]
    with training(file, directory) as process:
        wait_for(process, directory / "rl" / "metrics.jsonl")
        time.sleep(random.uniform(0.0, 0.3))
        process.kill()
        process.communicate(timeout=120)
    assert process.returncode in (-signal.SIGKILL, 0)
    finished = (directory / "rl" / "done.json").is_file()  # it may be where this process has waited long, killed or not
    run(file, directory, workers, *SAVING)
    said = capfd.readouterr().out
    assert "sft: finished before, step 4" in said
    assert ("rl: finished before, step 4" if finished else "rl: step 4 is saved") in said
    assert_equal_runs(directory, unbroken)
    assert not leftovers(directory)


@pytest.mark.slow
def test_killed_many_times(base, tmp_path):
    """Unlike elsewhere with all of the compiler's optimizations."""
    kill_and_finish(base[0], tmp_path, kills=6, quick=False)


def kill_and_finish(file: Path, folder: Path, *, kills: int, quick: bool = True) -> None:
    """In a save and at random moments by turns, until so many kills came in time; whatever was announced is there.

    A run that ends before its kill is as good as the unbroken one, and the next begins anew. So one of three tries in a
    row comes in time at least: in its first save a new run is always killed.
    """
    unbroken, directory = folder / "unbroken", folder / "run0"
    with training(file, unbroken, quick=quick) as process:
        until_it_trains(process)
        start = time.monotonic()
        _, error = process.communicate(timeout=300)
        shortest = time.monotonic() - start
    assert process.returncode == 0, error
    came = 0
    for number in range(3 * kills):
        left = set(saving(directory))  # by a kill before
        with training(file, directory, quick=quick) as process:
            said, start = until_it_trains(process), time.monotonic()
            end = start + (random.uniform(0.0, shortest) if number % 2 else 300.0)
            while (
                time.monotonic() < end and process.poll() is None and (number % 2 or left.issuperset(saving(directory)))
            ):
                time.sleep(0.001)
            process.kill()
            said += process.communicate(timeout=120)[0]
        announced = re.findall(r"^(\w+): step (\d) is saved", said, re.MULTILINE)
        for stage, step in announced[-1:]:
            assert int(step) in steps(directory, stage), f"kill {number}"
        if process.returncode == 0:
            shortest = min(shortest, time.monotonic() - start)  # later ones find programs that are compiled
            assert_equal_runs(directory, unbroken)
            directory = folder / f"run{number + 1}"
        came += process.returncode == -signal.SIGKILL
        if came == kills:
            break
    assert came == kills, f"{came} of {number + 1} in time"
    finishes(file, directory, quick=quick)
    assert_equal_runs(directory, unbroken)
    assert not leftovers(directory)


def until_it_trains(process: subprocess.Popen) -> str:
    """What a run prints up to the line that says from where it starts."""
    said = [process.stdout.readline()]
    while said[-1] and not re.search("starts from|resumed at", said[-1]):
        said.append(process.stdout.readline())
    return "".join(said)


def saving(directory: Path) -> list[Path]:
    return [p for stage in ("sft", "rl") for p in (directory / stage / "checkpoints").glob("*tmp*")]


def leftovers(directory: Path) -> list[Path]:
    """What a killed save leaves, and a finished run must have removed."""
    return [p for p in directory.rglob("*") if "tmp" in p.name or ".partial" in p.name or ".deleting" in p.name]
