"""From lines of metrics to curves that are short enough to be looked at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.reporting.files import finite
from grpo_jax.reporting.metrics import RESERVED

MAX_POINTS = 1000  # of a curve as it is; a longer one is drawn as means of stretches, with their range
MAX_NUMBERS = 150_000  # of all curves of a report together: about 1 MB


def curves(records: Sequence[Mapping[str, Any]], max_numbers: int = MAX_NUMBERS) -> dict[str, Any]:
    """The curves of a stage: {"steps": [N], "series": {key: {"mean": [N], "low": ..., "high": ...}}, ...}.

    Runs with more lines than fit are cut into stretches of equal length: "mean" is a stretch's mean, "low"
    and "high" its range, "steps" its last step. A value that was not finite is null, and its step is in the
    curve's "broken".
    """
    keys = metric_keys(records)
    limit = min(MAX_POINTS, max(50, max_numbers // (3 * max(len(keys), 1))))
    whole = len(records) <= limit
    stretches = cut(records, len(records) if whole else limit)
    return {
        "steps": [stretch[-1]["step"] for stretch in stretches],
        "lines": len(records),
        "every": 1 if whole else math.ceil(len(records) / limit),
        "series": {key: curve(key, stretches, whole) for key in keys},
    }


def metric_keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that hold numbers, in the order of their first appearance."""
    keys: dict[str, None] = {}
    for record in records:
        for key, value in record.items():
            if key not in keys and key not in RESERVED and (value is None or finite(value) is not None):
                keys[key] = None
    return list(keys)


def cut(records: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """Consecutive stretches whose lengths differ by one at most; `parts` at most the number of records."""
    edges = [round(i * len(records) / parts) for i in range(parts + 1)] if parts else []
    return [records[a:b] for a, b in itertools.pairwise(edges)]


def curve(key: str, stretches: Sequence[Sequence[Mapping[str, Any]]], whole: bool) -> dict[str, Any]:
    """One curve: a number a stretch, with the range of each where stretches hold more than one line."""
    values = [[v for r in stretch if (v := finite(r.get(key))) is not None] for stretch in stretches]
    drawn: dict[str, Any] = {"mean": [short(sum(v) / len(v)) if v else None for v in values]}
    if not whole:
        drawn["low"] = [short(min(v)) if v else None for v in values]
        drawn["high"] = [short(max(v)) if v else None for v in values]
    broken = [r["step"] for stretch in stretches for r in stretch if key in (r.get("nonfinite") or {})]
    return drawn | ({"broken": broken[:500]} if broken else {})


def short(value: float) -> float | int:
    """Five significant digits, as an integer where it is one."""
    value = float(f"{value:.5g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
