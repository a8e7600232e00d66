"""Held-out evaluation of a policy: records and numbers on disk, and the table of before and after.

`tasks_of` makes the tasks that training's evaluation and launch/evaluate.py share: the held-out problems of the
settings, and benchmarks with their own prompts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.config import EvaluationConfig
from grpo_jax.configure import ConfigError
from grpo_jax.data.prompts import usable
from grpo_jax.data.rows import check_answers
from grpo_jax.data.templates import has_template
from grpo_jax.evaluation.benchmark import Benchmark, BenchmarkConfig
from grpo_jax.evaluation.evaluate import (
    Generate,
    Graded,
    Sampled,
    Task,
    by_problem,
    measures,
    records,
    run_task,
)
from grpo_jax.evaluation.judging import Judgement, judge_benchmark
from grpo_jax.evaluation.programs import computed
from grpo_jax.evaluation.prompts import prompting
from grpo_jax.evaluation.reading import open_benchmark, read_problems
from grpo_jax.reporting.files import is_primary, to_json, write_atomically
from grpo_jax.reporting.ledger import EVALUATION
from grpo_jax.reporting.progress import Progress
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.rewards.reward import Reward, RewardError, check_rewards, load_reward
from grpo_jax.rewards.score import score
from grpo_jax.sampler.slots import lanes_and_rows
from grpo_jax.sharding import agree, batch_shards, global_to_host, run_key
from grpo_jax.stages.learned import check_learned, open_scorer
from grpo_jax.stages.programs import sampling_program
from grpo_jax.stages.run import Run
from grpo_jax.stages.sources import read_source, source_record
from grpo_jax.stages.tooling import open_sampler
from grpo_jax.training.interrupt import Interrupted
from grpo_jax.types import Problem, Rollout

# Folded into the run's seed, so that evaluation does not draw the noise of training.
EVALUATION_STREAM = 1_000_003

# A reward above this is a right answer.
RIGHT = 0.5

# The styles of benchmarks whose completions are written in rounds where there is a tool. In the others a block is text;
# a `program` is run when it is written, and not read by the policy again.
IN_ROUNDS = ("as_run", "tool")


class Evaluator(NamedTuple):
    """The tasks of a run, shared by all its evaluations; their programs are compiled once."""

    run: Run
    tasks: tuple[Task, ...]


class Programs(NamedTuple):
    """The two compiled ways to make completions, and what scores the samples, if anything does."""

    greedy: Callable[..., Any]
    sampled: Callable[..., Any]
    scorer: Callable[[Rollout], np.ndarray] | None = None  # [P, G]


def prepare(run: Run) -> Evaluator:
    """Read the held-out problems and check the batch, before device memory is taken."""
    c: EvaluationConfig = run.config.evaluation
    run.check_batch("evaluation.batch_prompts", c.batch_prompts)
    for n in (1, c.num_samples):  # greedy, and samples
        lanes_and_rows(c.batch_prompts, n, c.decode_rows, shards=batch_shards(run.mesh))
    length = run.config.prompt.max_prompt_length + c.sampling.max_completion_length
    run.check_length("prompt.max_prompt_length + evaluation.sampling.max_completion_length", length)
    tasks = tasks_of(run)
    for task in tasks:
        kind = "held-out" if not task.name else task.name
        run.note(f"evaluation: {len(task.problems)} {kind} problems, greedy and {c.num_samples} samples each")
    return Evaluator(run, tasks)


def tasks_of(run: Run) -> tuple[Task, ...]:
    """The tasks of a run's evaluation, with programs that they share: they are of one shape, with or without a tool."""
    c: EvaluationConfig = run.config.evaluation
    scorer = scorer_of(run)
    with_tool = programs_of(run, lambda model, sampling: open_sampler(run, "evaluation", sampling), scorer)
    plain = programs_of(run, sampling_program, scorer) if "evaluation" in run.tools else with_tool
    of_source = [source_task(run, with_tool)] if c.source else []
    of_benchmarks = (
        benchmark_task(run, config, with_tool if config.style in IN_ROUNDS else plain) for config in c.benchmarks or ()
    )
    return (*of_source, *of_benchmarks)


def programs_of(run: Run, open_program: Callable[..., Any], scorer: Callable[[Rollout], np.ndarray] | None) -> Programs:
    """Both ways to make completions, each opened from the model and its sampling."""
    c: EvaluationConfig = run.config.evaluation
    return Programs(
        greedy=open_program(run.model, run.sampling(c.sampling, 1, greedy=True, decode_rows=c.decode_rows)),
        sampled=open_program(run.model, run.sampling(c.sampling, c.num_samples, decode_rows=c.decode_rows)),
        scorer=scorer,
    )


def answers_of_programs(run: Run, result: str, texts: Sequence[str]) -> list[str | None]:
    """What the programs of completions compute, by the first host's tool; on the others nothing is run."""
    return computed(texts, result, run.tools["evaluation"].ask) if is_primary() else [None] * len(texts)


def scorer_of(run: Run) -> Callable[[Rollout], np.ndarray] | None:
    """The scores of `evaluation.scorer`, whose model is opened when it is first asked; None without one.

    Raises `RewardError` for a reward model that is not there or does not fit, and for scores that may be negative,
    before device memory is taken.
    """
    c: EvaluationConfig = run.config.evaluation
    if c.scorer is None:
        return None
    reward = load_reward(c.scorer)
    if reward.learned is None:
        raise RewardError(f"evaluation.scorer: {c.scorer.kind} is no reward model; give {{kind: learned, path: RUN}}")
    if c.scorer.value == "logit" or (c.scorer.unfinished or 0.0) < 0.0:
        raise RewardError(
            f"evaluation.scorer: with value {c.scorer.value} and unfinished {c.scorer.unfinished} scores may be "
            "negative, and in weighted@n a vote is worth its score; set value to probability, unfinished to 0 or null"
        )
    check_learned(run, [reward])
    opened = functools.cache(lambda: open_scorer(run, reward.learned))
    return lambda rollout: global_to_host(opened()(rollout))


def source_task(run: Run, programs: Programs) -> Task:
    """The held-out problems of `evaluation.source`, judged by `evaluation.reward`."""
    c: EvaluationConfig = run.config.evaluation
    reward = load_reward(c.reward)
    if reward.host is None or reward.columns is not None:
        raise RewardError(
            f"evaluation.reward: {c.reward.kind} judges arrays, not answers; give one that reads text, such as accuracy"
        )
    check_rewards([reward], run.workers)
    problems = read_source(run, c.source)
    key = jax.random.fold_in(run_key(run.config.seed), EVALUATION_STREAM)
    task = task_of(run, "", problems, programs, key, c.sampling.stop, partial(judge, run, reward))
    check_answers([problems[int(i)] for i in task.usable])
    return task


class Asked(NamedTuple):
    """A benchmark, its problems, and the run as it asks them."""

    benchmark: Benchmark
    problems: Sequence[Problem]
    run: Run
    stop: tuple[str, ...]


def ask(run: Run, config: BenchmarkConfig) -> Asked:
    """Read a benchmark and make its prompts; raises `ConfigError` for a style that runs programs without a tool."""
    benchmark = open_benchmark(config.kind, config)
    problems = read_problems(benchmark, config)
    if config.style in ("tool", "program") and "evaluation" not in run.tools:
        raise ConfigError(
            f"benchmark {benchmark.name}: style {config.style} runs programs, and evaluation.tools is absent; write "
            "tools: {kind: python}, or use zero_shot or few_shot"
        )
    prompt, stop = prompting(
        benchmark, config.style, run.config.prompt, shots=config.shots, chat=has_template(run.tokenizer)
    )
    view = dataclasses.replace(run, config=dataclasses.replace(run.config, prompt=prompt))
    return Asked(benchmark, problems, view, (*run.config.evaluation.sampling.stop, *stop))


def benchmark_task(run: Run, config: BenchmarkConfig, programs: Programs) -> Task:
    """A benchmark, asked in its own style and judged by its own rules."""
    benchmark, problems, view, stop = ask(run, config)
    key = jax.random.fold_in(run_key(run.config.seed), EVALUATION_STREAM)
    key = jax.random.fold_in(key, zlib.crc32(benchmark.name.encode()))  # other noise for the n-th problem of each
    judged = partial(judge_benchmark, benchmark, config.style, stop, workers=run.workers)
    if config.style == "program":
        judged = partial(judged, read=partial(answers_of_programs, run, benchmark.program.result))
    return task_of(view, benchmark.name, problems, programs, key, stop, judged)


def task_of(
    run: Run,
    name: str,
    problems: Sequence[Problem],
    programs: Programs,
    key: Any,
    stop: Sequence[str],
    judged: Callable[..., list[Judgement]],
) -> Task:
    """A task that samples with the compiled programs; its judgements are those of the first host."""
    numbers = usable(problems, run.config.prompt, run.tokenizer, lambda note: run.note(f"{note}; they count as wrong"))

    def generate(program: Callable[..., Any], scorer: Any = None) -> Generate:
        return lambda policy, indices: draw(run, problems, program, policy, key, stop, indices, scorer)

    sampled = generate(programs.sampled, programs.scorer)

    def judge_together(asked: Sequence[Problem], texts: list[str]) -> list[Judgement]:
        return agreed(judged(asked, texts))

    return Task(name, problems, numbers, generate(programs.greedy), sampled, judge_together)


def agreed(found: list[Judgement]) -> list[Judgement]:
    """The same judgements with the grades of the first host, whose time limits may have been met elsewhere."""
    names = ("right", "wrong", "ungradable")
    grades = agree(np.array([names.index(one.grade) for one in found], np.int32))
    return [one._replace(grade=names[int(grade)]) for one, grade in zip(found, grades, strict=True)]


def draw(
    run: Run,
    problems: Sequence[Problem],
    program: Callable[..., Any],
    policy: Any,
    key: Any,
    stop: Sequence[str],
    indices: np.ndarray,
    scorer: Callable[[Rollout], np.ndarray] | None = None,
) -> Sampled:
    """Completions of some problems by a compiled program; the noise of a problem does not depend on its batch."""
    rollout = program(policy, run.prompts(problems, indices), key, 0)
    rollout = run.end_at_stop(rollout, stop)
    mask, finished = global_to_host((rollout.completion_mask, rollout.finished))
    scores = None if scorer is None else scorer(rollout).reshape(-1)
    return Sampled(run.texts(rollout), mask.sum(-1), finished, scores)


def judge(run: Run, reward: Reward, problems: Sequence[Problem], texts: list[str]) -> list[Judgement]:
    """What a reward says of completions: NaN is ungradable."""
    scored = score(
        problems,
        texts,
        [reward],
        run.workers,
        num_generations=len(texts) // len(problems),
        prompts=[run.prompt_as_seen(problem) for problem in problems],
        conversational=run.conversational,
    )
    values = scored.parts[0].reshape(-1)
    return [
        Judgement(extract_answer(text), "ungradable" if np.isnan(value) else "right" if value > RIGHT else "wrong")
        for text, value in zip(texts, values, strict=True)
    ]


def evaluate(
    evaluator: Evaluator, policy: Any, advance: Callable[[], None]
) -> list[tuple[Task, Graded, Graded, dict[str, np.ndarray]]]:
    """Each task with its greedy and sampled completions, graded, and its metrics by problem."""
    c: EvaluationConfig = evaluator.run.config.evaluation
    found = []
    for task in evaluator.tasks:
        greedy, sampled = (
            run_task(task, generate, policy, n, batch_prompts=c.batch_prompts, advance=advance)
            for n, generate in ((1, task.greedy), (c.num_samples, task.sampled))
        )
        found.append((task, greedy, sampled, by_problem(greedy, sampled, c.k)))
    return found


def passes(evaluator: Evaluator) -> int:
    """Batches of an evaluation, greedy and sampled."""
    size = evaluator.run.config.evaluation.batch_prompts
    return sum(2 * -(-len(task.usable) // size) for task in evaluator.tasks)


def metric_name(task: Task, name: str) -> str:
    """The name of a task's metric in a log: "greedy", or "gsm8k/greedy"."""
    return f"{task.name}/{name}" if task.name else name


def run_evaluation(evaluator: Evaluator, policy: Any, name: str, origin: str) -> dict[str, Any]:
    """Evaluate a policy once and keep the result as evaluation/<name>.json with one record a problem beside it."""
    run, c = evaluator.run, evaluator.run.config.evaluation

    def advance() -> None:
        progress.advance()
        run.stop_if_asked(f"in evaluation {name!r}, which is not kept")

    problems = [source_record(task.problems) for task in evaluator.tasks]
    marks = "+".join(one["fingerprint"] for one in problems)
    asked = {"problems": sum(one["problems"] for one in problems), "fingerprint": marks}
    run.ledger.begin(EVALUATION, asked, run.ledger.written(EVALUATION))
    with Progress(f"evaluation {name}", total=passes(evaluator), unit="part") as progress, progress.phase("evaluate"):
        found = evaluate(evaluator, policy, advance)
    run.ledger.count(EVALUATION, **taken([one for _, *both, _ in found for one in both]))
    sampled = [one for _, _, one, _ in found]
    metrics = {}
    for task, _, _, values in found:
        numbers = measures(values, seed=run.config.seed)
        metrics |= {metric_name(task, metric): entry for metric, entry in numbers.items()}
    result = {
        "name": name,
        "title": origin,
        "num_problems": sum(len(task.problems) for task in evaluator.tasks),
        "num_samples": c.num_samples,
        "temperature": c.sampling.temperature,
        "unjudged": int(sum(one.unjudged.sum() for _, *both, _ in found for one in both)),
        "truncated": float(1.0 - np.concatenate([one.finished.ravel() for one in sampled]).mean()),
        "mean_length": float(np.concatenate([one.lengths.ravel() for one in sampled]).mean()),
        "metrics": metrics,
    }
    if is_primary():
        for task, _, one, _ in found:
            lines = "".join(to_json(record) + "\n" for record in records(task.problems, one))
            middle = f".{task.name}" if task.name else ""
            write_atomically(result_path(run, name).with_suffix(f"{middle}.samples.jsonl"), lines)
        write_atomically(result_path(run, name), json.dumps(result, indent=1) + "\n")
    run.ledger.finish(EVALUATION, 0)  # after the result, which is not made again
    return result


def taken(graded: Sequence[Graded]) -> dict[str, int]:
    """What completions took, greedy and sampled: prompts, completions and the tokens that were generated."""
    return {
        "prompts": sum(len(one.lengths) for one in graded),
        "completions": sum(one.lengths.size for one in graded),
        "generated_tokens": int(sum(one.lengths.sum() for one in graded)),
    }


class Stopped(Exception):
    """A signal came in the middle of an evaluation."""


def in_loop(evaluator: Evaluator) -> Callable[[Any], dict[str, float] | None]:
    """`policy -> {"eval/greedy": ..., "eval/mean@8": ...}` for the log of a training stage; None on a signal."""

    def go_on() -> None:
        if evaluator.run.interruption.requested_anywhere():
            raise Stopped

    def held_out(policy: Any) -> dict[str, float] | None:
        try:
            found = evaluate(evaluator, policy, go_on)
        except (Stopped, Interrupted):  # between two batches, or within one by a tool's rounds
            return None
        return {
            f"eval/{metric_name(task, name)}": float(row.mean())
            for task, _, _, values in found
            for name, row in values.items()
        }

    return held_out


def result_path(run: Run, name: str) -> Path:
    """Where the result of an evaluation lies."""
    return run.stage("evaluation") / f"{name}.json"
