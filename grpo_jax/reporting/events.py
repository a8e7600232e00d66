"""What reinforcement did, in its order: `rl/events.jsonl`, a line for each line of Algorithm 1 that was carried out.

    {"line": 7, "event": "completions", "iteration": 2, "step": 3, "updates": 2}

`line` is the line of the algorithm (arXiv:2402.03300; 2, 4 and 10 are the heads of loops and have none), iteration and
step count from 1, `updates` is how many there were before it: it tells which policy did what is told. A reference that
is mixed (`rl.sync_ref_model`) is one of line 3 with its `alpha`.

A line is written when the loop starts what it tells of. Programs run on the devices in the order in which they are
started, so that this is the order of the devices too, although steps are sampled while the host still writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grpo_jax.reporting.files import is_primary, read_json_lines, to_json, write_atomically

NAME = "events.jsonl"
EVENTS = {
    1: "initial policy",
    3: "reference",
    5: "prompts",
    6: "old policy",
    7: "completions",
    8: "rewards",
    9: "advantages",
    11: "update",
    12: "reward model",
}
UPDATE = 11


class Events:
    """Appends to the events of a stage; process 0 writes. `updates` counts the updates that were told of."""

    def __init__(self, directory: Path, *, max_steps: int, num_iterations: int):
        self.path, self.updates = directory / NAME, 0
        self._max_steps, self._num_iterations = max_steps, num_iterations

    def go_on_after(self, step: int) -> None:
        """Drop what came after the last update of a step: a run that goes on there does it again."""
        self.updates = step * self._num_iterations
        if is_primary() and self.path.exists():
            write_atomically(self.path, "".join(to_json(line) + "\n" for line in until(read_events(self.path), step)))

    def write(self, line: int, step: int, **facts: Any) -> None:
        """Append that a line of the algorithm is carried out for a step, from 1."""
        iteration = (step - 1) // self._max_steps + 1
        what = {"line": line, "event": EVENTS[line], "iteration": iteration, "step": step, "updates": self.updates}
        self.updates += line == UPDATE
        if not is_primary():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(to_json(what | facts) + "\n")


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file, oldest first; a last line cut by a crash is left out. Raises ValueError for a bad line."""
    events, problems = read_json_lines(path)
    if problems:
        raise ValueError(f"{problems[0]}; repair or delete the line")
    return events


def until(events: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The events up to the last update of a step and what follows it at once; none if the step is 0."""
    done = (event["step"] <= step and (event["line"] == UPDATE or "alpha" in event) for event in events)
    last = [i for i, is_done in enumerate(done) if is_done]
    return events[: last[-1] + 1] if last else []
