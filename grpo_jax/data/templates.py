"""Chat templates: programs that came with a tokenizer, so they are rendered with care.

transformers renders in jinja2's immutable sandbox. That keeps a template from the machine but not from looping for
ever, be it on a certain content only, nor from writing today's date. So every conversation is rendered in a process
apart (`renderer`), within limits of time and memory, on the date that the settings name.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_jax.config import PromptConfig
from grpo_jax.data.encoding import TokenizerError, tokenizer_name, unmarked

TIME_LIMIT = 10.0
"""Seconds a template has for one conversation."""
MEMORY_LIMIT = 2**31
"""Bytes that rendering may take."""
DATE = PromptConfig.date
"""The date on which templates are rendered where the settings name no other."""


def has_template(tokenizer) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def writes_date(tokenizer) -> bool:
    """Whether the chat template asks for today's date, which it is not told (`prompt.date` is)."""
    return "strftime_now" in tokenizer.get_chat_template()


def probe_template(tokenizer) -> None:
    """Render the chat template once, so that one that cannot be used is refused at the start.

    Raises `TokenizerError` naming the tokenizer if it raises, takes more than 10 s or more than 2 GiB. That it
    refuses our message is no fault: it answers, and whether it takes the run's own is seen when they are rendered.
    """
    answer = _render(tokenizer, [{"role": "user", "content": "1+1="}], generate=True, date=DATE)
    if "text" not in answer and answer["error"] != "TemplateError":
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template {_reason(answer)}; "
            f"set prompt.format to text, or mend the template (chat_template.jinja or tokenizer_config.json)"
        )


def render(tokenizer, messages: Sequence[dict[str, str]], *, generate: bool, date: str = DATE) -> str:
    """Render a conversation; with `generate` up to where the assistant begins to speak.

    A template that writes today's date writes `date` (prompt.date), so that a run is the same run tomorrow. Raises
    `TokenizerError` if there is no template, it raises, takes more than 10 s or 2 GiB, or begins with two
    beginning-of-sequence tokens.
    """
    if not has_template(tokenizer):
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: has no chat template, but prompt.format is chat; "
            f"set it to text (and prompt.template), or use a tokenizer with a chat_template"
        )
    answer = _render(tokenizer, messages, generate=generate, date=date)
    if "text" not in answer:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template {_reason(answer)}, "
            f"for a conversation of {roles}; change the messages (prompt.system?), or set prompt.format to text"
        )
    if tokenizer.bos_token and answer["text"].startswith(2 * tokenizer.bos_token):
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template begins with {tokenizer.bos_token!r} twice; "
            f"remove one from it (chat_template.jinja or tokenizer_config.json)"
        )
    return answer["text"]


def _reason(answer: dict[str, str]) -> str:
    message = (unmarked(answer["message"]).strip().splitlines() or [""])[0][:200]
    return f"failed: {answer['error']}: {message}" if answer["error"] else message


def _render(tokenizer, messages: Sequence[dict[str, str]], *, generate: bool, date: str) -> dict[str, str]:
    """What the renderer answers: a text; or what the template raised, "" if it did not, and a message."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, and none is the default
        return {"error": "", "message": f"cannot be chosen: {error}"}
    return _RENDERER.answer(
        {
            "template": template,
            "special_tokens": {name: _plain(token) for name, token in tokenizer.special_tokens_map.items()},
            "messages": list(messages),
            "generate": generate,
            "date": date,
            "seconds": TIME_LIMIT,
        }
    )


def _plain(token: Any) -> str | list[str]:
    return [str(one) for one in token] if isinstance(token, list | tuple) else str(token)


class _Renderer:
    """The process that renders: started when it is first needed, and again after a template has ended it."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def answer(self, job: dict[str, Any]) -> dict[str, str]:
        """Ask, and ask a second time if the process ended for another reason than its time."""
        line, status = json.dumps(job) + "\n", None
        for _ in range(2):
            with self._lock:
                answer = self._ask(line)
                if answer.endswith("\n"):
                    return json.loads(answer)
                status = self.close()
            if status == -signal.SIGALRM:
                return {"error": "", "message": f"did not finish within {job['seconds']:g} s"}
        return {"error": "", "message": f"could not be rendered: the process for it ended with status {status}"}

    def _ask(self, line: str) -> str:
        """The line that answers; nothing, or a piece of it, if the process ended."""
        self._process = self._process or _start()
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except BrokenPipeError:
            return ""
        except BaseException:  # interrupted: an answer that comes later must not be taken for that of another line
            self._process.kill()
            self.close()
            raise

    def close(self) -> int | None:
        """End the process; its status."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(OSError):
            process.stdin.close()  # its loop ends, if the template has not ended it
        process.stdout.close()
        return process.wait()


def _start() -> subprocess.Popen:
    program = Path(__file__).with_name("renderer.py")
    return subprocess.Popen(
        [sys.executable, "-P", str(program), str(MEMORY_LIMIT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        text=True,
        encoding="utf-8",
    )


_ENVIRONMENT = ("HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TMPDIR")  # what Python needs; no secrets
_RENDERER = _Renderer()
atexit.register(_RENDERER.close)
