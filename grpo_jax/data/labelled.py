"""Solutions in steps with what is known of each step, and preferences: what reward models are trained on.

A step is a line. Its label is the probability that it is good: 0 or 1, a share of completions that came out right
(Math-Shepherd's soft estimate), or None where nobody has said. A step's score is read at its last token: the newline
that ends it or the end of sequence behind the last one, or at the step tag where the model has one.

Prompt and steps are encoded apart and joined as ids, so that the end of a step is never inside a token; what a policy
has sampled comes as its ids and is never encoded again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from grpo_jax.config import PromptConfig
from grpo_jax.data.encoding import as_data, encode
from grpo_jax.data.prompts import prompt_ids
from grpo_jax.types import Problem

Supervision = Literal["process", "outcome", "preference"]


class LabelError(ValueError):
    """Labelled solutions that cannot be learnt from; the message names the row, both values and the remedy."""

    exit_code = 2


class Sampled(NamedTuple):
    """The token ids of a solution that a policy has written."""

    prompt: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]  # the end of sequence is in the last one
    tokenizer: str  # `tokenizer_mark` of the one that they belong to


class Labelled(NamedTuple):
    """A solution in steps. `labels` has one entry a step: the probability that it is good, or None."""

    problem: Problem
    steps: tuple[str, ...]  # without the newlines between them
    labels: tuple[float | None, ...]
    outcome: float | None = None  # of the solution: whether its answer is right
    sampled: Sampled | None = None


class Preference(NamedTuple):
    """Two solutions of a problem, the first better than the second."""

    problem: Problem
    chosen: str
    rejected: str


class Scored(NamedTuple):
    """A row of tokens with the places whose scores are learnt; a preference is two rows one after the other."""

    tokens: np.ndarray  # [T] i32
    targets: np.ndarray  # [T] f32, in 0 to 1; of a preference 1 at the end of the chosen, 0 of the rejected
    mask: np.ndarray  # [T] bool, where a score is learnt
    second: int  # where the rejected solution begins; 0: one solution
    question: str  # those of one question are never held out and learnt from
    name: str


class Writing(NamedTuple):
    """How solutions become tokens."""

    prompt: PromptConfig
    tokenizer: Any
    eos_id: int
    step_tag: tuple[int, ...] = ()  # ids written behind each step, before the newline


def tokenizer_mark(tokenizer: Any) -> str:
    """A short name for a vocabulary: equal for tokenizers that give the same ids the same meaning."""
    return _mark(tokenizer, len(tokenizer))


@functools.lru_cache(maxsize=16)
def _mark(tokenizer: Any, size: int) -> str:
    del size  # the key of the cache: a tokenizer may have grown
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def scored_examples(
    solutions: Sequence[Labelled | Preference],
    supervision: Supervision,
    writing: Writing,
    *,
    target: Literal["hard", "soft"] = "hard",
) -> list[Scored]:
    """The examples of a kind of supervision, in order; solutions of which nothing is known in it are left out.

    process: every labelled step at its end; outcome: the last token; preference: both last tokens. `hard` makes 1 of
    any label above 0 (arXiv:2312.08935, HE), `soft` keeps it (SE). Raises `LabelError`.
    """
    wanted = Preference if supervision == "preference" else Labelled
    for solution in solutions:
        if not isinstance(solution, wanted):
            raise LabelError(
                f"{solution.problem.id}: a {type(solution).__name__.lower()}, and reward_model.supervision "
                f"{supervision} learns from {'preferences' if wanted is Preference else 'labelled solutions'}; "
                "change the supervision, or reward_model.labels"
            )
    make = {"process": _steps, "outcome": _outcome, "preference": _preference}[supervision]
    examples = [example for s in solutions if (example := make(s, writing, target)) is not None]
    if not examples:
        raise LabelError(f"reward_model.labels: none of {len(solutions)} solutions has a label for {supervision}")
    return examples


def fitting(
    examples: Sequence[Scored], max_length: int, note: Callable[[str], None], *, section: str = "reward_model"
) -> list[Scored]:
    """The examples of at most `max_length` tokens; `note` is told how many are longer. Raises `LabelError` if all are.

    A longer one cannot be cut: its end is where it is scored. `section` is that of the setting.
    """
    kept = [example for example in examples if len(example.tokens) <= max_length]
    if len(kept) < len(examples):
        left_out = len(examples) - len(kept)
        note(f"{section}: {left_out} of {len(examples)} solutions have more than {max_length} tokens: left out")
    if not kept:
        shortest = min(len(example.tokens) for example in examples)
        raise LabelError(
            f"{section}.max_length: {max_length}, and the shortest of {len(examples)} examples has {shortest} "
            "tokens; raise it"
        )
    return kept


def hold_out(examples: Sequence[Scored], share: float, seed: int) -> tuple[list[Scored], list[Scored]]:
    """(to learn from, held out): about so large a share of the questions, chosen by their text, is held out."""
    parts: tuple[list[Scored], list[Scored]] = ([], [])
    for example in examples:
        parts[is_held_out(example.question, share, seed)].append(example)
    return parts


def is_held_out(question: str, share: float, seed: int) -> bool:
    """Whether a question is among the share that is held out."""
    digest = hashlib.blake2b(f"{seed}/{question}".encode(), digest_size=7).digest()
    return int.from_bytes(digest) / 2**56 < share


def _steps(solution: Labelled, writing: Writing, target: str) -> Scored | None:
    if all(label is None for label in solution.labels):
        return None
    prompt, steps, ends = _pieces(solution, writing)
    starts = len(prompt) + np.cumsum([0] + [len(ids) for ids in steps[:-1]])
    places = [start + end - 1 for start, end in zip(starts, ends, strict=True)]
    known = [(place, label) for place, label in zip(places, solution.labels, strict=True) if label is not None]
    return _example(solution, prompt, steps, known, target)


def _outcome(solution: Labelled, writing: Writing, target: str) -> Scored | None:
    if solution.outcome is None:
        return None
    prompt, steps, _ = _pieces(solution, writing)
    last = len(prompt) + sum(map(len, steps)) - 1
    return _example(solution, prompt, steps, [(last, solution.outcome)], target)


def _preference(pair: Preference, writing: Writing, target: str) -> Scored:
    del target
    prompt = prompt_ids(pair.problem, writing.prompt, writing.tokenizer)
    rows = [[*prompt, *_text(text, writing), writing.eos_id] for text in (pair.chosen, pair.rejected)]
    second = len(rows[0])
    example = _example(pair, rows[0], rows[1:], [(second - 1, 1.0), (second + len(rows[1]) - 1, 0.0)], "soft")
    return example._replace(second=second)


def _example(solution: Any, prompt: Sequence[int], rest: Sequence[Sequence[int]], known: Any, target: str) -> Scored:
    tokens = np.array([*prompt, *(i for ids in rest for i in ids)], np.int32)
    targets, mask = np.zeros(len(tokens), np.float32), np.zeros(len(tokens), bool)
    for place, label in known:
        mask[place], targets[place] = True, float(label > 0) if target == "hard" else label
    return Scored(tokens, targets, mask, 0, solution.problem.question, solution.problem.id)


def _pieces(solution: Labelled, writing: Writing) -> tuple[list[int], list[list[int]], list[int]]:
    """The prompt, the ids of each step with all that stands behind it, and how many of these end with its score."""
    if solution.sampled is not None:
        return _sampled_pieces(solution, writing)
    prompt, last = prompt_ids(solution.problem, writing.prompt, writing.tokenizer), len(solution.steps) - 1
    steps, ends = [], []
    for number, text in enumerate(solution.steps):
        newline = "" if number == last else "\n"
        if writing.step_tag:
            scored = [*_text(text, writing), *writing.step_tag]
            behind = [writing.eos_id] if number == last else _text(newline, writing)
        else:
            scored, behind = [*_text(text + newline, writing), *([writing.eos_id] if number == last else [])], []
        steps.append([*scored, *behind])
        ends.append(len(scored))
    return prompt, steps, ends


def _sampled_pieces(solution: Labelled, writing: Writing) -> tuple[list[int], list[list[int]], list[int]]:
    mine = tokenizer_mark(writing.tokenizer)
    if solution.sampled.tokenizer != mine:
        raise LabelError(
            f"{solution.problem.id}: its tokens are of tokenizer {solution.sampled.tokenizer}, this run's is {mine}; "
            "label with the tokenizer of the model that is to be trained"
        )
    steps = [[*ids, *writing.step_tag] for ids in solution.sampled.steps]
    return list(solution.sampled.prompt), steps, [len(ids) for ids in steps]


def _text(text: str, writing: Writing) -> list[int]:
    return encode(writing.tokenizer, as_data(text, writing.tokenizer, markup=False), continues=True)
