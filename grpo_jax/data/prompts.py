"""From problems to left-padded prompts, the arrays that sampler and trainer share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from grpo_jax.config import PromptConfig
from grpo_jax.data.encoding import TokenizerError, as_data, encode, tokenizer_name, unmarked
from grpo_jax.data.templates import has_template, render
from grpo_jax.data.tokenizer import pad_id
from grpo_jax.types import Problem, Prompts, Sequences


class PromptError(ValueError):
    """A problem that cannot become a prompt; the message names it, and the remedy."""


def problem_name(problem: Problem, number: int | None = None) -> str:
    """Return what a message calls the problem: its id (for files, file:line), or its number."""
    return problem.id or (f"problem {number}" if number is not None else repr(problem.question[:60]))


def uses_chat(problem: Problem, config: PromptConfig, tokenizer) -> bool:
    """Whether the prompt is written by the chat template: asked for, or `auto` and there is one.

    Raises `PromptError` where this would pass over examples, or over a template without saying so.
    """
    chat = config.format == "chat" or (config.format == "auto" and has_template(tokenizer))
    if chat and (config.examples or config.examples_file):
        raise PromptError(
            f"prompt.examples: format text writes them, but this prompt is written by the chat template of tokenizer "
            f"{tokenizer_name(tokenizer)}; set prompt.format to text, or leave the examples out"
        )
    if chat and config.format == "auto" and (config.template != PromptConfig.template or config.template_file):
        raise PromptError(
            f"prompt.template is given, and tokenizer {tokenizer_name(tokenizer)} has a chat template; "
            f"set prompt.format to text for the first, or to chat for the second"
        )
    return chat


def prompt_text(problem: Problem, config: PromptConfig, tokenizer) -> str:
    """Return the prompt as a reader should see it, for reports and reward functions."""
    return unmarked(marked_prompt(problem, config, tokenizer))


def marked_prompt(problem: Problem, config: PromptConfig, tokenizer) -> str:
    """Return the prompt as text for `encode`, the control tokens of the data marked (`encoding.as_data`).

    The templates may write control tokens; the question, and the examples before it, are data.
    """
    if uses_chat(problem, config, tokenizer):
        return render(tokenizer, prompt_messages(problem, config, tokenizer), generate=True, date=config.date)
    question = as_data(plain_question(problem), tokenizer) + config.suffix
    return few_shot(config, tokenizer) + config_template(config).replace("{question}", question)


def few_shot(config: PromptConfig, tokenizer) -> str:
    """Return the examples of the settings, each written as `prompt.example` says; marked as data."""
    return "".join(
        _example(config, as_data(question, tokenizer), as_data(answer, tokenizer))
        for question, answer in config.examples
    )


def _example(config: PromptConfig, question: str, answer: str) -> str:
    if config.example is None:
        return config_template(config).replace("{question}", question) + f" {answer}\n\n"
    text = {"{question}": question, "{answer}": answer}
    return re.sub(r"\{question\}|\{answer\}", lambda marker: text[marker[0]], config.example)


def prompt_ids(problem: Problem, config: PromptConfig, tokenizer) -> list[int]:
    """Return the token ids of the prompt, with exactly one beginning-of-sequence token where the tokenizer
    wants one.

    A chat template writes its own; before plain text the tokenizer's opening tokens are put, unless the
    template has written them. Raises `PromptError` for an empty prompt, `TokenizerError` for a template that
    doubles the token.
    """
    ids = encode(tokenizer, marked_prompt(problem, config, tokenizer))
    if not uses_chat(problem, config, tokenizer):
        opening = opening_ids(tokenizer)
        ids = ids if ids[: len(opening)] == opening else opening + ids
    if not ids:
        raise PromptError(f"{problem_name(problem)}: its prompt has no tokens; a question must have some text")
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: the prompt begins with {tokenizer.bos_token!r} twice; "
            f"remove it from prompt.template or from the chat template"
        )
    return ids


def prompt_messages(problem: Problem, config: PromptConfig, tokenizer) -> list[dict[str, str]]:
    """Return the conversation to be answered, contents marked as data; a closing assistant turn is left
    out."""
    messages = list(problem.messages or ({"role": "user", "content": problem.question},))
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise PromptError(f"{problem_name(problem)}: a conversation without a user turn; nothing to answer")
    messages = [mark_message(message, tokenizer) for message in messages]
    if messages[-1]["role"] == "user":
        messages[-1] = messages[-1] | {"content": messages[-1]["content"] + config.suffix}
    return with_system(messages, config)


def mark_message(message: dict[str, str], tokenizer) -> dict[str, str]:
    """Return the message with the control tokens of its role and content marked; what the assistant says may
    use markup."""
    markup = message["role"] != "assistant"
    role, content = as_data(message["role"], tokenizer), as_data(message["content"], tokenizer, markup=markup)
    return {**message, "role": role, "content": content}


def with_system(messages: list[dict[str, str]], config: PromptConfig) -> list[dict[str, str]]:
    """Return the messages with the configured system message in front, unless they have one."""
    if config.system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": config.system}, *messages]


def config_template(config: PromptConfig) -> str:
    """Return the template of format `text`.

    Raises `PromptError` unless it says once where the question goes, and if its files have not been read.
    """
    if config.template_file or config.examples_file:
        raise PromptError(
            "prompt: template_file and examples_file are read with YAML and flags; settings made in Python must go "
            "through grpo_jax.config.with_files_read"
        )
    if config.template.count("{question}") != 1:
        raise PromptError(
            f"prompt.template: {config.template!r} has {config.template.count('{question}')} times "
            "'{question}'; write it once, where the question goes"
        )
    return config.template


def plain_question(problem: Problem) -> str:
    """Return the question for format `text`. Raises `PromptError` for a conversation of several turns."""
    asked = [m for m in problem.messages or () if m["role"] != "assistant"]
    if len(asked) > 1:
        raise PromptError(
            f"{problem_name(problem)}: a conversation of {len(asked)} turns cannot be written with "
            f"prompt.format text; use prompt.format chat and a tokenizer with a chat template"
        )
    return asked[0]["content"] if asked else problem.question


def opening_ids(tokenizer) -> list[int]:
    """Return the ids that the tokenizer puts before a plain text (its beginning of sequence, or none)."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and _opens(tokenizer, len(tokenizer)) == bos else []


@functools.lru_cache(maxsize=16)
def _opens(tokenizer, size: int) -> int | None:
    """The first id of a text that begins with no control token; an end that is added to it is no beginning."""
    del size  # the key of the cache: a tokenizer may have grown
    try:
        ids = tokenizer.encode("1", add_special_tokens=True)
    except Exception:  # a vocabulary without digits
        ids = tokenizer.encode("", add_special_tokens=True)
    return ids[0] if ids else None


def encode_prompts(problems: Sequence[Problem], indices: np.ndarray, config: PromptConfig, tokenizer) -> Prompts:
    """Return the prompts of `problems[i] for i in indices`, left-padded to `max_prompt_length`, as NumPy
    arrays.

    tokens, positions and segments are [P, Tp] i32; positions count from 0 at the first real token, segments
    are 1 on the prompt and 0 on padding; index [P] i32 holds `indices`. Raises `PromptError` for a prompt
    that is too long.
    """
    rows = [prompt_ids(problems[int(i)], config, tokenizer) for i in indices]
    for i, ids in zip(indices, rows, strict=True):
        if len(ids) > config.max_prompt_length:
            raise PromptError(_too_long(problem_name(problems[int(i)], int(i)), len(ids), config))
    return left_padded(rows, indices, config.max_prompt_length, pad_id(tokenizer))


def left_padded(rows: Sequence[Sequence[int]], indices: np.ndarray, length: int, pad: int) -> Prompts:
    """Return token rows as `Prompts` of [P, length], each row at the right end."""
    tokens = np.full((len(rows), length), pad, np.int32)  # [P, Tp]
    positions = np.zeros((len(rows), length), np.int32)  # [P, Tp]
    segments = np.zeros((len(rows), length), np.int32)  # [P, Tp]
    for row, ids in enumerate(rows):
        start = length - len(ids)
        tokens[row, start:] = ids
        positions[row, start:] = np.arange(len(ids))
        segments[row, start:] = 1
    return Prompts(Sequences(tokens, positions, segments), np.asarray(indices, np.int32))


def usable(
    problems: Sequence[Problem], config: PromptConfig, tokenizer, note: Callable[[str], None] = print
) -> np.ndarray:
    """Return the numbers of the problems whose prompts fit `max_prompt_length`, [n] i64; every problem is
    looked at once.

    With `overlong_prompts: error` a longer one raises `PromptError` naming it; with `drop` it is left out,
    and `note` is told how many were. Raises `PromptError` if none is left.
    """
    lengths = np.array([len(prompt_ids(problem, config, tokenizer)) for problem in problems], np.int64)
    if not len(lengths):
        raise PromptError("prompts: the source has no problems")
    too_long = np.flatnonzero(lengths > config.max_prompt_length)
    if len(too_long) and config.overlong_prompts == "error":
        first = int(too_long[0])
        more = f" ({len(too_long)} of {len(lengths)} problems are too long)" if len(too_long) > 1 else ""
        raise PromptError(_too_long(problem_name(problems[first], first), int(lengths[first]), config) + more)
    if len(too_long):
        note(
            f"prompts: left out {len(too_long)} of {len(lengths)} problems, "
            f"longer than prompt.max_prompt_length {config.max_prompt_length}"
        )
    if len(too_long) == len(lengths):
        raise PromptError(
            f"prompts: none of {len(lengths)} problems is left with prompt.max_prompt_length "
            f"{config.max_prompt_length}; the shortest prompt has {lengths.min()} tokens"
        )
    return np.flatnonzero(lengths <= config.max_prompt_length)


def _too_long(name: str, length: int, config: PromptConfig) -> str:
    return (
        f"{name}: its prompt has {length} tokens, the limit prompt.max_prompt_length is "
        f"{config.max_prompt_length}; raise the limit, or set prompt.overlong_prompts to drop"
    )
