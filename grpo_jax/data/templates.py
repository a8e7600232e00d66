"""Chat templates: programs that came with a tokenizer, so they are rendered with care.

transformers renders in jinja2's immutable sandbox. That keeps a template from the machine but not from
looping for ever, so each template is first tried in a process of its own with a limit of time and memory.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Sequence

from grpo_jax.data.encoding import TokenizerError, tokenizer_name, unmarked

TIME_LIMIT = 10.0
"""Seconds a template has for its trial, the start of Python included."""
MEMORY_LIMIT = 2**31
"""Bytes of address space of the trial."""

# The environment is transformers' (chat_template_utils), whose import would take seconds.
_TRIAL = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
except (ImportError, ValueError, OSError):
    pass  # not every system can limit memory; the limit of time holds everywhere
import jinja2, jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

class Refused(Exception):
    pass

def refuse(message):
    raise Refused(message)

environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.globals.update(raise_exception=refuse, strftime_now=lambda form: form)
environment.filters["tojson"] = lambda value, **_: json.dumps(value)
job = json.load(sys.stdin)
try:
    environment.from_string(job.pop("template")).render(**job)
except Refused:
    pass  # it answers; whether it takes our messages is seen when they are rendered
except Exception as error:
    print(f"{type(error).__name__}: {error}"[:300])
    sys.exit(9)
"""


def has_template(tokenizer) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def probe_template(tokenizer) -> None:
    """Render the chat template once in a limited process.

    Raises `TokenizerError` naming the tokenizer if it raises, takes more than 10 s or more than 2 GiB.
    """
    try:
        reason = _trial(tokenizer.get_chat_template(), _special_tokens(tokenizer))
    except ValueError as error:  # several templates, and none is the default
        reason = f"cannot be chosen: {str(error).splitlines()[0]}"
    if reason:
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template {reason}; "
            f"set prompt.format to text, or mend the template (chat_template.jinja or tokenizer_config.json)"
        )


def render(tokenizer, messages: Sequence[dict[str, str]], *, generate: bool) -> str:
    """Render a conversation; with `generate` up to where the assistant begins to speak.

    Raises `TokenizerError` if there is no template or it raises.
    """
    if not has_template(tokenizer):
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: has no chat template, but prompt.format is chat; "
            f"set it to text (and prompt.template), or use a tokenizer with a chat_template"
        )
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate)
    except Exception as error:  # whatever a template may do
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: its chat template refuses a conversation of {roles}: "
            f"{type(error).__name__}: {unmarked(str(error))[:200]}; change the messages (prompt.system?), "
            f"or set prompt.format to text"
        ) from error


@functools.lru_cache(maxsize=16)
def _trial(template: str, special_tokens: str) -> str:
    """Why the template is refused, or an empty string."""
    job = {
        "template": template,
        "messages": [{"role": "user", "content": "1+1="}],
        "add_generation_prompt": True,
        "tools": None,
        "documents": None,
        **json.loads(special_tokens),
    }
    command = [sys.executable, "-P", "-c", _TRIAL, str(MEMORY_LIMIT)]
    try:
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return f"did not finish within {TIME_LIMIT:g} s"
    if done.returncode == 0:
        return ""
    reason = (done.stdout.strip() or done.stderr.strip() or f"ended with status {done.returncode}").splitlines()[-1]
    return f"failed: {reason}"


def _special_tokens(tokenizer) -> str:
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return json.dumps(names)
