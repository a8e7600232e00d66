"""Jobs run after what they need, so many at once; what is done is not done again; a failure names its log."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from grpo_jax.reproduce import schedule
from grpo_jax.reproduce.schedule import DONE, LOG, ROOT, SETTINGS, Job, JobError, Place, run_jobs

# A run that notes when it starts and ends, and goes on where a signal stopped it.
FAKE = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]); notes = folder.parent / "notes"
def note(what):
    with notes.open("a") as file: file.write(f"{folder.name} {what}\\n")
def stop(*_):
    note("saved"); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
text = (folder / "settings.yaml").read_text()
note("began")
print("something to be seen in the log", [os.environ.get(name) for name in ("CORES", "NPROC")], flush=True)
if "fail" in text: sys.exit("no such thing")
if "wait" in text:
    while not (folder.parent / "go").exists(): time.sleep(0.02)
time.sleep(0.15)
note("ended")
"""


def fake_command(job, place):
    return [sys.executable, "-S", "-c", FAKE, str(place.folder(job))]


@pytest.fixture
def place(tmp_path):
    with mock.patch.object(schedule, "command", fake_command):
        yield Place(tmp_path, 2, {"CORES": "1", "NPROC": "1"})


@pytest.fixture
def base(tmp_path_factory):
    file = tmp_path_factory.mktemp("base") / "base.yaml"
    file.write_text("seed: 0\n")
    return file


def notes(place) -> list[str]:
    return (place.out / "notes").read_text().splitlines()


def most_at_once(lines) -> int:
    running = most = 0
    for line in lines:
        running += 1 if line.endswith("began") else -1
        most = max(most, running)
    return most


def test_after_what_is_needed_and_two_at_once(place, base):
    jobs = [
        Job("stem", base, {}, environment={"NPROC": "2"}),
        *(Job(f"arm{i}", base, {"i": i}, ("stem",)) for i in range(4)),
    ]
    told = []
    run_jobs(jobs, place, tell=told.append)
    lines = notes(place)
    assert lines[:2] == ["stem began", "stem ended"] and len(lines) == 10
    assert most_at_once(lines) == 2
    logs = [(place.out / name / LOG).read_text() for name in ("stem", "arm3")]
    assert logs == [f"something to be seen in the log ['1', '{cores}']\n" for cores in (2, 1)]
    assert "i: 3" in (place.out / "arm3" / SETTINGS).read_text()
    assert json.loads((place.out / "arm3" / DONE).read_text())["seconds"] > 0
    assert told[-1].endswith("(5 of 5)")


def test_what_is_done_is_not_done_again_unless_its_settings_change(place, base):
    jobs = [Job("a", base, {"rate": 1.0}), Job("b", base, {"rate": 1.0})]
    run_jobs(jobs, place, tell=lambda line: None)
    told = []
    run_jobs(jobs, place, tell=told.append)
    assert told == ["2 of 2 runs are there already"] and len(notes(place)) == 4
    run_jobs([jobs[0]._replace(settings={"rate": 2.0}), jobs[1]], place, tell=lambda line: None)
    assert notes(place)[4:] == ["a began", "a ended"]
    base.write_text("seed: 1\n")
    run_jobs(jobs, place, tell=lambda line: None)
    assert sorted(notes(place)[6:]) == ["a began", "a ended", "b began", "b ended"]


def test_a_failed_job_is_named_with_its_log_and_the_others_save(place, base):
    jobs = [Job("slow", base, {"wait": 1}), Job("broken", base, {"fail": 1}), Job("never", base, {})]
    with pytest.raises(JobError) as failed:
        run_jobs(jobs, place, tell=lambda line: None)
    for words in ("broken ended with exit code 1", str(place.out / "broken" / LOG), "no such thing"):
        assert words in str(failed.value)
    assert "slow saved" in notes(place) and "never began" not in notes(place)
    assert not (place.out / "broken" / DONE).exists() and not (place.out / "slow" / DONE).exists()


CALLER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import test_schedule
from grpo_jax.reproduce import schedule
schedule.command = test_schedule.fake_command
place = schedule.Place(Path(sys.argv[1]), 2, {{}})
jobs = [schedule.Job("quick", Path(sys.argv[2]), {{}}), schedule.Job("slow", Path(sys.argv[2]), {{"wait": 1}})]
schedule.run_jobs(jobs, place)
"""


def test_goes_on_after_sigterm(place, base):
    """The signal reaches the jobs once, they save, and the same jobs run again without those that had ended."""
    code = CALLER.format(root=str(ROOT), tests=str(Path(__file__).parent))
    caller = subprocess.Popen([sys.executable, "-c", code, str(place.out), str(base)], stderr=subprocess.PIPE)
    wait_for(lambda: (place.out / "quick" / DONE).exists())
    os.kill(caller.pid, signal.SIGTERM)
    assert b"the same command goes on" in caller.communicate(timeout=30)[1]
    assert notes(place)[-1] == "slow saved"
    (place.out / "go").touch()
    run_jobs([Job("quick", base, {}), Job("slow", base, {"wait": 1})], place, tell=lambda line: None)
    assert notes(place)[-2:] == ["slow began", "slow ended"]
    assert sum(line == "quick began" for line in notes(place)) == 1


def wait_for(there) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)
