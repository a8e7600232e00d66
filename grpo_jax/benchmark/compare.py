"""One workload on this system and on others, in one run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from runpy import run_path
from typing import Any, NamedTuple

from grpo_jax.benchmark.alternate import System, WorkerError, measure
from grpo_jax.benchmark.results import new_directory, show, summarize, write_results
from grpo_jax.benchmark.workloads import WORKLOADS, Workload
from grpo_jax.configure import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "launch" / "benchmark_peers"


class Request(NamedTuple):
    """What a command line asks for."""

    workload: str
    peers: tuple[str, ...] = ()
    environments: Mapping[str, Path] = {}  # of peers
    settings: Mapping[str, Mapping[str, Any]] = {}  # of peers
    rounds: int = 3
    steps: int = 2
    devices: tuple[int, ...] = (0,)  # host devices of ours, one system each; 0: as JAX finds them
    flags: tuple[str, ...] = ()  # of launch/train.py, for ours
    out: Path = Path("runs/benchmark")


def compare(request: Request) -> Path:
    """Measure, write and print; returns the directory of the results.

    Raises `ConfigError` for a peer that is not there, `WorkerError` for a system that fails.
    """
    workload = WORKLOADS[request.workload]
    check(request)
    place = in_process("material", workload.name, str((request.out / "workloads").absolute()))
    folder = new_directory(request.out, workload.name)
    machine = json.loads(in_process("floors", workload.name))
    measured = measure(systems(request, Path(place), folder), folder, rounds=request.rounds, steps=request.steps)
    summaries = summarize(workload, measured, machine)
    write_results(folder, workload, measured, machine, summaries)
    show(workload, machine, summaries)
    print(f"results: {folder}")
    return folder


def check(request: Request) -> None:
    """Raise `ConfigError` for what cannot be measured, before anything is."""
    for peer in request.peers:
        if not (PEERS / f"run_{peer}.py").is_file():
            known = ", ".join(sorted(path.stem.removeprefix("run_") for path in PEERS.glob("run_*.py")))
            raise ConfigError(f"--peer {peer}: there is no such peer; choose of {known}")
        python = interpreter(request, peer)
        if not python.is_file():
            raise ConfigError(
                f"--peer {peer}: there is no {python}; make its environment with\n"
                f"  python launch/benchmark_peers/make.py {peer} {python.parent.parent}\n"
                f"or name one with --peer-env {peer}=DIRECTORY"
            )
    for peer, given in request.settings.items():
        check_settings(request, peer, given)


def check_settings(request: Request, peer: str, given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a setting that a peer has not, or a batch that does not make up a step."""
    if peer not in request.peers:
        raise ConfigError(f"--peer-set {peer}.{next(iter(given))}: {peer} is not measured; add --peer {peer}")
    script = run_path(str(PEERS / f"run_{peer}.py"))
    for key in given.keys() - script["SETTINGS"].keys():
        raise ConfigError(f"--peer-set {peer}.{key}: no such setting; choose of {', '.join(script['SETTINGS'])}")
    batch = given.get("batch", 0)
    whole = math.prod(getattr(WORKLOADS[request.workload], name) for name in script["WHOLE"])
    if batch not in range(whole + 1) or (batch and whole % batch):
        what = "completions" if len(script["WHOLE"]) > 1 else "prompts"
        raise ConfigError(
            f"--peer-set {peer}.batch={batch}: a step has {whole} {what}; give a number that divides them, or 0 for all"
        )


def interpreter(request: Request, peer: str) -> Path:
    """The Python of a peer's environment."""
    default = Path("~/.cache/grpo_jax/peers").expanduser() / peer
    return Path(request.environments.get(peer, default)) / "bin" / "python"


def systems(request: Request, place: Path, folder: Path) -> list[System]:
    """Ours, once for each number of host devices, then the peers."""
    found = []
    for devices in request.devices:
        name = f"ours, {devices} devices" if len(request.devices) > 1 else "ours"
        run = folder / f"ours_{devices}"
        words = ["-m", "grpo_jax.benchmark.ours", str(place), str(run), str(devices), *request.flags]
        found.append(System(name, [sys.executable, *words], {"PYTHONPATH": python_path()}))
    for peer in request.peers:
        script = str(PEERS / f"run_{peer}.py")
        settings = json.dumps(request.settings.get(peer, {}))
        words = [script, str(place), str(folder / peer), settings]
        # A peer's environment has all of its own; of this package it needs one module of plain Python.
        found.append(System(peer, [str(interpreter(request, peer)), *words], {"PYTHONPATH": str(ROOT)}))
    return found


def python_path() -> str:
    """Where ours is found by other processes, in front of what is set."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def in_process(module: str, *arguments: str) -> str:
    """The last line that a module of this package prints when run by itself: JAX starts in no process that waits."""
    command = [sys.executable, "-m", f"grpo_jax.benchmark.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": python_path()})
    if done.returncode:
        raise WorkerError(f"{module} of {arguments[0]} failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return done.stdout.splitlines()[-1]


def describe(workloads: Mapping[str, Workload] = WORKLOADS) -> str:
    """The workloads in words, a line each."""
    return "\n".join(
        f"  {w.name:5} {w.layers} layers of {w.width}, vocabulary {w.vocabulary}; {w.prompts} prompts of "
        f"{w.prompt_length} x {w.generations} completions of {'up to ' if w.lengths else ''}{w.completion_length} "
        f"tokens, {w.dtype}"
        for w in workloads.values()
    )


def peer_settings(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings of peers from words such as `trl.batch=16`; raises `ConfigError`."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        peer, dot, key = name.partition(".")
        if not (equals and dot):
            raise ConfigError(f"--peer-set {word}: write PEER.KEY=VALUE, such as trl.batch=16")
        try:
            found.setdefault(peer, {})[key] = json.loads(value)
        except ValueError:
            found[peer][key] = value
    return found
