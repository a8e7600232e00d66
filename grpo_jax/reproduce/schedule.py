"""Jobs that need one another, each a run of launch/train.py in a process and a directory of its own.

    OUT/NAME/                  the run: what the pipeline writes, which goes on there where it was killed
    OUT/NAME/settings.yaml     what is laid over the scale's file; `reproduce.log` beside it is what the run printed
    OUT/NAME/reproduced.json   written when the run has ended well: of which settings, in how many seconds, and of each
                               run that it needs a fingerprint, which changes when that one is made anew

A job whose `reproduced.json` is of the same settings is not run again, so that the command itself goes on where it was
stopped. If what it needs was made anew since, it is refused, and not run again over what is there: its directory holds
a finished run, which would find itself finished. A file without fingerprints is of an older program and is taken at its
settings: nothing is known of what it rests on, and a day of runs is not to be thrown away for that.

Programs compiled by one job are read by the next from OUT/compiled: arms of equal shape compile once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from grpo_jax.configure import dump
from grpo_jax.reporting.files import write_atomically
from grpo_jax.reporting.ledger import read_ledger

ENDING = (signal.SIGTERM, signal.SIGHUP)  # a closed terminal sends the second
ROOT = Path(__file__).resolve().parents[2]
LOG, DONE, SETTINGS, COMPILED = "reproduce.log", "reproduced.json", "settings.yaml", "compiled"
LOG_LINES = 15  # of a failed job's log that are shown
WAIT = 0.1  # seconds between two looks at the processes
# One core a process: threads that meet on the same cores cost more than they bring. XLA's CPU client reads NPROC.
ONE_CORE = {"JAX_PLATFORMS": "cpu", "NPROC": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class JobError(RuntimeError):
    """A job that failed; names its log and shows its end."""

    exit_code = 1


class Job(NamedTuple):
    """One run of the pipeline."""

    name: str  # its directory below the output directory
    base: Path  # the scale's file
    settings: Mapping[str, Any]  # laid over it
    needs: tuple[str, ...] = ()  # jobs that must have ended
    environment: Mapping[str, str] = MappingProxyType({})  # over that of the place


class Place(NamedTuple):
    """Where jobs run, and how many at once."""

    out: Path
    at_once: int
    environment: Mapping[str, str]

    def folder(self, job: Job) -> Path:
        """The directory of a job."""
        return self.out / job.name


def run_jobs(jobs: Sequence[Job], place: Place, *, tell: Callable[[str], None] = print) -> None:
    """Run what is not done yet, so many at once, each after what it needs.

    When a job fails, or SIGINT, SIGTERM or SIGHUP comes, all others are told to stop, which they do after saving: the
    same command goes on. Raises `JobError` naming the failed one, or one that rests on a run made anew since, `Stopped`
    after SIGTERM or SIGHUP, and ValueError for a job that needs one which is not among the jobs.
    """
    check_needs(jobs)
    done = {job.name for job in jobs if is_done(job, place)}
    left = [job for job in jobs if job.name not in done]
    if done:
        tell(f"{len(done)} of {len(jobs)} runs are there already")
    running: dict[str, Running] = {}
    check_rest([job for job in jobs if job.name in done], place)
    with stopping(running):
        while left or running:
            ready = [job for job in left if done.issuperset(job.needs)]
            for job in ready[: place.at_once - len(running)]:
                left.remove(job)
                running[job.name] = start(job, place)
                tell(f"{job.name}: started")
            time.sleep(WAIT)
            for one in [one for one in running.values() if one.process.poll() is not None]:
                del running[one.job.name]
                seconds = finish(one, place)
                done.add(one.job.name)
                check_rest([job for job in jobs if job.name in done and one.job.name in job.needs], place)
                tell(f"{one.job.name}: done in {seconds:.0f} s ({len(done)} of {len(jobs)})")


def check_needs(jobs: Sequence[Job]) -> None:
    """Raise ValueError for a job that would wait for ever, as no job has the name of one that it needs."""
    names = {job.name for job in jobs}
    for job in jobs:
        if missing := [need for need in job.needs if need not in names]:
            raise ValueError(f"{job.name} needs {', '.join(missing)}, not among the jobs {', '.join(sorted(names))}")


def check_rest(jobs: Iterable[Job], place: Place) -> None:
    """Raise `JobError` for a finished job that was made from runs which have been made anew since."""
    for job in jobs:
        was = json.loads((place.folder(job) / DONE).read_text()).get("needs", {})
        for need, known in was.items():
            if (now := fingerprint(place.out / need)) != known:
                raise JobError(
                    f"{job.name} rests on an earlier run of {need} than {place.out / need} has now ({known} -> {now}); "
                    f"delete {place.folder(job)} to make it anew, or give another --out"
                )


def fingerprint(run: Path) -> str:
    """What changes when a run is made anew, or trained further, and not when it is found finished.

    By its ledger, which keeps when each stage began for the first time, from which weights, and how far it is.
    """
    stages = read_ledger(run).get("stages", {})
    told = {name: [one.get(key) for key in ("began", "starts_from", "step")] for name, one in stages.items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


class Running(NamedTuple):
    """A job's process."""

    job: Job
    process: subprocess.Popen
    since: float


def start(job: Job, place: Place) -> Running:
    """Start a job in a process group of its own: what is typed at the keyboard reaches it through `stopping` alone."""
    folder = place.folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SETTINGS, dump(job.settings))
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            command(job, place),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(job, place),
            start_new_session=True,
        )
    return Running(job, process, time.monotonic())


def command(job: Job, place: Place) -> list[str]:
    """What a job is, as one could type it."""
    folder = place.folder(job)
    files = [str(job.base), str(folder / SETTINGS)]
    return [sys.executable, str(ROOT / "launch" / "train.py"), *files, "--output_dir", str(folder)]


def environment(job: Job, place: Place) -> dict[str, str]:
    """The environment of a job: ours, the place's, its own, and where compiled programs are shared."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(place.out / COMPILED),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    return os.environ | {"PYTHONPATH": path} | cache | dict(place.environment) | dict(job.environment)


def finish(one: Running, place: Place) -> float:
    """Note that a job has ended well, and return its seconds, those before a kill left out. Raises `JobError`."""
    folder, code = place.folder(one.job), one.process.returncode
    if code:
        tail = (folder / LOG).read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
        said = "\n".join(tail)
        remedy = f"\n(here: take them back, delete {folder}, or give another --out)" if "--output_dir" in said else ""
        raise JobError(
            f"{one.job.name} ended with exit code {code}; its log is {folder / LOG}, which ends with\n{said}{remedy}"
        )
    seconds = time.monotonic() - one.since
    needs = {need: fingerprint(place.out / need) for need in one.job.needs}
    record = {"settings": digest(one.job), "seconds": round(seconds, 1), "needs": needs}
    write_atomically(folder / DONE, json.dumps(record) + "\n")
    return seconds


def is_done(job: Job, place: Place) -> bool:
    """Whether a job has ended well with these settings."""
    path = place.folder(job) / DONE
    return path.is_file() and json.loads(path.read_text())["settings"] == digest(job)


def digest(job: Job) -> str:
    """A short name of all settings of a job: its file's bytes, and what is laid over it."""
    told = job.base.read_bytes() + json.dumps(job.settings, sort_keys=True).encode()
    return hashlib.sha256(told).hexdigest()[:16]


@contextlib.contextmanager
def stopping(running: Mapping[str, Running]) -> Iterator[None]:
    """End the processes that still run when the block is left, by an error or by a signal: once, so that they save."""
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, _leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.wait()


class Stopped(Exception):
    """A signal came that ends the command; its exit code is the shell's for that signal."""

    def __init__(self, signum: int):
        super().__init__("stopped; the same command goes on from there")
        self.exit_code = 128 + signum


def _leave(signum: int, frame: Any) -> None:
    raise Stopped(signum)
