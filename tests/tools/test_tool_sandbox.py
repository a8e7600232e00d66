"""What a program's result is, and how the pool of warm processes behaves."""

import os
import shutil
import signal
import time

import pytest

from grpo_jax.tools import backends, python
from grpo_jax.tools import view as view_module
from grpo_jax.tools.backends import bubblewrap, candidates
from grpo_jax.tools.results import Limits, SandboxError, ToolResult
from grpo_jax.tools.sandbox import Sandbox, run
from grpo_jax.tools.view import view
from launch import sandbox as launcher
from tests.sandboxes import descendants, entered

HONEST = [
    ("print(1 + 1)", "ok", "2"),
    ("print('one')\nprint('two')\n\nprint()", "ok", "one\ntwo"),
    ("print('答案是 7，é, ∑')", "ok", "答案是 7，é, ∑"),
    ("import sympy as sp\nx = sp.symbols('x')\nprint(sp.solve(x**2 - 5*x + 6, x))", "ok", "[2, 3]"),
    ("from sympy import *\nx, y = symbols('x y')\nsolve([x + y - 3, x - y - 1], [x, y])", "ok", "{x: 2, y: 1}"),
    ("from sympy import *\nx = symbols('x')\nprint(integrate(exp(-x**2), (x, -oo, oo)))", "ok", "sqrt(pi)"),
    ("import numpy as np\nprint(np.linalg.eigvalsh([[2., 0.], [0., 3.]]))", "ok", "[2. 3.]"),
    ("import mpmath\nmpmath.quad(lambda x: x**2, [0, 1])", "ok", "0.333333333333333"),
    ("def f(n):\n  return 1 if n < 2 else n * f(n - 1)\nf(20)", "ok", "2432902008176640000"),
    # What is printed goes before the value of the last expression.
    ("print('shown')\n41 + 1", "ok", "shown"),
    ("x = 5", "ok", ""),
    ("None", "ok", ""),
    ("'text'", "ok", "text"),
    ("", "ok", ""),
    ("# only a comment", "ok", ""),
    # What DeepSeek-Math's executor gets wrong (paper.md, d.3).
    ("print(1); 1/0", "error", "1\nZeroDivisionError: division by zero"),
    ("import sys\nprint(7); sys.exit(0)", "ok", "7"),
    ("import sys\nprint(7); sys.exit('bad')", "error", "7\nSystemExit: bad"),
    ("print(7); exit()", "ok", "7"),
    ("print(7)\nquit(3)", "error", "7\nSystemExit: 3"),
    ("import os\nprint(7)\nos._exit(3)", "killed", "7\nKilled: the program ended its process with 3"),
    ("import os\nos._exit(0)", "killed", "Killed: the program ended its process with 0"),
    (
        "class Bad(Exception):\n  def __str__(self): raise MemoryError\nraise Bad",
        "error",
        "Bad: <exception str() failed>",
    ),
    ("def my_input(x):\n    return x\nprint(my_input(3))", "ok", "3"),
    ("def f():\n    '''only a docstring'''\nprint(f())", "ok", "None"),
    ("f = lambda x: x + 1\nf(1)", "ok", "2"),
    ("input()", "error", "EOFError: EOF when reading a line"),
    ("x = (", "error", "SyntaxError: '(' was never closed"),
    ("raise ValueError('a\\nb')", "error", "b"),
    ("import jax", "error", "ModuleNotFoundError: No module named 'jax'"),
    # Ordinary machinery.
    ("if __name__ == '__main__':\n    print('main')", "ok", "main"),
    ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nprint(A(1))", "ok", "A(x=1)"),
    ("import threading\nt = threading.Thread(target=lambda: print('thread'))\nt.start()", "ok", "thread"),
    ("import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 3\nprint(asyncio.run(f()))", "ok", "3"),
    ("open('notes.txt', 'w').write('kept')\nprint(open('notes.txt').read())", "ok", "kept"),
    ("import subprocess, os\nprint(os.cpu_count() > 0)", "ok", "True"),
    ("import time, signal\nsignal.setitimer(signal.ITIMER_REAL, 30)\nprint(time.time() > 0)", "ok", "True"),
]


@pytest.mark.parametrize(("code", "status", "text"), HONEST)
def test_what_comes_back(sandbox, code, status, text):
    assert sandbox.submit(code).result() == ToolResult(status, text)


def test_state_between_blocks(sandbox):
    earlier = ["x = 41\nprint('not again')", "for i in range(2):\n  print(i)\n  x += 0"]
    assert sandbox.submit("x + 1", earlier=earlier).result() == ToolResult("ok", "42")


def test_earlier_blocks_that_failed_keep_what_they_did(sandbox):
    earlier = ["a = 1\n1/0\na = 2", "b = (", "c = 3; import sys; sys.exit()"]
    assert sandbox.submit("print(a, c)", earlier=earlier).result() == ToolResult("ok", "1 3")
    result = sandbox.submit("print(b)", earlier=earlier).result()
    assert result == ToolResult("error", "NameError: name 'b' is not defined")


def test_an_earlier_block_that_ends_the_process(sandbox):
    result = sandbox.submit("print(1)", earlier=["import os; os._exit(0)"]).result()
    assert result == ToolResult("killed", "Killed: an earlier block ended the program")


def test_each_block_has_its_time(sandbox):
    limits, sleep = Limits(wall=3.0, cpu=3.0), "import time\ntime.sleep(1.6)"  # two are more than the limit
    result = sandbox.submit(f"{sleep}\nprint('both')", limits, earlier=[sleep])
    assert result.result() == ToolResult("ok", "both")
    assert sandbox.submit("1", limits, earlier=["import time\ntime.sleep(9)"]).result().status == "timeout"


def test_results_repeat(sandbox):
    """The same program gives the same text on every worker and at every replay."""
    code = "import random, numpy\nprint(random.random(), numpy.random.rand(), {str(i) for i in range(20)})"
    first, *others = sandbox.map([code] * 8)
    assert set(others) == {first}
    replayed = sandbox.submit("x", earlier=["import random\nx = random.random()"]).result()
    assert replayed.text == first.text.split()[0]


def test_output_is_cut_in_the_middle(sandbox):
    result = sandbox.submit("print('a' * 1000 + 'b' * 1000000 + 'c' * 1000)", Limits(output=100)).result()
    assert result == ToolResult("truncated", "a" * 50 + "\n...\n" + "c" * 49)
    assert sandbox.submit("print('é' * 30)", Limits(output=61)).result() == ToolResult("ok", "é" * 30)


def test_limits_of_memory_and_processes(sandbox):
    small = Limits(memory=64 << 20)
    assert sandbox.submit("x = bytearray(200 << 20)", small).result() == ToolResult("memory", "MemoryError")
    assert sandbox.submit("len(bytearray(32 << 20))", small).result() == ToolResult("ok", str(32 << 20))
    fork = "import os\np = os.fork()\nif not p: os._exit(7)\nprint(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))"
    assert sandbox.submit(fork).result().text.startswith("BlockingIOError")
    assert sandbox.submit(fork, Limits(processes=2)).result() == ToolResult("ok", "7")
    bomb = "import os, time\nn = 0\ntry:\n  while n < 200:\n    if not os.fork(): time.sleep(60)\n    n += 1\n"
    bomb += "except OSError: pass\nn"
    assert int(sandbox.submit(bomb, Limits(processes=3, threads=1)).result().text) < 8


def test_a_file_has_a_most_size(sandbox):
    code = "f = open('x', 'wb')\ntry:\n  f.write(bytes(1 << 20)); f.flush()\nexcept OSError as e: print(e.errno)"
    assert sandbox.submit(code, Limits(file_size=1 << 16)).result() == ToolResult("ok", "27")


def test_programs_that_are_not_run(sandbox):
    assert sandbox.submit("x" * 100, Limits(code=99)).result().status == "refused"
    assert sandbox.submit("x" * 60, Limits(code=99), earlier=["x" * 60]).result().status == "refused"
    assert sandbox.submit(b"1").result().status == "refused"
    assert sandbox.submit("print('\\x00')\x00").result().status == "error"
    assert sandbox.submit("print('\ud800')").result().status == "error"


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="memory is 0"):
        Limits(memory=0)


def test_results_come_while_others_run(sandbox):
    """Rows that wait for a slow program do not stop the others, and each future has its own row's result."""
    if sandbox.record["workers"] < 2:
        pytest.skip("one worker runs one program after the other")
    slow = sandbox.submit("import time\ntime.sleep(5)\nprint('slow')")
    quick = [sandbox.submit(f"print({n})") for n in range(8)]
    assert [future.result().text for future in quick] == [str(n) for n in range(8)]
    assert not slow.done()
    assert slow.result().text == "slow"


SETTLED = 0.3  # seconds; what a sandbox needs only to start a program is gone sooner


def sleeping(sandbox):
    """The future of a program that does nothing for long, once it runs, and the processes made for it that stay."""
    launcher = sandbox._workers[0]._process.pid
    idle, end = descendants(launcher), time.monotonic() + 20
    future = sandbox.submit("import time\ntime.sleep(30)")
    made, since = set(), time.monotonic()
    while not made or time.monotonic() - since < SETTLED:
        assert time.monotonic() < end, made
        time.sleep(0.01)
        if (now := descendants(launcher) - idle) != made:
            made, since = now, time.monotonic()
    return future, made


def test_the_death_of_a_worker_is_a_result():
    with entered("auto", 1) as sandbox:
        future, made = sleeping(sandbox)
        launcher = sandbox._workers[0]._process.pid
        os.kill(max(made), signal.SIGKILL)  # the program, or what holds it
        assert future.result(timeout=10).status == "killed"
        os.killpg(launcher, signal.SIGKILL)
        assert {sandbox.submit("1 + 1").result(timeout=60).status for _ in range(2)} <= {"ok", "killed"}
        assert sandbox.submit("1 + 1").result() == ToolResult("ok", "2")


def test_a_worker_dies_with_all_it_started():
    with entered("auto", 1) as sandbox:
        sleeping(sandbox)
        all_of_it = descendants(sandbox._workers[0]._process.pid)
        assert len(all_of_it) >= 3
    end = time.monotonic() + 20
    while (left := [p for p in all_of_it if os.path.exists(f"/proc/{p}")]) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left


def test_a_closed_sandbox_answers():
    with entered("auto", 1) as sandbox:
        future, _ = sleeping(sandbox)
        waiting = sandbox.submit("1")
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert future.result().status == "killed"
    assert waiting.cancelled() or waiting.result().status == "killed"
    with pytest.raises(SandboxError, match="closed"):
        sandbox.submit("1")


def test_run():
    result = run("print(1 + 1)")
    if result.status == "refused":
        pytest.skip(result.text)
    assert result == ToolResult("ok", "2")
    assert run("y", earlier=["y = 3"]) == ToolResult("ok", "3")


def test_without_a_sandbox_programs_are_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match=r"bwrap is not installed.*apt-get install bubblewrap.*sandbox: unsafe"):
        Sandbox("bubblewrap").__enter__()
    refused = run("print(1)", backend="bubblewrap")
    assert refused.status == "refused"
    assert "apt-get install bubblewrap" in refused.text


def test_unsafe_must_be_written_by_hand():
    assert "unsafe" not in candidates("auto")
    with pytest.raises(SandboxError, match="'none' is none of auto, bubblewrap, namespaces, unsafe"):
        Sandbox("none")
    with Sandbox("unsafe", workers=1) as sandbox:
        assert sandbox.record["backend"] == sandbox.record["asked"] == "unsafe"
        assert "attacks" not in sandbox.record  # they are never tried where nothing holds them
        assert sandbox.submit("print(2)").result() == ToolResult("ok", "2")
        assert sandbox.submit("while True: pass", Limits(wall=0.5)).result().status == "timeout"


def test_the_command_of_bubblewrap(monkeypatch):
    """By construction: new namespaces, read-only binds, nothing of the environment."""
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/bwrap")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    command = bubblewrap(view(), {"groups": []})
    options = command[: command.index("--")]
    for option in ("user", "pid", "net", "ipc", "uts"):
        assert f"--unshare-{option}" in options
    assert {"--clearenv", "--die-with-parent", "--new-session"} <= set(options)
    assert "--cap-add" not in options
    assert not {"--bind", "--share-net", "--dev"} & set(options)
    shown = {options[i + 1] for i, option in enumerate(options) if option == "--ro-bind"}
    for private in ("/", "/etc", "/home", os.path.expanduser("~"), os.getcwd(), "/proc", "/sys", "/var"):
        assert private not in shown
    assert options[-4:] == ["--remount-ro", "/", "--chdir", "/"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "--unshare-user" not in bubblewrap(view(), {"groups": []})


def test_the_environment_of_a_launcher_is_empty():
    assert set(backends.ENVIRONMENT) == {"PYTHONHASHSEED"}


def test_the_view_needs_its_packages(monkeypatch):
    monkeypatch.setattr(view_module, "NEEDED", ("no_such_package",))
    with pytest.raises(SandboxError, match="needs no_such_package, which is not installed"):
        view(("numpy", "no_such_package"))


def test_the_kind_of_the_config():
    c = python.Config(time_limit=2.5, memory_mb=100, workers=3, sandbox="namespaces")
    assert python.limits(c) == Limits(wall=2.5, cpu=2.5, memory=100 << 20)
    assert python.build(c).record == {"asked": "namespaces"}


def test_nothing_is_loaded_in_a_program(sandbox):
    """What the runner, numpy and sympy need for ordinary work was loaded before the fork: loading took 12 ms of 26."""
    code = "import sys\nbefore = set(sys.modules)\nimport numpy, sympy, random, fractions, datetime, statistics\n"
    code += "numpy.random.rand(), numpy.linalg.det(numpy.eye(2)), sympy.simplify('x + x')\n"
    code += "print('numpy.random' in before, sorted(set(sys.modules) - before))"
    assert sandbox.submit(code).result() == ToolResult("ok", "True []")


def test_throughput(sandbox, capsys):
    """Measured, printed, and not judged: the machine may be busy."""
    count, code = 60, "import sympy\nx = sympy.symbols('x')\nprint(sympy.solve(x**2 - 3*x + 2, x))"
    started = time.monotonic()
    results = sandbox.map([code] * count)
    seconds = time.monotonic() - started
    assert {result.text for result in results} == {"[1, 2]"}
    with capsys.disabled():
        print(
            f"\n{sandbox.record['backend']}: {1000 * seconds / count:.1f} ms a program,"
            f" {sandbox.record['workers']} workers"
        )


def test_the_launcher_runs_a_program(sandbox, tmp_path, capsys):
    file = tmp_path / "program.py"
    file.write_text("print('one')\n1/0")
    assert launcher.main([str(file), "--backend", sandbox.record["backend"], "--workers", "1"]) == 0
    assert capsys.readouterr().out.endswith("[error]\none\nZeroDivisionError: division by zero\n")


def test_the_launcher_never_attacks_what_is_unsafe(capsys):
    assert launcher.main(["--backend", "unsafe", "--workers", "1"]) == 2
    assert "attacks are not tried" in capsys.readouterr().err
    assert launcher.main(["--backend", "docker"]) == 2
    assert "'docker' is none of auto" in capsys.readouterr().err
