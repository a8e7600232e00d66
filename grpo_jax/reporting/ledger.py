"""ledger.json: what a run did and what it took, so that runs are comparable at equal generated tokens.

    {"run", "choices", "totals", "parts", "stages": {"rl": {
        "method", "data", "rewards", "choices", "starts_from", "state", "step", "counts": {
            "prompts", "completions", "generated_tokens", "tool_tokens",        what was sampled, refill rounds included
            "trained_tokens", "labels", "optimizer_steps",                      what was learnt from it
            "seconds", "device_seconds"}}}}                                     of the work that counts

Counts are those of what is saved: a checkpoint keeps them, so that work which a kill has lost, and which is done again,
counts once. Written whole when a stage begins, when a checkpoint has reached the disk, and at the stage's end. What a
stage does as a part of itself, in directories below its own, has a ledger there: `parts` has its totals by directory,
and the run's are with them, and without those of evaluations.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_jax.config import Config
from grpo_jax.reporting.choices import choices, method, rewards, sources
from grpo_jax.reporting.files import is_primary, parse_object, write_atomically

NAME = "ledger.json"
EVALUATION = "evaluation"  # of a finished policy; what is measured between steps is not counted
COUNTED = (
    "prompts",
    "completions",
    "generated_tokens",
    "tool_tokens",
    "trained_tokens",
    "labels",
    "optimizer_steps",
    "seconds",
    "device_seconds",
)
SHOWN = ("generated_tokens", "trained_tokens", "optimizer_steps")  # in every line of metrics, from the stage's start


def described(config: Config, stage: str) -> dict[str, Any]:
    """What the config says of a stage: method, data, rewards and choices."""
    return {
        "method": method(config, stage),
        "data": {"sources": sources(config, stage)},
        "rewards": rewards(config, stage),
        "choices": [one._asdict() for one in choices(config, stage)],
    }


def read_ledger(directory: str | Path) -> dict[str, Any]:
    """The ledger of a run's directory; {} where there is none.

    Raises ValueError naming the file if it is not a JSON object.
    """
    path = Path(directory) / NAME
    if not path.is_file():
        return {}
    found = parse_object(path.read_text("utf-8"))
    if found is None:
        raise ValueError(f"{path}: not a JSON object; delete it, and the run writes it anew as it goes on")
    return found


class Ledger:
    """The ledger of one run. Every process counts, the first one writes.

    A checkpoint keeps `kept(stage, step)`, and `begin` is given it when the stage goes on from there.
    """

    _writing = threading.Lock()  # checkpoints reach the disk in a thread of their own

    def __init__(self, directory: Path, config: Config, devices: int):
        self.directory, self.config, self.devices = directory, config, devices
        self._accounts: dict[str, _Account] = {}

    def begin(self, stage: str, data: Any, saved: Mapping[str, Any] | None = None, *, step: int = 0) -> None:
        """Open the account of a stage, or go on from what a checkpoint of it has kept.

        `data` is what a checkpoint keeps of the data; `step` is that of the checkpoint. One that has kept nothing is
        of an older program: what it did before is not counted, and `counted_from_step` says so.
        """
        entry = described(self.config, stage)
        entry["data"] |= {"rows": data["problems"], "fingerprint": data["fingerprint"]}
        if step and saved is None:
            entry["counted_from_step"] = step
        account = self._accounts[stage] = _Account(entry, self.devices, saved or {})
        account.saved[step] = account.snapshot()
        self._write(stage, step, "running")

    def tell(self, stage: str, **facts: Any) -> None:
        """Add to what is known of a stage, such as the weights that it starts from; checkpoints keep it.

        Of a stage that has no account nothing is kept.
        """
        if stage not in self._accounts:
            return
        self._accounts[stage].told |= facts
        if is_primary():
            with self._writing:
                content = self._content()
                content["stages"][stage] |= facts
                self._put(content)

    def count(self, stage: str, **numbers: float) -> None:
        """Add what a step took. Raises `KeyError` for what is not among the counts."""
        counts = self._accounts[stage].counts
        for name, number in numbers.items():
            counts[name] += int(number)

    def reset(self, stage: str, **numbers: float) -> None:
        """Set counts to what the files say of a stage that keeps no checkpoints; the seconds stay."""
        counts = self._accounts[stage].counts
        counts |= {name: 0 for name in COUNTED if "seconds" not in name} | numbers

    def written(self, stage: str) -> dict[str, Any] | None:
        """What the file has of a stage that keeps no checkpoints, as one of them would have kept it."""
        entry = read_ledger(self.directory).get("stages", {}).get(stage)
        return entry and {name: entry[name] for name in ("began", "starts_from", "counts") if name in entry}

    def advance(self, stage: str, step: int) -> None:
        """Write how far a stage is that keeps no checkpoints."""
        self.kept(stage, step)
        self._write(stage, step, "running")

    @contextlib.contextmanager
    def paused(self, stage: str) -> Iterator[None]:
        """What is inside takes none of a stage's time: it is counted elsewhere."""
        self._accounts[stage].stop()
        try:
            yield
        finally:
            self._accounts[stage].go_on()

    def totals(self, stage: str) -> dict[str, int]:
        """What a stage has taken so far, for its lines of metrics."""
        return {f"total/{name}": self._accounts[stage].counts[name] for name in SHOWN}

    def kept(self, stage: str, step: int) -> dict[str, Any] | None:
        """What a checkpoint of a step is to keep; None of a stage that has no account."""
        account = self._accounts.get(stage)
        if account is None:
            return None
        account.saved[step] = account.snapshot()
        return account.saved[step]

    def saved(self, stage: str, step: int) -> None:
        """Write that a step of a stage is on the disk."""
        if stage in self._accounts:
            self._write(stage, step, "running")

    def finish(self, stage: str, step: int) -> None:
        """Write that a stage is finished."""
        if stage in self._accounts:
            self.kept(stage, step)
            self._write(stage, step, "finished")

    def _write(self, stage: str, step: int, state: str) -> None:
        if not is_primary():  # who does not write need not read what the first one has written
            return
        account = self._accounts[stage]
        with self._writing:
            content = self._content()
            content["stages"][stage] = account.entry | account.saved[step] | {"state": state, "step": step}
            self._put(content)

    def _content(self) -> dict[str, Any]:
        return {
            "run": self.directory.name,
            "choices": [one._asdict() for one in choices(self.config, "")],
            "stages": read_ledger(self.directory).get("stages", {}),
        }

    def _put(self, content: dict[str, Any]) -> None:
        below = sorted(self.directory.glob(f"*/iteration_*/{NAME}"))
        parts = {str(path.parent.relative_to(self.directory)): read_ledger(path.parent)["totals"] for path in below}
        content |= {"parts": parts} if parts else {}
        learnt = [stage["counts"] for name, stage in content["stages"].items() if name != EVALUATION]
        content["totals"] = totals([*learnt, *parts.values()])
        write_atomically(self.directory / NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


class _Account:
    """What is known of a stage, and its counts; the clock runs from here."""

    def __init__(self, entry: dict[str, Any], devices: int, saved: Mapping[str, Any]):
        self.entry, self.devices, self.started = entry, devices, time.monotonic()  # None: the clock stands
        self.counts = dict.fromkeys(COUNTED, 0) | saved.get("counts", {})
        self.told = {name: value for name, value in saved.items() if name != "counts"}
        self.told.setdefault("began", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        self.saved: dict[int, dict[str, Any]] = {}  # by step

    def snapshot(self) -> dict[str, Any]:
        times = {name: round(seconds, 3) for name, seconds in self.times().items()}
        return {**self.told, "counts": self.counts | times}

    def times(self) -> dict[str, float]:
        seconds = 0.0 if self.started is None else time.monotonic() - self.started
        of_both = {"seconds": seconds, "device_seconds": seconds * self.devices}
        return {name: self.counts[name] + more for name, more in of_both.items()}

    def stop(self) -> None:
        self.counts |= self.times()
        self.started = None

    def go_on(self) -> None:
        self.started = time.monotonic()


def totals(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Counts together."""
    counts = list(counts)
    return {name: round(sum(one[name] for one in counts), 3) for name in COUNTED}
