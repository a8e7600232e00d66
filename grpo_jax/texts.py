"""Texts and files that settings are made of, checked as they are read: prompt templates, few-shot examples, dates."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from pydantic_core import PydanticCustomError


def text_of(path: str) -> str:
    """Return the text of a UTF-8 file without the line break that ends it. Raises `PydanticCustomError`."""
    try:
        return Path(path).read_text("utf-8-sig").removesuffix("\n")
    except OSError as error:
        raise wrong(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise wrong(f"is not UTF-8 at byte {error.start + 1}; convert the file to UTF-8") from error


def examples_of(path: str) -> tuple[tuple[str, str], ...]:
    """Return (question, answer) of each line of a file of JSON lines. Raises `PydanticCustomError`."""
    examples = []
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise wrong(f"has no JSON in line {number}: {error}") from error
        both = [row.get("question"), row.get("answer")] if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) and text for text in both):
            raise wrong(f"has no texts 'question' and 'answer' in line {number}; write one example a line")
        examples.append(tuple(both))
    if not examples:
        raise wrong("has no examples; write one a line, with the keys question and answer")
    return tuple(examples)


def check_once(text: str, *markers: str) -> None:
    """Raise `PydanticCustomError` unless each marker is in the text exactly once."""
    if astray := [marker for marker in markers if text.count(marker) != 1]:
        there = " and ".join(f"{text.count(marker)} times {marker}" for marker in astray)
        raise wrong(f"has {there}; write it once, where the text goes")


def wrong(message: str) -> PydanticCustomError:
    """What pydantic reports beside the setting's name and place."""
    return PydanticCustomError("prompt", "{message}", {"message": message})


def template_file(path: str) -> str:
    """Return the path of a template that has its marker once."""
    check_once(text_of(path), "{question}")
    return path


def examples_file(path: str) -> str:
    """Return the path of a file of examples that can be read."""
    examples_of(path)
    return path


def example(text: str) -> str:
    """Return the form of an example that has both markers once."""
    check_once(text, "{question}", "{answer}")
    return text


def date(text: str) -> str:
    """Return a date as year-month-day."""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise wrong("is no date; write year-month-day, such as 2024-07-26") from error
