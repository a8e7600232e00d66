"""Attacks on the Python tool: each must be contained, and leave the host, the trainer and the next program alone."""

import dataclasses
import os
import queue
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo_jax.tools import attacks, selftest
from grpo_jax.tools.results import Limits, SandboxError, ToolResult
from grpo_jax.tools.sandbox import Sandbox
from tests.sandboxes import descendants

LIMITS = Limits(wall=1.0, cpu=1.0, memory=128 << 20, disk=32 << 20)
CPU = {"timeout"}
ENDS = {
    "takes memory in pieces": {"memory", "timeout"},
    "takes memory in shared mappings": {"memory", "timeout"},
    "takes memory over children": {"ok"},  # none could be started, which a busy machine has time to say
    "starts threads without end": {"timeout"},
    "recurses without end": {"timeout", "memory", "killed", "error"},
    "floods the runner's channel": {"timeout", "killed"},
}


@pytest.fixture(scope="module")
def before(sandbox):
    """Return the processes of the idle pool."""
    return descendants(os.getpid())


@pytest.fixture(scope="module")
def results(sandbox, before):
    """Run every attack at once, on as many workers as there are, and say how long each took."""
    with selftest.host() as host:
        started = time.monotonic()
        futures = {}
        for name in [*attacks.QUICK, *attacks.LASTING]:
            limits = dataclasses.replace(LIMITS, wall=20.0) if ENDS.get(name) == {"ok"} else LIMITS
            futures[name] = sandbox.submit(attacks.program(name, host.places()), limits)
        found = {name: future.result() for name, future in futures.items()}
        seconds = time.monotonic() - started
        verdicts = {name: selftest.judged(result, host.content) for name, result in found.items()}
        return found, verdicts, host.harm(), seconds


@pytest.mark.parametrize("name", [*attacks.QUICK, *attacks.LASTING])
def test_contained(results, name):
    found, verdicts, _, _ = results
    assert verdicts[name] == selftest.CONTAINED
    if name in attacks.LASTING:
        assert found[name].status in ENDS.get(name, CPU), found[name]


def test_afterwards(results, sandbox, before):
    """The host is as it was, nothing is left running, time was kept, and honest programs work."""
    _, _, harm, seconds = results
    assert harm is None
    assert seconds < 60
    assert sandbox.submit("print(6 * 7)").result() == ToolResult("ok", "42")
    end = time.monotonic() + 20
    while (left := descendants(os.getpid()) - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


def test_nothing_is_left_for_the_next_program(sandbox):
    sandbox.map([selftest.LEAVE] * 12)
    assert {result.text for result in sandbox.map([selftest.LOOK] * 12)} == {"[] False"}


def memory_of(process: int) -> bytes:
    """Read what a process may write to."""
    parts = []
    with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            start, end = (int(number, 16) for number in place.split("-"))
            if rights.startswith("rw") and "[v" not in line:
                memory.seek(start)
                parts.append(memory.read(end - start))
    return b"".join(parts)


def test_programs_of_others_are_not_in_memory(sandbox, before):
    """The warm process never sees a program, so what it forks later has no trace of one."""
    word = "correct" + "horse" + "battery"
    sandbox.map([f"word = {word!r}; print(word * 3)"] * 12)
    try:
        memories = [memory_of(process) for process in before]
    except PermissionError:
        pytest.skip("this user may not look into other processes")
    assert any(b"sympy" in memory for memory in memories)
    assert not any(word.encode() in memory for memory in memories)


def test_victims_survive(sandbox):
    """Real signals and real writes against things made for the purpose."""
    victim = subprocess.Popen(["sleep", "60"])
    try:
        codes = [f"import os\nos.kill({victim.pid}, 9)", f"import ctypes\nctypes.CDLL(None).kill({victim.pid}, 9)"]
        codes += [
            "import os, signal\nos.kill(-1, 9)",
            "import os\nos.killpg(0, 9)",
            "import os\nos.kill(os.getppid(), 9)",
        ]
        sandbox.map(codes * 2)
        assert victim.poll() is None
        assert sandbox.submit("1 + 1").result() == ToolResult("ok", "2")
    finally:
        victim.kill()
        victim.wait()


def test_files_of_the_host_survive(sandbox, tmp_path):
    file = tmp_path / "gold.jsonl"
    file.write_text("the answer")
    code = (
        f"import shutil, os\nfor f in (os.remove, shutil.rmtree, open):\n  try: f('{file}')\n  except OSError: pass\n"
    )
    result = sandbox.submit(code + f"shutil.rmtree('{tmp_path}')").result()
    assert result.status == "error"
    assert file.read_text() == "the answer"


def test_the_self_test_sees_what_comes_through():
    class Done:
        def __init__(self, result):
            self.result = lambda: result

    def leaky(code, limits=None, **_):
        return Done(ToolResult("ok", "ESCAPED 1"))

    found = selftest.attack(leaky, 2)
    assert len(found) > 50
    assert [name for name, how in found.items() if how == selftest.CONTAINED] == ["harms the host"]


@pytest.mark.parametrize("leak", [0, 3, 7])
def test_the_self_test_sees_what_is_left(leak):
    """By one of eight workers, which take turns as those of the sandbox do."""
    idle, dirty = queue.SimpleQueue(), set()
    for number in range(8):
        idle.put(number)

    def run(code):
        number = idle.get()
        text = "['/tmp/left'] True" if number in dirty else "[] False"
        if code == selftest.LEAVE and number == leak:
            dirty.add(number)
        idle.put(number)
        return ToolResult("ok", text)

    with ThreadPoolExecutor(8) as threads:
        found = selftest.attack(lambda code, limits: threads.submit(run, code), 8, ())
    assert found["leaves something behind"].startswith("came through: ")


def test_the_self_test_sees_harm(tmp_path):
    class Done:
        def result(self):
            return ToolResult("ok", "")

    def harmful(code, limits=None, **_):
        for word in code.split("'"):
            if "grpo-jax-secret-" in word:
                Path(word).write_text("taken")
        return Done()

    assert selftest.attack(harmful, 2, ("writes over a host file",))["harms the host"] == "a host file was changed"


def test_a_sandbox_that_does_not_hold_is_refused(sandbox, monkeypatch):
    monkeypatch.setattr(selftest, "attack", lambda submit, workers: {"reads a host file": "came through: root"})
    with pytest.raises(SandboxError, match="does not hold: reads a host file: came through"):
        Sandbox(sandbox.record["backend"], workers=1).__enter__()


def test_the_self_test_is_recorded(sandbox, capsys):
    started = time.monotonic()
    found = selftest.attack(sandbox.submit, sandbox.record["workers"])
    assert set(found.values()) == {selftest.CONTAINED}, {k: v for k, v in found.items() if v != selftest.CONTAINED}
    with capsys.disabled():
        print(f"\n{sandbox.record['backend']}: {len(found)} attacks and controls in {time.monotonic() - started:.2f} s")
