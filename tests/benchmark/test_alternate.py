"""Systems take turns; a ratio is taken within a round; one that dies, hangs or talks nonsense is an error."""

import sys
from pathlib import Path

import pytest

from grpo_jax.benchmark.alternate import Step, System, WorkerError, measure, medians, ratio

ROOT = Path(__file__).resolve().parents[2]

# A system whose steps take no time and which says that they took SECONDS; every step is noted in a common file.
FAKE = """
import sys, time
from grpo_jax.benchmark.serving import Conversation, Finished, peak_memory
conversation = Conversation()
name, seconds, notes = sys.argv[1], float(sys.argv[2]), sys.argv[3]
print("noise on standard output")
conversation.begin()
try:
    while True:
        time.sleep(seconds)
        conversation.timed("sample", time.sleep)(seconds / 2)
        open(notes, "a").write(name)
        conversation.between_steps(7, system="fake 1.0")
except Finished:
    conversation.finish(**peak_memory())
"""


def fake(name, notes, seconds=0.0, code=FAKE):
    command = [sys.executable, "-c", code, name, str(seconds), str(notes)]
    return System(name, command, {"PYTHONPATH": str(ROOT)})


def test_systems_take_turns(tmp_path):
    notes = tmp_path / "notes"
    told = []
    systems = [fake("a", notes), fake("b", notes, 0.1)]
    measured = measure(systems, tmp_path, rounds=2, steps=3, tell=told.append)
    assert notes.read_text() == "ab" + "aaabbb" * 2  # first the steps that compile
    assert [s.system for s in measured.steps] == ["a"] * 3 + ["b"] * 3 + ["a"] * 3 + ["b"] * 3
    assert {s.tokens for s in measured.steps} == {7}
    b = medians(measured.steps, "b")
    assert b["step"] >= 0.15
    assert 0.05 <= b["sample"] < b["step"]
    assert ratio(measured.steps, "b", "a") > 1
    assert measured.finish["a"]["peak_memory"] > 1e6
    assert 0 < measured.ready["a"]["startup_seconds"] < 60
    assert measured.ready["b"]["first_seconds"] >= 0.15
    assert len(told) == 4
    assert "noise" in (tmp_path / "a.log").read_text()


def test_a_ratio_is_taken_within_a_round():
    """A machine that is twice as slow in one round changes no ratio, and one slow step no median."""
    steps = [
        Step(name, r, seconds * slow * (9 if odd else 1), {}, 1)
        for r, slow in enumerate((1, 2, 1))
        for name, seconds in (("ours", 1.0), ("peer", 3.0))
        for odd in (False, r == 2, False)
    ]
    assert ratio(steps, "peer", "ours") == pytest.approx(3.0)
    assert ratio(steps, "ours", "ours") == 1.0
    assert medians(steps, "peer")["step"] == 3.0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; print('the reason', file=sys.stderr); sys.exit(5)", "ended with exit code 5"),
        ("print('hello', flush=True); input()", "answered b'hello"),
    ],
)
def test_a_worker_that_fails_names_its_log(tmp_path, code, message):
    with pytest.raises(WorkerError) as error:
        measure([fake("broken", "-", code=code)], tmp_path, rounds=1, steps=1)
    assert message in str(error.value)
    assert str(tmp_path / "broken.log") in str(error.value)
    assert ("the reason" in str(error.value)) == ("reason" in code)


def test_a_worker_that_dies_in_a_step(tmp_path):
    dying = FAKE.replace('open(notes, "a")', "sys.exit(3) if conversation.steps else open(notes, 'a')")
    with pytest.raises(WorkerError, match="exit code 3"):
        measure([fake("dying", tmp_path / "notes", code=dying)], tmp_path, rounds=1, steps=1)


def test_a_worker_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_jax.benchmark.alternate.START_LIMIT", 0.2)
    with pytest.raises(WorkerError, match="nothing came"):
        measure([fake("hanging", "-", code="import time; time.sleep(60)")], tmp_path, rounds=1, steps=1)
