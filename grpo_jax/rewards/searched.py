"""Search a user's regular expression in many texts, in a worker: it may take exponential time on the wrong text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from grpo_jax.rewards.workers import Workers


def search(pattern: str, texts: Sequence[str], workers: Workers, *, total: float) -> list[bool | None]:
    """Whether `pattern` is found in each text; None where that is not known after `total` seconds."""
    if not texts:
        return []
    whole = workers.map(find_all, [(pattern, list(texts))], time_limit=total / 2)[0]
    if whole.kind == "value":
        return whole.value
    items = [(pattern, [text]) for text in texts]
    outcomes = workers.map(find_all, items, time_limit=total / 16, total=total / 2)
    return [outcome.value[0] if outcome.kind == "value" else None for outcome in outcomes]


def find_all(item: tuple[str, list[str]]) -> list[bool]:
    """Run in a worker: search one pattern in all texts."""
    pattern, texts = item
    return [re.search(pattern, text, re.DOTALL) is not None for text in texts]
