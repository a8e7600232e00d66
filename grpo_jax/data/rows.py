"""From a row of any file or data set to a `Problem`: which keys hold what, and what is refused.

Used by the sources `jsonl`, `tfds` and `hf`. Nothing heavy is imported at the top: `--help` reads
`RowConfig`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from grpo_jax.config import Positive, config

if TYPE_CHECKING:
    from grpo_jax.types import Problem

SHOWN = 3
"""Skipped rows that are named in the note."""


class RowError(ValueError):
    """A row that is no problem, or a source without any; the message names file, line and field."""


@config
class Fields:
    """The keys of a row. A key that a row does not have is taken as not given."""

    question: str = "question"
    """The problem's text."""
    answer: str = "answer"
    """The reference answer, text or number; "rationale #### 18" is GSM8K's form."""
    solution: str = "solution"
    """A worked solution, to be demonstrated."""
    prompt: str = "prompt"
    """Instead of a question: text, or a list of messages."""
    completion: str = "completion"
    """Instead of a solution: text, or a list of messages."""
    messages: str = "messages"
    """Instead of both: a conversation, a list of {role, content}."""


@config
class RowConfig:
    """What the sources of rows have in common."""

    fields: Fields = Fields()
    """The keys of a row."""
    form: Literal["auto", "plain", "gsm8k"] = "auto"
    """`gsm8k`: the answer stands after "####", <<...>> marks go, the solution ends with the answer in a box;
    `auto`: so where an answer has "####"; `plain`: as it stands."""
    bad_rows: Literal["error", "skip"] = "error"
    """What to do with a broken line or a missing field: stop and name it, or leave it out and print how many
    were."""
    limit: Positive | None = None
    """Read only the first so many rows."""


def problems_from_rows(
    rows: Iterable[tuple[str, Any]],
    config: RowConfig,
    source: str,
    label: str | None = None,
    note: Callable[[str], None] = print,
) -> list[Problem]:
    """Return the problems of (place, row) pairs; a row may be a `RowError`, for a line that could not be
    read.

    A message calls a row `source:place`; the problem's id is `label:place`, so that data may move elsewhere.
    With `bad_rows: skip` bad rows are left out and `note` is told how many and why. Raises `RowError` for the
    first bad row otherwise, if more than half of the rows are bad, or if there is no row at all.
    """
    problems, bad, number = [], [], 0
    for place, row in rows:
        if number == config.limit:
            break
        number += 1
        try:
            problem = problem_from_row(row, config, source, f"{source}:{place}")
            problems.append(dataclasses.replace(problem, id=f"{label or source}:{place}"))
        except RowError as error:
            if config.bad_rows == "error":
                raise
            bad.append(str(error))
    if not number:
        raise RowError(f"{source}: has no rows; give a file or split with at least one problem")
    if bad:
        reasons = "; ".join(bad[:SHOWN]) + ("; ..." if len(bad) > SHOWN else "")
        if 2 * len(bad) > number:
            raise RowError(f"{source}: {len(bad)} of {number} rows are bad, too many to skip: {reasons}")
        note(f"{source}: left out {len(bad)} of {number} rows: {reasons}")
    return problems


def problem_from_row(row: Any, config: RowConfig, source: str, name: str) -> Problem:
    """Return the row as a `Problem` with id `name`. Raises `RowError` naming the row and the field."""
    from grpo_jax.types import Problem

    if isinstance(row, RowError):
        raise row
    if not isinstance(row, Mapping):
        raise RowError(f"{name}: expected an object with named fields, found {_shown(row)}")
    fields = config.fields
    messages, question, solution = _conversation(row, fields, name), None, None
    if messages is None:
        question = _question(row, fields, name)
        solution = _text(row, fields.solution, name) or _text(row, fields.completion, name)
    answer, solution = _answer(_text(row, fields.answer, name), solution, config.form, name)
    learnable = solution is not None or (messages and messages[-1]["role"] == "assistant")
    if answer is None and not learnable:
        raise RowError(
            f"{name}: has neither {fields.answer!r} nor {fields.solution!r} or {fields.completion!r}; "
            f"the row has {_keys(row)}. Set source.fields to the keys of your rows"
        )
    return Problem(
        question=question if question is not None else _last_user(messages),
        answer=answer or "",
        source=source,
        id=name,
        solution=solution,
        messages=messages,
        columns={key: value for key, value in row.items() if key not in vars(fields).values()},
    )


def check_answers(problems: Iterable[Problem]) -> None:
    """Raise `RowError` naming the first problem without a reference answer, for stages that need one."""
    for problem in problems:
        if not problem.answer:
            raise RowError(
                f"{problem.id or repr(problem.question[:60])} of {problem.source}: no reference answer; "
                f"set source.fields.answer to the key that holds it"
            )


MARKS = re.compile(r"<<[^<>]*>>")


def gsm8k_answer(text: str) -> tuple[str, str] | None:
    """Split GSM8K's "rationale #### 1,800" into the rationale and the answer without commas; None for other
    text."""
    rationale, mark, answer = text.rpartition("####")
    answer = answer.strip().replace(",", "")
    return (rationale, answer) if mark and answer and "\n" not in answer and "####" not in rationale else None


def gsm8k_solution(rationale: str, answer: str) -> str:
    r"""Return the rationale without calculator marks, one step a line, and the line "So the answer is
    $\boxed{N}$.".

    The form in which the authors' own loader shows GSM8K; the answer line is its last step.
    """
    lines = [line.strip() for line in MARKS.sub("", rationale).splitlines()]
    last = rf"So the answer is $\boxed{{{answer}}}$."
    steps = [line for line in lines if line]
    return "\n".join(steps if steps and steps[-1] == last else [*steps, last])


def _answer(answer: str | None, solution: str | None, form: str, name: str) -> tuple[str | None, str | None]:
    """Answer and solution in the form asked for."""
    split = gsm8k_answer(answer) if answer is not None and form != "plain" else None
    if split:
        rationale, answer = split
        return answer, gsm8k_solution(rationale if solution is None else solution, answer)
    if form == "gsm8k":
        if answer is None or solution is None:
            raise RowError(f"{name}: form gsm8k: expected an answer like 'rationale #### 18', found {_shown(answer)}")
        answer = answer.replace(",", "")
        return answer, gsm8k_solution(solution, answer)
    return answer, solution


def _question(row: Mapping, fields: Fields, name: str) -> str:
    question = _text(row, fields.question, name)
    question = question if question is not None else _text(row, fields.prompt, name)
    if question is None:
        raise RowError(
            f"{name}: missing field {fields.question!r} (or {fields.prompt!r} or {fields.messages!r}); "
            f"the row has {_keys(row)}. Set source.fields.question to the key that holds the question"
        )
    return question


def _text(row: Mapping, key: str, name: str) -> str | None:
    """The field as text; None where the row has no such key."""
    if key not in row:
        return None
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"{name}: field {key!r}: expected text or a number, found {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{name}: field {key!r}: {value} is no number")
    text = str(value)
    if not text.strip():
        raise RowError(f"{name}: field {key!r} is empty")
    return text


def _conversation(row: Mapping, fields: Fields, name: str) -> tuple[dict[str, str], ...] | None:
    """The row's messages: its own, or prompt and completion where they are lists of messages."""
    if fields.messages in row:
        messages = _messages(row, fields.messages, name)
    elif isinstance(row.get(fields.prompt), list | tuple):
        messages = _messages(row, fields.prompt, name)
        messages += _completion_turns(row, fields, name)
    else:
        return None
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        messages = messages[:-1]  # a place left for the answer
    if not any(message["role"] == "user" for message in messages):
        raise RowError(f"{name}: the conversation has no message with role 'user'")
    return tuple(messages)


def _completion_turns(row: Mapping, fields: Fields, name: str) -> list[dict[str, str]]:
    if isinstance(row.get(fields.completion), str):
        return [{"role": "assistant", "content": row[fields.completion]}]
    return _messages(row, fields.completion, name) if fields.completion in row else []


def _messages(row: Mapping, key: str, name: str) -> list[dict[str, str]]:
    value = _rows_of_columns(row[key])
    if not isinstance(value, list | tuple) or not value:
        raise RowError(f"{name}: field {key!r}: expected a list of messages, found {_shown(value)}")
    for i, message in enumerate(value):
        is_object = isinstance(message, Mapping)
        if not is_object or not all(isinstance(message.get(part), str) for part in ("role", "content")):
            raise RowError(
                f"{name}: field {key!r}, message {i + 1}: expected {{role, content}} with texts, "
                f"found {_shown(message)}"
            )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _rows_of_columns(value: Any) -> Any:
    """Turn {role: [...], content: [...]}, as TFDS stores a list of objects, into the list; others stay."""
    columns = [value.get("role"), value.get("content")] if isinstance(value, Mapping) else [None]
    if not all(isinstance(column, list) for column in columns) or len({*map(len, columns)}) != 1:
        return value
    return [{"role": role, "content": content} for role, content in zip(*columns, strict=True)]


def _last_user(messages: tuple[dict[str, str], ...]) -> str:
    return next(message["content"] for message in reversed(messages) if message["role"] == "user")


def _keys(row: Mapping) -> str:
    return ", ".join(repr(str(key)) for key in list(row)[:12]) or "no fields"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
