"""What a loop is doing, on the terminal: live where there is one, a few plain lines where there is not.

with Progress("rl", total=200) as progress:
    for step in range(200):
        with progress.phase("sample"):
            ...
        seconds = progress.seconds  # {"sample": 0.41}
        progress.advance(metrics)
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from grpo_jax.reporting.evaluations import change, columns, metric_rows, show, show_interval
from grpo_jax.reporting.files import is_primary
from grpo_jax.reporting.pace import Pace, Phase, in_words

# What a line of metrics shows, of what there is: key, word, and how the number is written
SHOWN = (
    ("reward", "reward", "{:.3f}"),
    ("accuracy", "accuracy", "{:.3f}"),
    ("loss", "loss", "{:.4f}"),
    ("kl", "kl", "{:.3g}"),
    ("entropy", "entropy", "{:.3f}"),
    ("completions/mean_length", "length", "{:.1f}"),
    ("completions/clipped_ratio", "cut", "{:.0%}"),
    ("frac_reward_zero_std", "dead", "{:.0%}"),
    ("grad_norm", "grad", "{:.3g}"),
    ("learning_rate", "lr", "{:.2g}"),
    ("tokens_per_sec", "tok/s", "{:.0f}"),
)


class Progress:
    """Shows a loop of `total` steps (or other units) and times its phases; a context manager.

    `seconds` holds the seconds by phase of the step under way; `advance` starts it anew. On a terminal a bar,
    rate, time left and the present phase are drawn live, and every logged step leaves one line. Elsewhere a
    plain line is printed every `interval` seconds at most, without control codes. Only process 0 prints.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        start: int = 0,
        console: Console | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        unit: str = "step",
    ):
        self.pace = Pace(name, total, start, clock, unit)
        console = console or Console()
        show = LiveDisplay if console.is_terminal else PlainDisplay
        self._display = show(self.pace, console, interval) if is_primary() else Silent()

    def __enter__(self) -> Progress:
        self._display.start()
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        self._display.stop()
        if kind is None:
            self._display.line(summary(self.pace))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase of the step under way; a phase inside another counts for itself only."""
        return dict(self.pace.seconds)

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Phase]:
        """Time and show a part of the step; with `total`, call `.advance()` of what is yielded for a part."""
        with self.pace.phase(name, total) as phase:
            yield phase

    def advance(self, metrics: Mapping[str, Any] | None = None, steps: int = 1) -> None:
        """End a step, and show the key metrics if it is one that is logged."""
        self.pace.advance(steps)
        if metrics:
            self._display.metrics(metrics_line(self.pace, metrics))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to another progress; the time is this one's all the same."""
        self._display.pause()
        try:
            yield
        finally:
            self._display.go_on()

    def say(self, message: str) -> None:
        """Print a line of its own, above the live display if there is one."""
        self._display.line(message)


class Silent:
    """The display of the processes that do not print."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def pause(self) -> None: ...

    def go_on(self) -> None: ...

    def line(self, text: str) -> None: ...

    def metrics(self, text: str) -> None: ...


class LiveDisplay(Silent):
    """Two lines that are redrawn: bar, rate and time left; the present phase and where the time went."""

    def __init__(self, pace: Pace, console: Console, interval: float):
        self._pace, self._console = pace, console
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=5, transient=True)

    def start(self) -> None:
        self._live.start(refresh=True)

    def stop(self) -> None:
        self._live.stop()

    def pause(self) -> None:
        self.stop()

    def go_on(self) -> None:
        self.start()

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def metrics(self, text: str) -> None:
        self.line(text)

    def _draw(self) -> Group:
        pace = self._pace
        top = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(pace.total, 1), completed=pace.step, width=30)
        pieces = [f"{pace.step}/{pace.total}", *rate_and_left(pace)]
        top.add_row(Text(pace.name, style="bold"), bar, Text("  ".join(pieces)))
        bottom = Table.grid(padding=(0, 1))
        shares = "  ".join(f"{name} {share:.0%}" for name, share in pace.shares.items())
        bottom.add_row(self._spinner, Text(present(pace), style="cyan"), Text(shares, style="dim"))
        return Group(top, bottom)


class PlainDisplay(Silent):
    """Lines for a log file: the newest metrics, or what is waited for when a step takes long."""

    def __init__(self, pace: Pace, console: Console, interval: float):
        self._pace, self._console, self._interval = pace, console, interval
        self._printed = -math.inf
        self._pause = interval  # before the next line about one and the same wait; it grows
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._printed = self._pace.clock()
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def line(self, text: str) -> None:
        with self._lock:
            self._printed = self._pace.clock()
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def metrics(self, text: str) -> None:
        self._pause = self._interval
        ends = self._pace.step <= self._pace.start + 1 or self._pace.step >= self._pace.total
        if ends or self._pace.clock() - self._printed >= self._interval:
            self.line(text)

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._interval / 2)):
            if self._pace.phases and self._pace.clock() - self._printed >= self._pause:
                self._pause = min(self._pause * 2, 120.0)
                pieces = [f"{self._pace.name} {self._pace.step}/{self._pace.total}", present(self._pace)]
                self.line("  ".join(pieces + rate_and_left(self._pace)))


def present(pace: Pace) -> str:
    """What is waited for now, and for how long it has been."""
    phases = list(pace.phases)  # another thread reads while the loop changes it
    if not phases:
        return "between steps"
    return f"{phases[-1].title}, {in_words(pace.clock() - phases[-1].began)}"


def rate_and_left(pace: Pace) -> list[str]:
    """Rate and time left in words; empty while the first step runs."""
    rate, left = pace.rate, pace.left
    if rate is None or left is None:
        return []
    speed = f"{rate:.2f} {pace.unit}s/s" if rate >= 0.5 else f"{in_words(1 / rate)} a {pace.unit}"
    return [speed, f"{in_words(left)} left"] if left > 0 else [speed]


def metrics_line(pace: Pace, metrics: Mapping[str, Any]) -> str:
    """One line of the numbers that matter most; a number that is not finite is shown as it is."""
    width = len(str(pace.total))
    words = [f"{pace.name} {pace.step:>{width}}/{pace.total}"]
    words += [f"{word} {form.format(float(metrics[key]))}" for key, word, form in SHOWN if key in metrics]
    left = pace.left
    return "  ".join(words + ([f"({in_words(left)} left)"] if left else []))


def summary(pace: Pace) -> str:
    """What a finished loop leaves: steps, time and where it went."""
    steps = pace.step - pace.start
    shares = ", ".join(f"{name} {share:.0%}" for name, share in pace.shares.items() if share >= 0.005)
    plural = pace.unit if steps == 1 else f"{pace.unit}s"
    text = f"{pace.name}: {steps} {plural} in {in_words(pace.clock() - pace.began)}"
    return f"{text} ({shares})" if shares else text


def table(evaluations: Sequence[Mapping[str, Any]], *, console: Console | None = None) -> None:
    """Print evaluations side by side, one metric a row, with intervals and the change from first to last.

    An evaluation is the content of evaluation/<name>.json. Only process 0 prints.
    """
    if not is_primary() or not evaluations:
        return
    console = console or Console()
    ordered = columns(evaluations)
    drawn = Table(box=None, padding=(0, 2), title_justify="left", pad_edge=False)
    drawn.add_column("held-out", style="bold")
    for evaluation in ordered:
        drawn.add_column(Text(str(evaluation["name"])), justify="right")
    if len(ordered) > 1:
        drawn.add_column("change", justify="right")
    for row in metric_rows(ordered):
        cells = [Text(f"{show(cell)} {show_interval(cell)}".strip()) for cell in row.cells]
        difference = [Text(change(row))] if len(ordered) > 1 else []
        drawn.add_row(Text(row.name), *cells, *difference)
    console.print(drawn)
