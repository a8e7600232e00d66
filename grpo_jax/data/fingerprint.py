"""A short name for a list of problems, kept in checkpoints so that changed data is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from grpo_jax.types import Problem

LOOKED_AT = 50_000
"""Problems that are hashed; of a longer list so many, evenly spread, and its length."""


def fingerprint(problems: Sequence[Problem]) -> str:
    """Return 16 hex digits that depend on the number of problems and on ids, questions, answers and
    solutions.

    All are looked at up to 50,000 problems; of a longer list so many evenly spread ones, so that the cost is
    bounded and a line that was inserted or removed still shows in the length.
    """
    total = len(problems)
    step = max(1, -(-total // LOOKED_AT))
    digest = hashlib.sha256(str(total).encode())
    for i in range(0, total, step):
        p = problems[i]
        text = json.dumps([p.id, p.question, p.answer, p.solution, p.messages])
        digest.update(text.encode())
    return digest.hexdigest()[:16]
