"""From worked solutions and conversations to token rows that say which tokens are learnt.

Prompt and completion are encoded apart and joined as ids, so that the prompt's ids are exactly those that the
policy is asked to continue in reinforcement, and the border between context and learnt tokens is never inside
a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grpo_jax.config import PromptConfig
from grpo_jax.data.encoding import TokenizerError, as_data, encode, tokenizer_name
from grpo_jax.data.prompts import mark_message, problem_name, prompt_ids, prompt_messages, uses_chat
from grpo_jax.data.templates import render
from grpo_jax.types import Problem

# Behind the fence of a program: what a tool has said, with the line break before it and the one after.
_OUTPUT = re.compile(r"(?<=\n```)(\n```output\n(?:.*?\n)?```(?:\n|$))", re.DOTALL)


class DemonstrationError(ValueError):
    """A problem that shows nothing to learn from, or an example that is too long; the message names it."""


class Example(NamedTuple):
    """One row of text for supervised fine-tuning."""

    tokens: np.ndarray  # [T] i32
    loss_mask: np.ndarray  # [T] bool, True where the policy learns to say the token
    name: str  # what a message calls it


def demonstrations(
    problems: Sequence[Problem], config: PromptConfig, tokenizer, eos_ids: tuple[int, ...]
) -> list[Example]:
    """Return the example of every problem, in order."""
    return [demonstration(p, config, tokenizer, eos_ids, problem_name(p, i)) for i, p in enumerate(problems)]


def demonstration(
    problem: Problem, config: PromptConfig, tokenizer, eos_ids: tuple[int, ...], name: str = ""
) -> Example:
    """Return the prompt's tokens as context and the completion's as learnt, its end of sequence included.

    The output of a program, "```output" behind its block, is context too: a tool writes it. Of a conversation every
    assistant turn is learnt, up to its end of turn. Raises `DemonstrationError` without a solution or an assistant
    turn, `TokenizerError` if the chat template rewrites earlier turns.
    """
    name = name or problem_name(problem)
    if uses_chat(problem, config, tokenizer):
        pieces = _turns(problem, config, tokenizer, eos_ids, name)
    else:
        solution = as_data(_solution(problem, name), tokenizer, markup=False)
        parts = [(encode(tokenizer, part, continues=True), learnt) for part, learnt in _parts(solution)]
        pieces = [(prompt_ids(problem, config, tokenizer), False), *parts, ([eos_ids[0]], True)]
    tokens = np.array([i for ids, _ in pieces for i in ids], np.int32)  # [T]
    loss_mask = np.repeat([learnt for _, learnt in pieces], [len(ids) for ids, _ in pieces])  # [T]
    loss_mask[:1] = False  # nothing stands before the first token to predict it from
    return Example(tokens, loss_mask, name)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """What a text says, learnt, and between it the outputs of its programs, which a tool writes: the last is learnt.

    They are encoded apart, as in sampling, where one hears the other.
    """
    for i, part in enumerate(_OUTPUT.split(text)):
        yield part, i % 2 == 0


def _solution(problem: Problem, name: str) -> str:
    turns = _closing_turns(problem, name)
    if len(turns) != 1:
        raise DemonstrationError(f"{name}: {len(turns)} assistant turns in a row; prompt.format text takes one")
    return turns[0]["content"]


def _closing_turns(problem: Problem, name: str) -> list[dict[str, str]]:
    """What answers the prompt: the assistant turns that end the conversation, or else the solution."""
    messages = list(problem.messages or ())
    start = max((i + 1 for i, m in enumerate(messages) if m["role"] != "assistant"), default=0)
    if start == len(messages) and problem.solution is not None:
        return [{"role": "assistant", "content": problem.solution}]
    if start == len(messages):
        raise DemonstrationError(
            f"{name}: nothing to learn: it has no solution (or completion) and ends with no assistant turn; "
            f"check the field names of the source"
        )
    return messages[start:]


def _turns(
    problem: Problem, config: PromptConfig, tokenizer, eos_ids: tuple[int, ...], name: str
) -> list[tuple[list[int], bool]]:
    """Pieces of ids, learnt or not: what the template writes before, in and after each assistant turn."""
    closing = [mark_message(message, tokenizer) for message in _closing_turns(problem, name)]
    messages = prompt_messages(problem, config, tokenizer) + closing
    pieces, done = [], ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:i], generate=True, date=config.date)
        after = render(tokenizer, messages[: i + 1], generate=False, date=config.date)
        if not before.startswith(done) or not after.startswith(before):
            raise TokenizerError(_rewrites(tokenizer, name, i))
        pieces.append((encode(tokenizer, before[len(done) :], continues=bool(done)), False))
        *parts, (last, _) = _parts(after[len(before) :])
        pieces += [(encode(tokenizer, part, continues=True), learnt) for part, learnt in parts]
        said, tail = _until_eos(encode(tokenizer, last, continues=True), eos_ids)
        pieces += [(said, True), (tail, False)]
        done = after
    pieces.pop()  # what the template writes after the last end of turn is never reached
    return pieces if pieces[-1][0][-1:] and pieces[-1][0][-1] in eos_ids else [*pieces, ([eos_ids[0]], True)]


def _until_eos(ids: list[int], eos_ids: tuple[int, ...]) -> tuple[list[int], list[int]]:
    end = next((i + 1 for i, token in enumerate(ids) if token in eos_ids), len(ids))
    return ids[:end], ids[end:]


def _rewrites(tokenizer, name: str, turn: int) -> str:
    return (
        f"tokenizer {tokenizer_name(tokenizer)}: its chat template writes earlier turns differently once "
        f"turn {turn + 1} of {name} is there, so the tokens learnt would not be those that the policy says; "
        f"set prompt.format to text, or use a template that only appends"
    )


def fit(
    examples: Sequence[Example], max_length: int, policy: str, note: Callable[[str], None] = print
) -> list[Example]:
    """Apply `overlong_examples` to the examples longer than `max_length` tokens: "error", "drop" or
    "truncate".

    Truncation cuts the end; an example of which only context is left is dropped. `note` is told how many were
    cut and dropped. Raises `DemonstrationError` naming the first one, or if no example is left.
    """
    long = [example for example in examples if len(example.tokens) > max_length]
    if long and policy == "error":
        raise DemonstrationError(
            f"{long[0].name}: {len(long[0].tokens)} tokens, the limit sft.max_length is {max_length} "
            f"({len(long)} of {len(examples)} examples are too long); raise it, "
            f"or set sft.overlong_examples to drop or truncate"
        )
    if policy == "truncate":
        cut = (Example(e.tokens[:max_length], e.loss_mask[:max_length], e.name) for e in examples)
        kept = [example for example in cut if example.loss_mask.any()]
    else:
        kept = [example for example in examples if len(example.tokens) <= max_length]
    total, dropped = len(examples), len(examples) - len(kept)
    if long:
        note(
            f"demonstrations: of {total}, {len(long) - dropped} were cut to {max_length} tokens and {dropped} left out"
        )
    if not kept:
        raise DemonstrationError(f"demonstrations: none of {total} examples is left with sft.max_length {max_length}")
    return kept
