"""Completions written in rounds: the policy a program, the tool its output, until the end of sequence (section 3.1).

    devices    decode | decode | decode | decode |         rows that wait stand still, the others go on
    host              | read   | read   | read   |         whether what waits is a program
    sandbox           [ program of row 3     ]  [ program of row 8 ]

Ids in, ids out: what the policy drew is never encoded again. Only the tool's output is, made harmless: without control
tokens, without fences, of a bounded length. A completion ends unfinished where its limit of programs is reached, or
where an output would leave the policy no token; DeepSeek-Math's loop ends after its second program, with that one's
output.

Each program runs after those before it of its completion, in one namespace (`tools/sandbox.py`): what the state is does
not depend on who else runs, and a worker that dies costs one result. One that was stopped is not run again: it would
stop those that follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.data.encoding import TokenizerError, as_data, encode
from grpo_jax.models.decoder import Decoder
from grpo_jax.reporting.files import is_primary
from grpo_jax.sampler.pauses import (
    END,
    GO_ON,
    Given,
    Seen,
    advance_rows,
    close_rows,
    fences,
    nothing_given,
    open_rows,
)
from grpo_jax.sampler.sample import Sampling
from grpo_jax.sharding import agree, global_to_host
from grpo_jax.tools.blocks import GAP, HEAD, TAIL, closed_program
from grpo_jax.tools.neutral import neutralise, special_strings
from grpo_jax.tools.results import ToolResult
from grpo_jax.types import Prompts, Rollout

STEPS = 16  # tokens of a row between two looks of the host
PATIENCE = 1.0  # seconds between two looks while all rows wait, in which it is seen whether the run is to stop
FINE = ("ok", "truncated")  # how a program ends that did not fail
STOPPED = ("timeout", "memory", "killed", "refused")  # how one ends that would end its replay as well


class Tool(NamedTuple):
    """What runs the programs of completions, and how much of it a completion may have."""

    ask: Callable[[str, Sequence[str]], Future[ToolResult]]  # a program, and those that it goes on from
    max_rounds: int
    max_output_tokens: int


@dataclass
class Use:
    """What became of the programs of a rollout."""

    completions: int
    calls: int = 0
    failed: int = 0
    tokens: int = 0  # of output, given to the policy
    cut: int = 0  # completions that ended at a program, for their limit of programs or of tokens
    seconds: float = 0.0  # of programs, from asking to the answer
    waited: float = 0.0  # seconds in which no row could decode

    def metrics(self) -> dict[str, float]:
        """The numbers for the log."""
        return {
            "tools/calls": self.calls / self.completions,
            "tools/failed": self.failed / max(self.calls, 1),
            "tools/output_tokens": self.tokens / self.completions,
            "tools/cut": self.cut / self.completions,
            "tools/call_seconds": self.seconds / max(self.calls, 1),
            "tools/wait_seconds": self.waited,
        }


@dataclass
class _Completion:
    """What the host knows of a completion that has paused."""

    programs: list[str] = field(default_factory=list)  # that the next one goes on from
    rounds: int = 0  # of programs that were asked for, those that were stopped as well
    start: int = 0  # of what the policy has written since it last heard something
    answer: Future[ToolResult] | None = None
    seconds: float = 0.0  # from asking to the answer
    ends_line: bool = False  # whether the policy broke the line after the last fence

    def stop_clock(self, _: Future[ToolResult]) -> None:
        """Note that the answer has come."""
        self.seconds += time.monotonic()


class RoundSampler:
    """`(params, prompts, run key, step) -> Rollout`, as the program of `sampling_program`, with a tool.

    `look_up()` is called between rounds, on all processes at once; what it raises ends the rollout, which is lost.
    """

    def __init__(
        self,
        model: Decoder,
        sampling: Sampling,
        tool: Tool,
        tokenizer: Any,
        look_up: Callable[[], None] = lambda: None,
    ):
        self.look_up = look_up
        self.tool, self.tokenizer, self.use = tool, tokenizer, Use(1)
        self.special = [*special_strings(tokenizer), "```"]
        self.longest = tool.max_output_tokens + len(_ids(tokenizer, "\n" + HEAD)) + len(_ids(tokenizer, TAIL))
        self.length = sampling.max_completion_length
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        self.fences = jax.tree.map(jnp.asarray, fences(texts, model.config.vocab_size))

        def open_at(params: Any, prompts: Prompts, key: Array, step: int) -> Any:
            return open_rows(model, params, prompts, jax.random.fold_in(key, step), sampling=sampling)

        self.programs = (
            jax.jit(open_at),
            jax.jit(partial(advance_rows, model, sampling=sampling), donate_argnums=1),
            jax.jit(partial(close_rows, sampling=sampling)),
        )

    def __call__(self, params: Any, prompts: Prompts, key: Array, step: int) -> Rollout:
        """Sample; all processes run the same programs, and the first one asks the tool for all of them."""
        begin, advance, close = self.programs
        opened, state = begin(params, prompts, key, step)
        nothing, known = nothing_given(state, self.longest), {}
        self.use, given = Use(state.given.size), nothing
        while True:
            state, seen = advance(opened, state, given, self.fences, STEPS)
            seen = global_to_host(seen)
            if not seen.active.any():
                return close(prompts, state)
            self.look_up()
            given = agree(self.answers(seen, known, nothing) if is_primary() else nothing)

    def _cache_size(self) -> int:
        """How many programs were compiled, as a compiled function says it."""
        return sum(program._cache_size() for program in self.programs)

    def answers(self, seen: Seen, known: dict[tuple[int, int], _Completion], nothing: Given) -> Given:
        """What is said to the rows that wait; if none decodes, it waits a while for something to tell one of them."""
        given, pending = Given(*(x.copy() for x in nothing)), []
        for place in zip(*np.nonzero(seen.waiting), strict=True):
            completion = known.setdefault((int(place[0]), int(seen.job[place])), _Completion())
            if completion.answer is None:
                given.action[place] = self.look(completion, seen.tokens[place][: seen.t[place]])
            if completion.answer is not None:
                pending.append((place, completion))
        if not (given.action.any() or (seen.active & ~seen.waiting).any()):
            before = time.monotonic()
            wait([completion.answer for _, completion in pending], PATIENCE, return_when=FIRST_COMPLETED)
            self.use.waited += time.monotonic() - before
        for place, completion in pending:
            if completion.answer.done():
                ids = self.hear(completion, int(seen.t[place]))
                given.action[place], given.count[place] = (END, 0) if ids is None else (GO_ON, len(ids))
                given.tokens[place][: len(ids or ())] = ids or ()
        return given

    def look(self, completion: _Completion, tokens: np.ndarray) -> int:
        """Ask the tool if what was written ends with a program; else what to say: GO_ON, or END at the limit."""
        text = self.tokenizer.decode(tokens[completion.start :].tolist(), skip_special_tokens=True)
        program = closed_program(text)
        if program is None:
            return GO_ON
        if completion.rounds == self.tool.max_rounds:
            self.use.cut += 1
            return END
        completion.seconds, completion.ends_line = -time.monotonic(), text.endswith("\n")
        completion.answer = self.tool.ask(program, completion.programs)
        completion.answer.add_done_callback(completion.stop_clock)
        completion.programs, completion.rounds = [*completion.programs, program], completion.rounds + 1
        return 0

    def hear(self, completion: _Completion, t: int) -> list[int] | None:
        """The tokens of the answer that has come; None if they leave no room for the policy's next one."""
        result = completion.answer.result()
        if result.status in STOPPED:
            completion.programs = completion.programs[:-1]
        self.use.calls += 1
        self.use.failed += result.status not in FINE
        self.use.seconds += completion.seconds
        head = HEAD if completion.ends_line else "\n" + HEAD
        ids = output_ids(self.tokenizer, head, result.text, self.special, self.tool.max_output_tokens)
        completion.answer, completion.start = None, t + len(ids)
        if completion.start >= self.length:
            self.use.cut += 1
            return None
        self.use.tokens += len(ids)
        return ids


def output_ids(tokenizer: Any, head: str, text: str, special: Sequence[str], most: int) -> list[int]:
    """The tokens in which an output is told: the text made harmless, and of too many tokens half from either end.

    Characters that the tokenizer cannot write are left out.
    """
    text = as_data(_writable(tokenizer, neutralise(text, special)), tokenizer)
    inner, whole = _ids(tokenizer, text), _ids(tokenizer, head + text + TAIL)
    before, after = _ids(tokenizer, head), _ids(tokenizer, TAIL)
    if len(inner) <= most and len(whole) <= len(before) + most + len(after):
        return whole
    gap = _ids(tokenizer, _writable(tokenizer, GAP))[: most // 3]
    first = (most - len(gap)) // 2
    last = most - len(gap) - first
    return [*before, *inner[:first], *gap, *inner[len(inner) - last :], *after]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return encode(tokenizer, text, continues=True)


def _writable(tokenizer: Any, text: str) -> str:
    """The text without characters that are not in the vocabulary."""
    try:
        _ids(tokenizer, as_data(text, tokenizer))
    except TokenizerError:
        known = {character: _knows(tokenizer, character) for character in set(text)}
        return "".join(character for character in text if known[character])
    return text


def _knows(tokenizer: Any, character: str) -> bool:
    try:
        return bool(_ids(tokenizer, character))
    except TokenizerError:
        return False
