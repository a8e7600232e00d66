"""Jobs run after what they need, so many at once; what is done is not done again; a failure names its log."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from grpo_jax.reproduce import schedule
from grpo_jax.reproduce.schedule import DONE, LOG, ROOT, SETTINGS, Job, JobError, Place, run_jobs

# A run that notes when it starts and ends, and goes on where a signal stopped it. To meet, or to fail, it waits until
# two have been there at once, however long a machine takes to start the other.
FAKE = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]); notes = folder.parent / "notes"
def note(what):
    with notes.open("a") as file: file.write(f"{folder.name} {what}\\n")
def stop(*_):
    note("saved"); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
text = (folder / "settings.yaml").read_text()
note("began")
print("something to be seen in the log", [os.environ.get(name) for name in ("CORES", "NPROC")], flush=True)
def two_have_met():
    running = [1 if line.endswith("began") else -1 for line in notes.read_text().splitlines()]
    return max(sum(running[:n + 1]) for n in range(len(running))) >= 2
while ("meet" in text or "fail" in text) and not two_have_met(): time.sleep(0.02)
if "fail" in text: sys.exit("no such thing")
if "wait" in text:
    while not (folder.parent / "go").exists(): time.sleep(0.02)
time.sleep(0.15)
ledger = folder / "ledger.json"
if not ledger.exists(): ledger.write_text(json.dumps({"stages": {"rl": {"began": time.time_ns(), "step": 1}}}))
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
        *(Job(f"arm{i}", base, {"i": i, "meet": 1}, ("stem",)) for i in range(4)),
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


def test_a_job_that_rests_on_a_run_made_anew_is_refused(place, base):
    """Found finished, the stem is the same; made anew, also before the command or in it, it is another."""
    jobs = [Job("stem", base, {}), Job("arm", base, {}, needs=("stem",))]
    run_jobs(jobs, place, tell=lambda line: None)
    (place.out / "stem" / DONE).unlink()
    run_jobs(jobs, place, tell=lambda line: None)
    assert notes(place)[4:] == ["stem began", "stem ended"]
    shutil.rmtree(place.out / "stem")
    message = (
        rf"arm rests on an earlier run of stem .* delete {place.out / 'arm'} to make it anew, or give another --out"
    )
    with pytest.raises(JobError, match=message):
        run_jobs(jobs, place, tell=lambda line: None)
    (place.out / "stem").mkdir()
    (place.out / "stem" / "ledger.json").write_text(json.dumps({"stages": {"rl": {"began": 1, "step": 1}}}))
    with pytest.raises(JobError, match=message):
        run_jobs(jobs, place, tell=lambda line: None)
    shutil.rmtree(place.out / "arm")
    run_jobs(jobs, place, tell=lambda line: None)
    assert notes(place)[-2:] == ["arm began", "arm ended"]


def test_what_was_trained_further_in_this_command_is_noticed(place, base):
    jobs = [Job("stem", base, {}), Job("arm", base, {}, needs=("stem",))]
    run_jobs(jobs, place, tell=lambda line: None)
    (place.out / "stem" / DONE).unlink()
    further = (
        "import json, pathlib, sys; pathlib.Path(sys.argv[1], 'ledger.json')"
        ".write_text(json.dumps({'stages': {'rl': {'began': 1, 'step': 2}}}))"
    )
    code = lambda job, place: [sys.executable, "-S", "-c", further, str(place.folder(job))]  # noqa: E731
    with mock.patch.object(schedule, "command", code), pytest.raises(JobError, match="arm rests on an earlier run"):
        run_jobs(jobs, place, tell=lambda line: None)


def test_a_record_of_an_older_program_counts(place, base):
    """It has no fingerprints of what it rests on, so its settings decide."""
    jobs = [Job("stem", base, {}), Job("arm", base, {}, needs=("stem",))]
    for job in jobs:
        place.folder(job).mkdir()
        (place.folder(job) / DONE).write_text(json.dumps({"settings": schedule.digest(job), "seconds": 1.0}))
    told = []
    run_jobs(jobs, place, tell=told.append)
    assert told == ["2 of 2 runs are there already"]


def test_a_job_that_needs_one_which_is_not_there_is_refused(place, base):
    with pytest.raises(ValueError, match="arm needs stem, not among the jobs arm"):
        run_jobs([Job("arm", base, {}, needs=("stem",))], place, tell=lambda line: None)


def test_a_refusal_to_go_on_names_the_flag_of_this_command(place, base):
    said = ["-c", "import sys; sys.exit('take them back to go on with it, or give another --output_dir to start anew')"]
    refuse = mock.patch.object(schedule, "command", lambda job, place: [sys.executable, "-S", *said])
    with refuse, pytest.raises(JobError, match=rf"delete {place.out / 'arm'}, or give another --out\)"):
        run_jobs([Job("arm", base, {})], place, tell=lambda line: None)


CALLER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import test_schedule
from grpo_jax.reproduce import schedule
schedule.command = test_schedule.fake_command
place = schedule.Place(Path(sys.argv[1]), 2, {{}})
jobs = [schedule.Job("quick", Path(sys.argv[2]), {{}}), schedule.Job("slow", Path(sys.argv[2]), {{"wait": 1}})]
try:
    schedule.run_jobs(jobs, place)
except schedule.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_goes_on_after_a_signal(place, base, number):
    """The signal reaches the jobs once, they save, and the same jobs run again without those that had ended."""
    code = CALLER.format(root=str(ROOT), tests=str(Path(__file__).parent))
    heeded = signal.signal(number, signal.SIG_DFL)  # a child of nohup would ignore it
    caller = subprocess.Popen([sys.executable, "-c", code, str(place.out), str(base)], stderr=subprocess.PIPE)
    signal.signal(number, heeded)
    wait_for(lambda: (place.out / "quick" / DONE).exists() and "slow began" in notes(place))
    os.kill(caller.pid, number)
    assert b"the same command goes on" in caller.communicate(timeout=30)[1]
    assert caller.returncode == 128 + number
    assert notes(place)[-1] == "slow saved"
    (place.out / "go").touch()
    run_jobs([Job("quick", base, {}), Job("slow", base, {"wait": 1})], place, tell=lambda line: None)
    assert notes(place)[-2:] == ["slow began", "slow ended"]
    assert sum(line == "quick began" for line in notes(place)) == 1


def test_what_nohup_ignores_is_ignored(place, base):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        tell = lambda line: os.kill(os.getpid(), signal.SIGHUP)  # noqa: E731
        run_jobs([Job("a", base, {})], place, tell=tell)
        assert notes(place) == ["a began", "a ended"] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def wait_for(there) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)
