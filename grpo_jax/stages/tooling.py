"""The tools of a run: started with it, stopped with it, and told of in its record."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from grpo_jax.config import Config
from grpo_jax.configure import find
from grpo_jax.reporting.files import is_primary
from grpo_jax.sampler.sample import Sampling
from grpo_jax.stages.programs import RLPrograms, sampling_program
from grpo_jax.stages.rounds import RoundSampler, Tool, Use
from grpo_jax.stages.run import Run

SECTIONS = ("rl", "evaluation")


@contextlib.contextmanager
def open_tools(config: Config, wanted: Collection[str]) -> Iterator[tuple[dict[str, Tool], dict[str, Any]]]:
    """Start the tools that the wanted sections ask for: by section, and what each says of itself for the run record.

    Sections with equal settings share one. On several processes the first one has them. A kind is a module of
    `grpo_jax/tools`: its `build(config)` is a context manager with a `record`, and its `asking(built, config)` runs one
    program after others.

    Raises `SandboxError` where programs cannot be run safely.
    """
    tools, records = {}, {}
    with contextlib.ExitStack() as stack:
        for section in SECTIONS:
            c = getattr(getattr(config, section), "tools", None)
            if c is None or not needed(config, section, wanted):
                continue
            module = find("tools", c.kind)
            same = next((other for other in tools if getattr(config, other).tools == c), None)
            if same is not None:
                tools[section], records[section] = tools[same], records[same]
            elif is_primary():
                built = stack.enter_context(module.build(c))
                tools[section] = Tool(module.asking(built, c), c.max_rounds, c.max_output_tokens)
                records[section] = dict(built.record)
            else:
                tools[section], records[section] = Tool(_nobody, c.max_rounds, c.max_output_tokens), {}
        yield tools, records


def needed(config: Config, section: str, wanted: Collection[str]) -> bool:
    """Whether a section is run: by itself, or the evaluation within reinforcement."""
    within = section == "evaluation" and config.rl is not None and "rl" in wanted and bool(config.rl.eval_steps)
    return section in wanted or within


def open_sampler(run: Run, section: str, sampling: Sampling) -> Any:
    """`(params, prompts, run key, step) -> Rollout` for a section: a compiled program, or rounds with its tool.

    Rounds take as long as the programs of the policy; so they raise `Interrupted` when the run is asked to stop.
    """
    if section not in run.tools:
        return sampling_program(run.model, sampling)
    look_up = partial(run.stop_if_asked, "while programs of completions ran")
    return RoundSampler(run.model, sampling, run.tools[section], run.tokenizer, look_up)


def in_rounds(run: Run, programs: RLPrograms, sampling: Sampling) -> RLPrograms:
    """The programs of reinforcement, whose completions are sampled in rounds if it has a tool."""
    return programs._replace(sample=open_sampler(run, "rl", sampling)) if "rl" in run.tools else programs


def tool_metrics(uses: Sequence[Use]) -> dict[str, float]:
    """The numbers of a step's parts together; {} without a tool."""
    if not uses:
        return {}
    whole = Use(*(sum(values) for values in zip(*(vars(use).values() for use in uses), strict=True)))
    return whole.metrics()


def _nobody(program: str, earlier: Sequence[str]) -> Any:
    raise RuntimeError("only the first process asks a tool")
