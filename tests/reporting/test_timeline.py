"""Spans and idle times with a clock that is turned by hand; the lanes of the report."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from grpo_jax.reporting.lanes import read_lanes, step_lanes
from grpo_jax.reporting.report import write_report
from grpo_jax.reporting.timeline import (
    ASIDE,
    GRADERS,
    KEPT,
    LOOP,
    Timeline,
    drop_after,
    gaps,
    kept_steps,
    length,
    merged,
    overlap,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_intervals():
    assert merged([(3, 4), (0, 2), (1, 2.5), (4, 5)]) == [(0, 2.5), (3, 5)]
    assert gaps([(1, 2), (3, 5)], 0, 6) == [(0, 1), (2, 3), (5, 6)] and gaps([], 0, 1) == [(0, 1)]
    assert overlap([(0, 2), (3, 5)], [(1, 4)]) == [(1, 2), (3, 4)]
    assert length([(0, 2), (3, 3.5)]) == 2.5


@pytest.mark.parametrize("total", [1, 2, 5, 8, 300, 100_000])
def test_few_steps_are_kept_the_first_and_the_last_among_them(total):
    kept = kept_steps(total)
    assert {1, total} <= kept and max(kept) <= total and min(total, KEPT - 2) <= len(kept) <= KEPT


def test_idle_times_by_hand(tmp_path):
    """The loop waits from 1 to 9; the graders work from 4 to 7: the host is idle for 5 of 10 seconds. The device is
    busy from 0 to 2 and from 6 to 8."""
    clock = Clock()
    start = clock.now
    with Timeline(tmp_path, 3, clock=clock) as timeline:
        for began, ended in ((0, 2), (6, 8)):
            clock.now = start + began
            timeline.run("sample", 1, lambda ended=ended: at(clock, start + ended))
            timeline._settle()
        for where, what, began, ended in ((GRADERS, "judge", 4, 7), (LOOP, "write", 9, 10)):
            clock.now = start + began
            with timeline.span(where, what, 1):
                clock.now = start + ended
        clock.now = start + 1
        with timeline.wait():
            clock.now = start + 9
        clock.now = start + 10
        told = timeline.finish(1)
    assert told["time/device_idle_s"] == pytest.approx(6) and told["time/host_idle_s"] == pytest.approx(5)
    assert told["time/device_sample_s"] == pytest.approx(4) and "time/device_update_s" not in told
    (line,) = map(json.loads, (tmp_path / "timeline.jsonl").read_text().splitlines())
    assert line["step"] == 1 and line["seconds"] == 10
    found = [(s["where"], s["what"], s["start"], s["end"]) for s in line["spans"]]
    assert ("device", "sample", 0, 2) in found and ("graders", "judge", 4, 7) in found


def test_what_is_done_aside_is_neither_work_of_the_devices_nor_their_waiting(tmp_path):
    """Sampling begins before an evaluation of 3 to 7 seconds and ends in it, at 5; then there is an update, 8 to 9."""
    clock = Clock()
    start = clock.now
    with Timeline(tmp_path, 3, clock=clock) as timeline:
        for what, began, ended in (("sample", 1, 5), ("update", 8, 9)):
            clock.now = start + began
            timeline.run(what, 2, lambda ended=ended: at(clock, start + ended))
            timeline._settle()
        clock.now = start + 3
        with timeline.span(ASIDE, "evaluate", 2):
            clock.now = start + 7
        clock.now = start + 10
        told = timeline.finish(2)
    assert told["time/device_idle_s"] == pytest.approx(3)  # 0 to 1, 7 to 8, 9 to 10
    assert told["time/device_sample_s"] == pytest.approx(4) and told["time/host_idle_s"] == 0
    assert told["time/device_update_s"] == pytest.approx(1) and "time/device_evaluate_s" not in told
    (line,) = map(json.loads, (tmp_path / "timeline.jsonl").read_text().splitlines())
    assert {s["what"] for s in line["spans"] if s["where"] == "device"} == {"sample", "update"}
    (drawn,) = step_lanes([line], [])
    assert [lane.name for lane in drawn.lanes] == ["devices", "graders", "loop", "between"]
    (evaluation,) = drawn.lanes[-1].blocks
    assert (evaluation.x, evaluation.width, evaluation.kind) == (30, 40, "evaluate")
    assert drawn.waited == "10 s, evaluate 4.0 s (40%)"


def at(clock: Clock, ended: float):
    """A program that runs within its call, and ends at that time."""
    clock.now = ended
    return jax.block_until_ready(jnp.ones(3))


def test_a_resumed_run_writes_its_steps_again(tmp_path):
    path = tmp_path / "timeline.jsonl"
    path.write_text("".join(json.dumps({"step": step, "seconds": 1.0, "spans": []}) + "\n" for step in (1, 2, 5)))
    drop_after(path, 2)
    assert [record["step"] for record in read_lanes(path)[0]] == [1, 2]
    drop_after(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


def span(where, what, start, end, step=2):
    return {"where": where, "what": what, "step": step, "start": start, "end": end}


LINES = [
    {"step": 1, "seconds": 20.0, "spans": [span("loop", "start sampling", 0.0, 15.0, 1)]},
    {"step": 2, "seconds": 2.0, "spans": [span("device", "sample", 0.0, 0.5, 3), span("graders", "judge", 0.5, 1.5)]},
    {"step": 3, "seconds": 1.0, "spans": [span("device", "up<b>", 0.0, 0.01, 3)]},
]


def test_lanes_are_to_the_scale_of_the_longest_step_after_the_first():
    first, second, third = step_lanes(LINES, [{"step": 2, "time/device_idle_s": 1.5, "time/host_idle_s": 0.2}])
    assert [first.width, second.width, third.width] == [100, 100, 50] and "drawn shorter" in first.waited
    assert second.waited == "2.0 s, device waits for the host 1.5 s (75%), host waits for the device 200 ms (10%)"
    devices, graders, loop = second.lanes
    assert [lane.name for lane in second.lanes] == ["devices", "graders", "loop"] and loop.blocks == []
    (sample,), (judge,) = devices.blocks, graders.blocks
    assert (sample.x, sample.width, sample.kind, sample.label) == (0, 25, "sample", "sample 3")
    assert (judge.x, judge.width, judge.label) == (25, 50, "judge")
    assert third.lanes[0].blocks[0].label == "" and third.lanes[0].blocks[0].kind == "other"


def test_a_broken_timeline_is_named_and_text_stays_text(tmp_path):
    (tmp_path / "rl").mkdir()
    bad = [{"step": 4}, {"step": 4, "seconds": 1.0, "spans": [{"where": 3}]}]
    (tmp_path / "rl" / "timeline.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES + bad))
    page = write_report(tmp_path).read_text("utf-8")
    assert "2 lines are not steps with spans" in page and page.count('class="lanes"') == 3
    assert "<b>: 10.0 ms" not in page and "up&lt;b&gt;" in page


def test_the_last_step_ends_when_its_programs_have(tmp_path):
    """Though the loop waited for none of them."""

    def nap(x):
        time.sleep(0.3)
        return x

    program = jax.jit(lambda x: jax.pure_callback(nap, jax.ShapeDtypeStruct((), jnp.float32), x))
    with Timeline(tmp_path, 3) as timeline:
        timeline.run("update", 3, program, jnp.float32(1))
        told = timeline.finish(3)
    assert told["time/device_update_s"] > 0.1
