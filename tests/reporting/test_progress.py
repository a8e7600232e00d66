"""Progress: seconds by phase, rate and time left, plain lines without control codes, the before/after table."""

import io
import time

import pytest
from rich.console import Console

from grpo_jax.reporting import progress as module
from grpo_jax.reporting.pace import Pace, in_words
from grpo_jax.reporting.progress import Progress, metrics_line, table


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plain() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=False, width=80), file


def test_seconds_belong_to_the_innermost_phase_and_start_anew_each_step(clock):
    console, _ = plain()
    progress = Progress("rl", total=3, console=console, clock=clock)
    with progress.phase("sample"):
        clock.now += 2
        with progress.phase("reward"):
            clock.now += 1
        clock.now += 4
    clock.now += 10  # between phases: nobody's
    assert progress.seconds == {"sample": 6.0, "reward": 1.0}
    progress.advance()
    assert progress.seconds == {}
    with progress.phase("sample"):
        clock.now += 1
    assert progress.seconds == {"sample": 1.0}
    assert progress.pace.totals == {"sample": 6.0, "reward": 1.0}


def test_a_phase_that_raises_is_still_counted(clock):
    pace = Pace("rl", 1, 0, clock)
    with pytest.raises(KeyError), pace.phase("train"):
        clock.now += 3
        raise KeyError
    assert pace.seconds == {"train": 3.0} and pace.phases == []


def test_rate_and_time_left_leave_out_the_first_step(clock):
    pace = Pace("rl", 10, 0, clock)
    clock.now += 60  # compiles
    pace.advance()
    assert pace.rate is None and pace.left is None
    for _ in range(4):
        clock.now += 2
        pace.advance()
    assert pace.rate == pytest.approx(0.5)
    assert pace.left == pytest.approx(10.0)


def test_a_resumed_loop_counts_from_where_it_goes_on(clock):
    pace = Pace("rl", 10, 6, clock)
    for _ in range(2):
        clock.now += 3
        pace.advance()
    assert pace.step == 8 and pace.left == pytest.approx(6.0)


def test_compiling_is_said_in_the_first_step_only(clock):
    pace = Pace("rl", 10, 0, clock)
    with pace.phase("sample") as first:
        assert "compiling" in first.title
    with pace.phase("reward") as host:
        assert host.title == "reward"
    with pace.phase("sample") as second:
        assert second.title == "sample"


def test_a_compile_phase_says_it_for_all(clock):
    pace = Pace("rl", 10, 0, clock)
    with pace.phase("compile"):
        pass
    with pace.phase("sample", total=4) as phase:
        phase.advance(3)
        assert phase.title == "sample 3/4"


def test_a_loop_within_one_phase_is_compiled_after_its_first_step(clock):
    console, file = plain()
    progress = Progress("evaluation", total=3, console=console, clock=clock, unit="problem")
    with progress, progress.phase("evaluate") as phase:
        for _ in range(3):
            clock.now += 2
            progress.advance()
        assert phase.title == "evaluate"
    assert file.getvalue() == "evaluation: 3 problems in 6.0 s (evaluate 100%)\n"


def test_compiling_may_be_part_of_the_name_of_a_phase(clock):
    pace = Pace("rl", 10, 0, clock)
    for name in ("compile and sample", "compile and train", "sample", "train"):
        with pace.phase(name) as phase:
            assert phase.title == name


def test_plain_lines_are_few_short_and_without_control_codes(clock):
    console, file = plain()
    metrics = {"reward": 0.5, "loss": -0.001, "kl": float("nan"), "completions/clipped_ratio": 0.25}
    with Progress("rl", total=200, console=console, interval=10, clock=clock) as progress:
        for _ in range(200):
            with progress.phase("sample"):
                clock.now += 0.5
            progress.advance(metrics)
    lines = file.getvalue().splitlines()
    assert 8 <= len(lines) <= 14  # 100 seconds, one line in ten, the first, the last and the summary
    assert lines[0].startswith("rl   1/200  reward 0.500  loss -0.0010  kl nan  cut 25%")
    assert lines[-2].startswith("rl 200/200") and lines[-1] == "rl: 200 steps in 1:40 (sample 100%)"
    assert "\x1b" not in file.getvalue() and "\r" not in file.getvalue()
    assert file.getvalue().isascii()


def test_a_long_wait_is_named_while_it_lasts():
    console, file = plain()

    def waiting():
        return [line for line in file.getvalue().splitlines() if "train, compiling (first step)" in line]

    with Progress("rl", total=2, console=console, interval=0.05) as progress, progress.phase("train"):
        time.sleep(0.5)
        end = time.monotonic() + 20
        while not waiting() and time.monotonic() < end:
            time.sleep(0.05)
    assert 1 <= len(waiting()) <= 5  # pauses grow


def test_on_a_terminal_every_logged_step_leaves_a_line():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Progress("sft", total=3, console=console) as progress:
        for _ in range(3):
            with progress.phase("train"):
                pass
            progress.advance({"loss": 1.0})
        progress.say("saved")
    assert file.getvalue().count("loss 1.0000") == 3 and "saved" in file.getvalue()
    assert "\x1b[" in file.getvalue()


def test_the_terminal_is_left_to_another_progress_for_a_while():
    console = Console(file=(file := io.StringIO()), force_terminal=True, width=100)
    with Progress("outer", total=2, console=console) as outer:
        drawn = outer._display._live
        with outer.paused(), Progress("inner", total=1, console=console) as inner:
            assert not drawn.is_started
            inner.advance()
        assert drawn.is_started
        outer.advance({"reward": 0.5})
    assert "inner: 1 step in" in file.getvalue() and "outer 1/2  reward 0.500" in file.getvalue()


def test_other_processes_are_silent_and_still_count(monkeypatch):
    monkeypatch.setattr(module, "is_primary", lambda: False)
    console, file = plain()
    with Progress("rl", total=1, console=console) as progress:
        with progress.phase("sample"):
            pass
        assert "sample" in progress.seconds
        progress.advance({"reward": 1.0})
    table([{"name": "before", "metrics": {"greedy": 0.5}}], console=console)
    assert file.getvalue() == ""


def test_a_crash_leaves_no_summary():
    console, file = plain()
    with pytest.raises(KeyError), Progress("rl", total=1, console=console):
        raise KeyError
    assert file.getvalue() == ""


def test_a_metric_that_is_missing_is_left_out(clock):
    assert metrics_line(Pace("sft", 20, 0, clock), {"unknown": 1.0}) == "sft  0/20"


def test_durations_in_words():
    assert [in_words(s) for s in (0.25, 42.4, 185, 7800)] == ["0.2 s", "42 s", "3:05", "2:10:00"]


def test_the_table_shows_intervals_and_change_in_points():
    after = {
        "greedy": {"value": 0.96, "low": 0.94, "high": 0.975},
        "pass@8": {"value": 0.97, "low": None, "high": None},
        "maj@8": {"value": 0.9, "low": 0.88, "high": 0.92},
    }
    before = {"greedy": {"value": 0.24, "low": 0.21, "high": 0.265}, "pass@8": {"value": 0.84}}
    console, file = plain()
    table([{"name": "after", "metrics": after}, {"name": "before", "metrics": before}], console=console)
    lines = file.getvalue().splitlines()
    assert lines[0].split() == ["held-out", "before", "after", "change"]
    assert lines[1].split() == ["greedy", "24.0%", "[21.0,", "26.5]", "96.0%", "[94.0,", "97.5]", "+72.0"]
    assert lines[2].split() == ["pass@8", "84.0%", "97.0%", "+13.0"]
    assert lines[3].split() == ["maj@8", "-", "90.0%", "[88.0,", "92.0]"]
    assert file.getvalue().isascii()
