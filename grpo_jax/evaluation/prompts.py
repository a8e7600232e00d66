r"""The paper's prompts: zero-shot suffixes, and few-shot texts that are read from a file which the user names.

| style | prompt |
|---|---|
| zero_shot, tool | the question, a new line, the request in the benchmark's language; in the chat form |
| few_shot, program | solved examples and the question, as the file's `format_example` has them with {QUESTION} in it |

Source: DeepSeek-Math's evaluation (arXiv:2402.03300, section 4 and its repository), its own slips included.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

from grpo_jax.config import PromptConfig
from grpo_jax.configure import ConfigError
from grpo_jax.evaluation.benchmark import Benchmark, Shots, Style

REQUESTS = {
    ("zero_shot", "en"): "Please reason step by step, and put your final answer within \\boxed{}.",
    ("zero_shot", "zh"): "请通过逐步推理来解答问题，并把最终答案放置于\\boxed{}中。",
    ("tool", "en"): "Please integrate natural language reasoning with programs to solve the problem above, "
    "and put your final answer within \\boxed{}.",
    ("tool", "zh"): "请结合自然语言和Python程序语言来解答问题，并把最终答案放置于\\boxed{}中。",
}
CHAT = "User: {question}\n\nAssistant:"
MARK = "{QUESTION}"
IN_A_BOX = {"en": "So the answer is $\\boxed{{{answer}}}$.", "zh": "所以答案是 $\\boxed{{{answer}}}$。"}


class Prompting(NamedTuple):
    """How a benchmark is asked: the prompt's settings, and the strings that end a completion and are no part of it."""

    prompt: PromptConfig
    stop: tuple[str, ...] = ()


def prompting(benchmark: Benchmark, style: Style, base: PromptConfig, *, shots: str | None, chat: bool) -> Prompting:
    """The prompt of a style, over the settings of a run.

    `chat` says whether the tokenizer has a chat template; without one the paper's chat form is written. Raises
    `ConfigError` for few-shot prompts that are not there.
    """
    if style == "as_run":
        return Prompting(base)
    if style in ("zero_shot", "tool"):
        suffix = f"\n{REQUESTS[style, benchmark.language]}"
        return Prompting(dataclasses.replace(_chat(base, chat=chat), suffix=suffix))
    entry = _entry(benchmark, style, shots)
    template = entry["format_example"].replace(MARK, "{question}").rstrip()
    plain = {"format": "text", "template": template, "examples": (), "example": None, "suffix": "", "system": None}
    return Prompting(dataclasses.replace(base, **plain), tuple(entry["stop_words"]))


def shots_of(benchmark: Benchmark, style: Style) -> Shots | None:
    """The few-shot prompt of a style, if the benchmark has one."""
    return {"few_shot": benchmark.few_shot, "program": benchmark.program}.get(style)


def demonstrations(benchmark: Benchmark) -> dict[Style, str]:
    """How a right answer ends in each style whose answers are text, with {answer}."""
    ends: dict[Style, str] = {"zero_shot": IN_A_BOX[benchmark.language]}
    if benchmark.few_shot:
        ends["few_shot"] = benchmark.few_shot.ending
    return ends


def demonstrated(benchmark: Benchmark, style: Style, answer: str) -> str:
    """The reference answer in the prompt's own format.

    Dollar signs that stand around the reference as published are left out where the format has its own.
    """
    end = demonstrations(benchmark)[style]
    bare = answer if "$" not in end or answer.count("$") != 2 else answer.strip().strip("$")
    return end.format(answer=bare) if style == "zero_shot" else end.replace("{answer}", bare)


def _chat(base: PromptConfig, *, chat: bool) -> PromptConfig:
    if base.format == "chat" or (base.format == "auto" and chat) or base.template != PromptConfig.template:
        return dataclasses.replace(base, examples=(), example=None)
    return dataclasses.replace(base, format="text", template=CHAT, examples=(), example=None)


def _entry(benchmark: Benchmark, style: Style, shots: str | None) -> dict:
    wanted = shots_of(benchmark, style)
    where = f"benchmark {benchmark.name}: style {style}"
    if wanted is None:
        raise ConfigError(f"{where}: there is no such prompt of this benchmark; use zero_shot, or as_run")
    if shots is None:
        raise ConfigError(f"{where}: needs the file with the few-shot prompts (shots, --shots), which is not shipped")
    path = Path(shots).expanduser()
    try:
        entry = json.loads(path.read_text("utf-8")).get(wanted.key)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: shots {shots}: cannot be read as a JSON object: {error}") from error
    text = entry.get("format_example") if isinstance(entry, dict) else None
    stops = entry.get("stop_words") if isinstance(entry, dict) else None
    if not isinstance(text, str) or not isinstance(stops, list) or text.count(MARK) != 1 or "{question}" in text:
        raise ConfigError(
            f"{where}: shots {shots}: {wanted.key!r} should have format_example, a text with {MARK} once, "
            "and stop_words, a list"
        )
    return entry
