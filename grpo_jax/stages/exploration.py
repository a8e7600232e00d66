"""Lines 5 to 9 of the algorithm, so arranged that devices and host work at the same time.

    devices   sample part 1 | sample part 2 | reference ... | update | sample part 1 of the next step
    graders                 | judge part 1  | judge part 2  |
    loop      start all of it, wait, ...                             | write metrics and rollouts

What runs on the devices is started before its inputs are there and is never waited for by the loop but at the end of a
step. A thread of its own waits for the tokens of one part after the other, decodes and judges them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.data.order import distinct_indices
from grpo_jax.reporting.events import Events
from grpo_jax.reporting.progress import Progress
from grpo_jax.reporting.timeline import GRADERS, LOOP, Timeline
from grpo_jax.rewards.reward import Reward
from grpo_jax.sharding import global_to_host, named, replicated, start_to_host
from grpo_jax.stages.judging import Judged, Told, judge, score_text
from grpo_jax.stages.programs import GAP, RLPrograms, old_pass
from grpo_jax.stages.rounds import Use
from grpo_jax.stages.run import Run
from grpo_jax.stages.written import written_rollout
from grpo_jax.types import Experience, Problem, Prompts, Rollout, Sequences, TrainState


class Stage(NamedTuple):
    """What a step needs and does not change."""

    run: Run
    problems: Sequence[Problem]
    algorithm: Algorithm
    rewards: tuple[Reward, ...]
    programs: RLPrograms
    timeline: Timeline
    graders: ThreadPoolExecutor  # of one thread, which reads and judges in order
    events: Events
    continued: int | None = None  # of how many iterations the reward model has learnt; None: none is to


@contextlib.contextmanager
def open_stage(
    run: Run,
    problems: Sequence[Problem],
    algorithm: Algorithm,
    rewards: tuple[Reward, ...],
    programs: RLPrograms,
    total: int,
    start: int,
) -> Iterator[Stage]:
    """The stage for steps `start` to `total`, with its thread, its timeline and its events; no reward model is open."""
    graders, c = ThreadPoolExecutor(1, "graders"), run.config.rl
    events = Events(run.stage("rl"), max_steps=c.max_steps, num_iterations=c.num_iterations)
    events.go_on_after(start)
    if not start and not c.fused_steps:
        events.write(1, 1)
    try:
        with Timeline(run.stage("rl"), total, start) as timeline:
            yield Stage(run, problems, algorithm, rewards, programs, timeline, graders, events)
    finally:
        graders.shutdown(cancel_futures=True)  # what was sampled ahead of an error is not judged


class Read(NamedTuple):
    """A part of a rollout as the host sees it, ended at the stop strings."""

    rollout: Rollout | None  # with host arrays, where stop strings are looked for
    tokens: list[list[int]]  # of each row, those of a tool among them
    texts: list[str]


class Drawn(NamedTuple):
    """The completions of a step, perhaps still being sampled and judged.

    Part m of K holds the prompts m, m + K, m + 2K, ..., so that each device keeps its own rows.
    """

    step: int  # from 0
    indices: np.ndarray  # [P] of the problems
    parts: tuple[Rollout, ...]
    gap: dict[str, Array]  # between sampler and trainer; {} where the update itself measures it
    read: tuple[Future[Read], ...]
    told: tuple[Future[Told], ...]
    uses: tuple[Use, ...] = ()  # of tools, by part


class Gathered(NamedTuple):
    """Completions, read and judged; what the devices hold of them may still be under way."""

    indices: np.ndarray  # [P] of the problems
    rollout: Rollout
    texts: list[str]
    judged: Judged


class Collected(NamedTuple):
    """A batch of experience and where it comes from."""

    indices: Sequence[int]  # of the problems
    rollout: Rollout
    texts: list[str]
    judged: Judged
    experience: Experience
    numbers: Mapping[str, Any] = MappingProxyType({})  # metrics of how it was collected
    uses: tuple[Use, ...] = ()  # of tools, in all that was sampled for it


def draw(stage: Stage, state: TrainState, reference: Any, step: int, indices: np.ndarray | None = None) -> Drawn:
    """Start to sample the completions of a step, from the present policy, and to judge them: lines 5, 7 and 8.

    Where the reference samples, that is the policy itself at the first step of an outer iteration. `indices` are the
    step's problems, or further ones.
    """
    run, c, timeline = stage.run, stage.run.config.rl, stage.timeline
    if indices is None:
        indices = distinct_indices(len(stage.problems), c.prompts_per_step, seed=run.config.seed, step=step)  # 5
    offline = stage.algorithm.sampler == "reference"
    policy = run.policy(reference if offline and step % c.max_steps else state.params)
    parts, judging, uses, data = [], [], [], stage.algorithm.sampler == "data"
    for line in (5, 6, 7):
        stage.events.write(line, step + 1)
    with timeline.span(LOOP, "start sampling", step + 1):
        for m in range(c.sample_parts):
            of_part = indices[m :: c.sample_parts]
            if data:
                parts.append(run.place(written_rollout(run, stage.problems, of_part)))
            else:
                sampled = (policy, run.prompts(stage.problems, of_part), state.key, step)
                program = stage.programs.sample
                parts.append(timeline.run("sample", step + 1, program, *sampled, of=lambda part: part.finished))  # 7
            uses += [stage.programs.sample.use] if "rl" in run.tools else []
            judging.append(start_judging(stage, parts[-1], of_part, step))  # 8
        gap = {}
        if c.steps_off_policy or offline:  # by the time of the update, the policy is another
            gap = timeline.run("check", step + 1, stage.programs.gap, policy, parts[0])
    return Drawn(step, indices, tuple(parts), gap, *zip(*judging, strict=True), tuple(uses))


def abstract_ahead(run: Run, step: int) -> dict[str, Any]:
    """What is kept of a step that was sampled ahead, in abstract form; {} if none is after so many steps."""
    c = run.config.rl
    if not c.steps_off_policy or step == c.iterations * c.max_steps:
        return {}
    P, Tp, Tc = c.prompts_per_step, run.config.prompt.max_prompt_length, c.sampling.max_completion_length
    B = P * c.num_generations

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named(run.mesh, "batch"))

    rollout = Rollout(
        prompts=Prompts(Sequences(*[array(P, Tp)] * 3), array(P)),
        completions=Sequences(*[array(B, Tc)] * 3),
        completion_mask=array(B, Tc, dtype=jnp.bool_),
        logprobs=array(B, Tc, dtype=jnp.float32),
        finished=array(B, dtype=jnp.bool_),
    )
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(run.mesh))
    return {"ahead": {"rollout": rollout, "gap": dict.fromkeys(GAP, number)}}


def draw_again(stage: Stage, rollout: Rollout, gap: dict[str, Array], step: int) -> Drawn:
    """What `draw` gave when the run was stopped, from its rollout; it is judged again."""
    c = stage.run.config.rl
    indices = distinct_indices(len(stage.problems), c.prompts_per_step, seed=stage.run.config.seed, step=step)
    parts = stage.programs.cut(rollout)
    judging = [start_judging(stage, part, indices[m :: len(parts)], step) for m, part in enumerate(parts)]
    return Drawn(step, indices, parts, gap, *zip(*judging, strict=True))


def start_judging(stage: Stage, part: Rollout, indices: np.ndarray, step: int) -> tuple[Future[Read], Future[Told]]:
    """Let the graders' thread read a part of a rollout when it is there, and then judge it."""
    problems = [stage.problems[i] for i in indices]
    stop = stage.run.config.rl.sampling.stop
    seen = start_to_host(part if stop else (part.completions.tokens, part.completions.segments))
    read = stage.graders.submit(read_part, stage, seen, step + 1)
    return read, stage.graders.submit(judge_part, stage, problems, read, step + 1)


def read_part(stage: Stage, seen: Any, step: int) -> Read:
    """Wait for the tokens of a part, end them at the stop strings, and decode them."""
    stop, part = stage.run.config.rl.sampling.stop, None
    seen = global_to_host(seen)
    with stage.timeline.span(GRADERS, "read", step):
        if stop:
            part = stage.run.cut_at_stop(seen, stop)
            seen = part.completions.tokens, part.completions.segments
        written = [row[there > 0].tolist() for row, there in zip(*seen, strict=True)]
        return Read(part, written, stage.run.decode(written))


def judge_part(stage: Stage, problems: Sequence[Problem], read: Future[Read], step: int) -> Told:
    """Judge what was read."""
    seen = read.result()  # of the task before this one
    with stage.timeline.span(GRADERS, "judge", step):
        return score_text(stage.run, problems, seen.texts, seen.tokens, stage.rewards, step=step)


def explore(stage: Stage, state: TrainState, reference: Any, drawn: Drawn, progress: Progress) -> Collected:
    """The experience of a step from its completions: lines 6, 8 and 9.

    What scores them on the devices is started before they are judged, and before they are sampled unless stop
    strings, which the host looks for, may still change them.
    """
    run, programs, timeline, c = stage.run, stage.programs, stage.timeline, stage.run.config.rl
    with progress.phase("sample"):
        rollout = None if c.sampling.stop else programs.join(drawn.parts)
        passes = None if c.sampling.stop else start_passes(stage, state, reference, rollout, drawn.step)
        with timeline.wait():
            read = [part.result() for part in drawn.read]
        if rollout is None:
            rollout = programs.join(tuple(run.place(part.rollout) for part in read))
            passes = start_passes(stage, state, reference, rollout, drawn.step)
    with progress.phase("reward"), timeline.wait():
        told = [part.result() for part in drawn.told]
    with progress.phase("train"), timeline.span(LOOP, "start update", drawn.step + 1):
        problems = [stage.problems[i] for i in drawn.indices]
        tell_judged(stage, drawn.step)
        judged = judge(run, problems, rollout, told, stage.rewards)  # 8
        stage.events.write(9, drawn.step + 1)
        experience = programs.experience(rollout, judged.rewards, *passes)  # 9
    texts = in_order([part.texts for part in read], c.num_generations)
    return Collected(drawn.indices, rollout, texts, judged, experience, uses=drawn.uses)


def tell_judged(stage: Stage, step: int) -> None:
    """Note that completions are judged, and if it goes on learning, after how many iterations the reward model is."""
    stage.events.write(8, step + 1, **({} if stage.continued is None else {"continued": stage.continued}))


def start_telling(batch: Collected) -> Collected:
    """Start to bring to the host what metrics and rollouts tell of a batch.

    To be called before the next step's completions are started: on several hosts it is a program, which would wait
    for them.
    """
    rollout, judged, experience = batch.rollout, batch.judged, batch.experience
    told = start_to_host(
        {
            "rollout": rollout,
            "judged": {"parts": judged.parts, "outcome": judged.outcome, "dead": judged.dead},
            "experience": {name: getattr(experience, name) for name in ("advantages", "ref_logprobs", "places")},
        }
    )
    return batch._replace(
        rollout=told["rollout"],
        judged=judged._replace(**told["judged"]),
        experience=experience.replace(**told["experience"]),
    )


def gather(stage: Stage, drawn: Drawn, progress: Progress) -> Gathered:
    """Wait for completions to be sampled and read, and start what judges them on the devices: lines 7 and 8."""
    run, programs, c = stage.run, stage.programs, stage.run.config.rl
    with progress.phase("sample"), stage.timeline.wait():
        read = [part.result() for part in drawn.read]
    parts = tuple(run.place(part.rollout) for part in read) if c.sampling.stop else drawn.parts
    rollout = programs.join(parts)
    with progress.phase("reward"), stage.timeline.wait():
        told = [part.result() for part in drawn.told]
    tell_judged(stage, drawn.step)
    judged = judge(run, [stage.problems[i] for i in drawn.indices], rollout, told, stage.rewards)
    return Gathered(drawn.indices, rollout, in_order([part.texts for part in read], c.num_generations), judged)


def in_order(texts: Sequence[Sequence[str]], num_generations: int) -> list[str]:
    """The rows of K parts in the order of the whole: prompt p is in part p mod K."""
    groups = [[part[i : i + num_generations] for i in range(0, len(part), num_generations)] for part in texts]
    return [text for same in zip(*groups, strict=True) for group in same for text in group]


def start_passes(
    stage: Stage, state: TrainState, reference: Any, rollout: Rollout, step: int
) -> tuple[Array | None, Array | None, Array | None]:
    """Start the passes for log-probabilities under the old policy (line 6) and the reference, and for values."""
    run, logprobs = stage.run, stage.programs.logprobs
    old = ref = values = None
    with stage.timeline.span(LOOP, "start passes", step + 1):
        if old_pass(run.config.rl, stage.algorithm):
            old = stage.timeline.run("old", step + 1, logprobs, run.policy(state.params), rollout)  # 6
        if stage.algorithm.reference:
            ref = stage.timeline.run("reference", step + 1, logprobs, run.policy(reference), rollout)
        if stage.algorithm.critic is not None:
            values = stage.timeline.run("values", step + 1, stage.programs.values, state.critic.params, rollout)
    return old, ref, values
