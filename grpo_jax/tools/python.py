"""The Python tool: programs of the policy run in a sandbox, and their output goes back to it.

Replaced is DeepSeek-Math's executor (`exec` in a pool of processes, no isolation): what a program prints is the output,
else the value of its last expression; an error is what was printed, then the last line of the traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from grpo_jax.config import Count, Positive, config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from grpo_jax.tools.results import Limits, ToolResult
    from grpo_jax.tools.sandbox import Sandbox


@config
class Config:
    """A sandbox for Python programs."""

    max_rounds: Positive = 4
    """Programs of a completion; one that writes a further one ends there, unfinished. (DeepSeek-Math's code: 2.)"""
    max_output_tokens: Positive = 256
    """Tokens of an output that the policy reads, half from its start and half from its end. (There: 100 characters.)"""
    sandbox: Literal["auto", "bubblewrap", "namespaces", "unsafe"] = "auto"
    """auto: bubblewrap, else our own namespaces, else a refusal. unsafe: no isolation; recorded with the run."""
    time_limit: Annotated[float, pydantic.Field(gt=0)] = 10.0
    """Seconds a block may take, on the clock and of computing (the paper's code: 10)."""
    memory_mb: Positive = 512
    """Memory of a program, over all its processes."""
    output_bytes: Positive = 65536
    """Output that is kept, half from its start and half from its end."""
    workers: Count = 0
    """Programs at once; 0: one a core, at most 8."""
    packages: tuple[str, ...] = ("numpy", "sympy", "mpmath", "gmpy2", "scipy")
    """What programs can import beside the standard library, where it is installed."""


def build(c: Config) -> Sandbox:
    """Make the sandbox; entering it starts it, tries known attacks on it, and fills its `record`."""
    from grpo_jax.tools.sandbox import Sandbox

    return Sandbox(c.sandbox, workers=c.workers or None, packages=c.packages)


def asking(sandbox: Sandbox, c: Config) -> Callable[[str, Sequence[str]], Future[ToolResult]]:
    """How the programs of completions are run: `(program, those that it goes on from) -> future result`."""
    bounds = limits(c)
    return lambda program, earlier: sandbox.submit(program, bounds, earlier=earlier)


def limits(c: Config) -> Limits:
    """The bounds of one program."""
    from grpo_jax.tools.results import Limits

    return Limits(wall=c.time_limit, cpu=c.time_limit, memory=c.memory_mb << 20, output=c.output_bytes)
