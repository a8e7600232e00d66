"""The form of MATH-APS (OmegaPRM's tree of prefixes, arXiv:2406.06592): each with its share of right completions.

    {"question": ..., "final_answer": ..., "reasoning_steps": [{"solution_prefix": ..., "mc_value": 0.75}, ...]}

A prefix begins with the question; what it adds to the longest other prefix that it continues is one step, which may
have several lines. Every prefix that no other continues is a solution; its steps are labelled with the shares of
the prefixes that they end. Where two prefixes are equal the first counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpo_jax.config import config
from grpo_jax.data.label_files import LabelFile, read_labels

if TYPE_CHECKING:
    from grpo_jax.data.labelled import Labelled


@config
class Config(LabelFile):
    """The rows of MATH-APS, as released."""


def build(config: Config, seed: int) -> list[Labelled]:
    """Return the solutions of the file; `seed` changes nothing. Raises `RowError` naming the line."""
    del seed
    return read_labels(config, _solutions)


def _solutions(row: Any, name: str) -> list[Labelled]:
    from grpo_jax.data.labelled import Labelled
    from grpo_jax.data.rows import RowError
    from grpo_jax.types import Problem

    question = row["question"]
    shares: dict[str, float] = {}
    for step in row["reasoning_steps"]:
        prefix = step["solution_prefix"]
        if not prefix.startswith(question) or not 0 <= step["mc_value"] <= 1:
            raise RowError(f"{name}: a solution_prefix without the question in front, or an mc_value off 0 to 1")
        shares.setdefault(prefix, float(step["mc_value"]))
    ordered = sorted(shares, key=len)
    parent = {p: next((q for q in reversed(ordered[:i]) if p.startswith(q)), question) for i, p in enumerate(ordered)}
    problem = Problem(question, str(row.get("final_answer") or ""), source="math_aps", id=name)
    found = []
    for leaf in sorted(set(ordered) - set(parent.values()) - {question}, key=ordered.index):
        chain = [leaf]
        while parent[chain[-1]] != question:
            chain.append(parent[chain[-1]])
        chain.reverse()
        steps = tuple(prefix[len(parent[prefix]) :].strip("\n") for prefix in chain)
        found.append(Labelled(problem, steps, tuple(shares[prefix] for prefix in chain)))
    return found
