"""The problems of a stage: read, checked against the prompt limit, and fingerprinted so that a resume can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_jax.configure import find
from grpo_jax.data.fingerprint import fingerprint
from grpo_jax.data.prompts import usable
from grpo_jax.data.rows import check_answers
from grpo_jax.stages.run import Run
from grpo_jax.types import Problem


class Selected(Sequence):
    """The problems of a source whose prompts fit, in the source's order."""

    def __init__(self, problems: Sequence[Problem], numbers: Sequence[int]):
        self.problems, self.numbers = problems, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Problem:
        return self.problems[int(self.numbers[index])]


def read_source(run: Run, source: Any) -> Sequence[Problem]:
    """The problems of a source as they are."""
    return find("data.sources", source.kind).build(source, run.config.seed)


def load_problems(run: Run, source: Any) -> Sequence[Problem]:
    """The problems of a source that have a usable prompt; says how many were left out."""
    problems = read_source(run, source)
    return Selected(problems, usable(problems, run.config.prompt, run.tokenizer, run.note))


def load_answered(run: Run, source: Any) -> Sequence[Problem]:
    """The problems of a source that have a usable prompt; each must have a reference answer to be judged by."""
    problems = load_problems(run, source)
    check_answers(problems)
    return problems


def source_record(problems: Sequence[Problem]) -> dict[str, Any]:
    """What a checkpoint keeps of its data: how many problems, and a fingerprint of them."""
    return {"problems": len(problems), "fingerprint": fingerprint(problems)}
