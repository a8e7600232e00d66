"""The process in which chat templates are rendered: one conversation a line in, its text a line out.

`templates` starts this file and talks to it; nothing imports it. transformers renders, in jinja2's immutable sandbox;
what this process adds is that a template can be stopped, and that it has neither clock nor dice: the date is told, and
whatever is drawn is drawn alike each time. So the same messages give the same text, on every day and in every process.
"""

import contextlib
import json
import random
import resource
import signal
import sys
from datetime import datetime
from pathlib import Path

LONGEST = 2**24
"""Characters; a longer text is refused."""
TELLS_THE_YEAR = {
    "template": "{{ strftime_now('%Y') }}",
    "messages": [{"role": "user", "content": ""}],
    "generate": False,
    "date": "2000-01-01",
    "special_tokens": {},
}
CLOCK_RUNS = {
    "error": "RuntimeError",
    "message": "the clock of this transformers cannot be held; install a version that grpo_jax was tested with",
}


def main() -> None:
    """Answer until the input ends. A template without end is ended by the kernel, and this process with it."""
    for asked_to_stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked_to_stop, signal.SIG_IGN)  # who asks means the run, which goes on until it has saved
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    from transformers.utils import chat_template_utils

    render = chat_template_utils.render_jinja_template
    chat_template_utils.datetime = Clock
    held = answered(render, TELLS_THE_YEAR) == {"text": "2000"}
    limit_memory(in_use() + int(sys.argv[1]))
    for line in sys.stdin:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        answer = answered(render, job) if held else CLOCK_RUNS
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(answer), flush=True)


class Clock:
    """What a template takes for the clock."""

    today = datetime(2000, 1, 1)

    @classmethod
    def now(cls) -> datetime:
        """Midnight of the day that the settings name."""
        return cls.today


def answered(render, job: dict) -> dict[str, str]:
    """The text, or the name of what was raised and its message."""
    try:
        Clock.today = datetime.fromisoformat(job["date"])
        random.seed(0)
        (text,), _ = render(
            conversations=[job["messages"]],
            chat_template=job["template"],
            add_generation_prompt=job["generate"],
            **job["special_tokens"],
        )
    except Exception as error:  # whatever a template may do
        return {"error": type(error).__name__, "message": str(error)[:1000]}
    if len(text) > LONGEST:
        return {"error": "MemoryError", "message": f"{len(text)} characters, more than {LONGEST}"}
    return {"text": text}


def in_use() -> int:
    """Bytes of address space of this process, as far as the system tells."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.is_file() else 0


def limit_memory(most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system can; the limit of time holds everywhere
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
