"""The picture of who waited for whom: the lanes of each step that was kept, as numbers for SVG.

x is in per cent of the longest step shown but the first, which compiles: the pictures stretch with the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax.reporting.files import finite, read_json_lines
from grpo_jax.reporting.pace import in_words

LANES = {"device": "devices", "graders": "graders", "loop": "loop"}  # where, and what the lane is called
ASIDE = {"aside": "between"}  # a lane that only steps with something between them and the one before have
KINDS = ("sample", "judge", "read", "reference", "old", "update", "check", "evaluate")  # with a colour; others are grey
LANE_HEIGHT, LANE_PITCH = 14, 18
LONG = 0.08  # of the width: from here on a span has its name written on it


class Block(NamedTuple):
    """A span: place and width in per cent, its colour, what it says, and whether there is room for that."""

    x: float
    width: float
    kind: str
    label: str
    title: str


class Lane(NamedTuple):
    """What one of them did."""

    name: str
    y: int
    blocks: list[Block]


class StepLanes(NamedTuple):
    """A step: its length, and in words for how long each waited."""

    step: int
    width: float  # per cent
    waited: str
    lanes: list[Lane]


def read_lanes(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of a timeline that can be drawn, and a sentence for each that cannot."""
    if not path.is_file():
        return [], []
    records, problems = read_json_lines(path)
    good = [record for record in records if drawable(record)]
    if len(good) < len(records):
        problems.append(f"{path}: {len(records) - len(good)} lines are not steps with spans; left out")
    return good, problems


def drawable(record: Mapping[str, Any]) -> bool:
    """Whether a line has a step, its seconds and spans."""
    spans = record.get("spans")
    numbers = isinstance(record.get("step"), int) and (finite(record.get("seconds")) or 0) > 0
    return numbers and isinstance(spans, list) and all(is_span(span) for span in spans)


def is_span(span: Any) -> bool:
    """Whether this is a span: a place, a name, a step, and two times."""
    return (
        isinstance(span, Mapping)
        and all(isinstance(span.get(name), str) for name in ("where", "what"))
        and isinstance(span.get("step"), int)
        and all(finite(span.get(name)) is not None for name in ("start", "end"))
    )


def step_lanes(records: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> list[StepLanes]:
    """The pictures of the steps, to one scale."""
    steady = [record["seconds"] for record in records if record["step"] > 1] or [r["seconds"] for r in records]
    longest = max(steady, default=1.0)
    of_step = {line["step"]: line for line in metrics}
    return [draw_step(record, longest, of_step.get(record["step"], {})) for record in records]


def draw_step(record: Mapping[str, Any], longest: float, metrics: Mapping[str, Any]) -> StepLanes:
    """One step; one that is longer than the scale is drawn as long as that, and squeezed."""
    scale = 100 / max(longest, record["seconds"])
    lanes = []
    aside = [span for span in record["spans"] if span["where"] in ASIDE]
    for number, (where, name) in enumerate((LANES | (ASIDE if aside else {})).items()):
        spans = [span for span in record["spans"] if span["where"] == where]
        lanes.append(Lane(name, number * LANE_PITCH, [block(span, record["step"], scale) for span in spans]))
    device, host = (finite(metrics.get(f"time/{name}_idle_s")) for name in ("device", "host"))
    words = [in_words(record["seconds"])]
    words += [f"device waits for the host {share(device, record)}"] if device is not None else []
    words += [f"host waits for the device {share(host, record)}"] if host is not None else []
    words += [f"{span['what']} {share(span['end'] - span['start'], record)}" for span in aside]
    squeezed = record["seconds"] > longest
    return StepLanes(
        record["step"],
        round(scale * record["seconds"], 2),
        ", ".join(words) + (", drawn shorter" if squeezed else ""),
        lanes,
    )


def share(seconds: float, record: Mapping[str, Any]) -> str:
    """Seconds and their share of the step."""
    return f"{in_words(seconds) if seconds >= 1 else f'{1000 * seconds:.0f} ms'} ({seconds / record['seconds']:.0%})"


def block(span: Mapping[str, Any], step: int, scale: float) -> Block:
    """A span with its words."""
    width = scale * (span["end"] - span["start"])
    of = f" for step {span['step']}" if span["step"] != step else ""
    kind = span["what"] if span["what"] in KINDS else "other"
    label = span["what"] + (f" {span['step']}" if of else "")
    title = f"{span['what']}{of}: {1000 * (span['end'] - span['start']):.1f} ms from {1000 * span['start']:.1f} ms"
    fits = width >= 100 * LONG
    return Block(round(scale * span["start"], 3), round(max(width, 0.15), 3), kind, label if fits else "", title)
