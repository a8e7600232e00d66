"""Workers outlive whatever runs in them."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import misbehaviour
import pytest

from grpo_jax.rewards.workers import Workers


def kinds(outcomes):
    return [outcome.kind for outcome in outcomes]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (misbehaviour.hang, "timeout"),
        (misbehaviour.hang_in_c, "timeout"),
        (misbehaviour.hang_and_ignore_sigterm, "timeout"),
        (misbehaviour.raise_what_cannot_be_unpickled, "error"),
        (misbehaviour.leave, "error"),
        (misbehaviour.die, "error"),
        (misbehaviour.crash, "error"),
        (misbehaviour.eat_memory, "error"),
        (misbehaviour.return_what_cannot_be_pickled, "error"),
        (misbehaviour.print_much, "value"),
    ],
)
def test_misbehaviour_costs_its_item_only(workers, function, kind):
    limit = 1.0 if kind == "timeout" else 30.0
    start = time.monotonic()
    outcomes = workers.map(function, [0, 1, 2, 3], time_limit=limit)
    assert kinds(outcomes) == ["value", kind, "value", "value"], outcomes
    assert [outcome.value for outcome in outcomes if outcome.kind == "value"][-2:] == [2, 3]
    assert time.monotonic() - start < 30.0
    if kind == "error":
        assert outcomes[1].text


def soon(holds):
    """Whether it holds within some seconds."""
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_children_of_a_killed_worker_die_too(workers):
    seconds = f"1000.{os.getpid()}"  # a command of this test run alone
    assert kinds(workers.map(misbehaviour.hang_in_a_child, [seconds], time_limit=1.0)) == ["timeout"]

    def alive():
        running = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
        return any(f"sleep {seconds}" in line and not line.startswith("Z") for line in running.splitlines())

    assert soon(lambda: not alive())


def test_processes_and_descriptors_stay_flat_over_hangs(workers):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    def workers_alive():
        return set(filter(lambda pid: Path(f"/proc/{pid}").exists(), seen))

    seen = {outcome.value for outcome in workers.map(misbehaviour.process_id, range(8))}
    before = descriptors()
    outcomes = workers.map(misbehaviour.hang, [1] * 20, time_limit=0.1)
    assert kinds(outcomes) == ["timeout"] * 20
    seen |= {outcome.value for outcome in workers.map(misbehaviour.process_id, range(8))}
    assert soon(lambda: descriptors() <= before + 2), "file descriptors leak"
    assert soon(lambda: len(workers_alive()) <= workers.max_workers), "processes leak"


def test_the_death_of_an_idle_worker_is_repaired(workers):
    for pid in {outcome.value for outcome in workers.map(misbehaviour.process_id, range(8))}:
        os.kill(pid, 9)
    assert [outcome.value for outcome in workers.map(misbehaviour.double, [1, 2, 3])] == [2, 4, 6]
    time.sleep(0.3)
    assert [outcome.value for outcome in workers.map(misbehaviour.double, [1, 2, 3])] == [2, 4, 6]


def test_a_limit_for_all_items_together(workers):
    assert kinds(workers.map(misbehaviour.double, [3])) == ["value"]  # they are started, which takes no part of it
    start = time.monotonic()
    outcomes = workers.map(misbehaviour.hang, [0, *[1] * 80, 0], time_limit=1.0, total=2.5)
    assert time.monotonic() - start < 20.0  # not 1 s for each, two at a time
    assert kinds(outcomes) == ["value"] + ["timeout"] * 81
    assert workers.map(misbehaviour.double, [4])[0].value == 8


def test_no_items_start_nothing():
    with Workers(max_workers=1) as pool:
        assert pool.map(misbehaviour.double, []) == []
        assert pool._pool is None


def test_workers_know_neither_jax_nor_the_accelerator_and_lead_their_own_session():
    with Workers(max_workers=1) as pool:
        assert pool.map(misbehaviour.environment, [0])[0].value == ("cpu", True)
        loaded = pool.map(misbehaviour.modules, [0])[0].value
    assert "math_verify" in loaded
    assert not {"jax", "numpy", "pydantic", "flax"} & set(loaded)


def test_a_function_of_the_main_script_is_refused(workers):
    def function(item):
        return item

    function.__module__ = "__main__"
    with pytest.raises(ValueError, match="put it in a module"):
        workers.map(function, [1])


SCRIPT = """
import sys
print("the script runs")
from grpo_jax.rewards.equivalent import grade
from grpo_jax.rewards.workers import Workers
with Workers(max_workers=2) as workers:
    print(grade(r"\\sum_{k=1}^{3} k", r"\\sum_{k=1}^{3} k+0", workers).grade.value)
assert "jax" not in sys.modules and "sympy" not in sys.modules
"""


def test_workers_do_not_run_the_main_script_again(tmp_path):
    script = tmp_path / "script.py"  # without the guard `if __name__ == "__main__"`
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["the script runs", "right"]


def test_threads_take_turns(workers):
    """One that runs out of time replaces the workers, and costs the other nothing."""
    with ThreadPoolExecutor(2) as threads:
        late = threads.submit(workers.map, misbehaviour.hang, [1] * 6, time_limit=30.0, total=0.7)
        others = threads.submit(workers.map, misbehaviour.hang, [0] * 40, time_limit=30.0)
        assert kinds(others.result()) == ["value"] * 40
        assert kinds(late.result()) == ["timeout"] * 6
