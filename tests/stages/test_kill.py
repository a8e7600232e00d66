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
from small_runs import assert_equal_runs, steps

ROOT = Path(__file__).resolve().parents[2]
SAVING = ("--sft.save_steps", "1", "--rl.save_steps", "1")


@contextlib.contextmanager
def training(file: Path, directory: Path):
    """The command line in a process of its own, on one device."""
    command = [sys.executable, "launch/train.py", str(file), "--output_dir", str(directory), *SAVING]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
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


def asked_to_stop(file: Path, directory: Path) -> None:
    with training(file, directory) as process:
        wait_for(process, directory / "sft" / "metrics.jsonl")
        process.terminate()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "SIGTERM: stopping after this step" in err and "Traceback" not in err
    said = re.search(
        r"stopped: stopped (after step (\d) of 4, which is saved|before rl); the same command goes on", err
    )
    assert said, err
    last = steps(directory, "sft")[-1]
    assert last == int(said[2] or 4) and f"sft: step {last} is saved" in out
    assert f"report: {directory / 'report.html'}" in out


def killed(file: Path, directory: Path, after: float) -> None:
    with training(file, directory) as process:
        wait_for(process, directory / "rl" / "metrics.jsonl")
        time.sleep(after)
        process.kill()
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, f"finished within {after} s"


def finishes(file: Path, directory: Path) -> str:
    with training(file, directory) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def test_stopped_then_killed_then_finished(base, tmp_path):
    """SIGTERM in sft, kill -9 at a random moment of rl, then the same command: the digest of the unbroken run."""
    file, unbroken = base
    asked_to_stop(file, tmp_path)
    after = random.uniform(0.0, 0.3)
    print(f"killed {after:.3f} s after the first line of metrics")
    killed(file, tmp_path, after)
    out = finishes(file, tmp_path)
    assert "sft: finished before, step 4" in out and "rl: step 4 is saved" in out
    assert_equal_runs(tmp_path, unbroken)
    assert not leftovers(tmp_path)


@pytest.mark.slow
def test_killed_many_times(base, tmp_path):
    """In a save and at random moments, eight times; whatever was announced is there afterwards."""
    file, unbroken = base
    killed = 0
    for number in range(8):
        with training(file, tmp_path) as process:
            said = [process.stdout.readline()]
            while said[-1] and not re.search("starts from|resumed at", said[-1]):
                said.append(process.stdout.readline())
            end = time.monotonic() + random.uniform(0.0, 4.0)
            while time.monotonic() < end and not (number % 2 and saving(tmp_path)):
                time.sleep(0.001)
            process.kill()
            said.append(process.communicate(timeout=120)[0])
            killed += process.returncode == -signal.SIGKILL
        announced = re.findall(r"^(\w+): step (\d) is saved", "".join(said), re.MULTILINE)
        for stage, step in announced[-1:]:
            assert int(step) in steps(tmp_path, stage), f"kill {number}"
    assert killed > 2
    finishes(file, tmp_path)
    assert_equal_runs(tmp_path, unbroken)
    assert not leftovers(tmp_path)


def saving(directory: Path) -> list[Path]:
    return [p for stage in ("sft", "rl") for p in (directory / stage / "checkpoints").glob("*tmp*")]


def leftovers(directory: Path) -> list[Path]:
    """What a killed save leaves, and a finished run must have removed."""
    return [p for p in directory.rglob("*") if "tmp" in p.name or ".partial" in p.name or ".deleting" in p.name]
