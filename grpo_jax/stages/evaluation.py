"""Held-out evaluation of a policy: records and numbers on disk, and the table of before and after."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.config import EvaluationConfig
from grpo_jax.evaluation.evaluate import Graded, Sampled, grade_samples, measures, records
from grpo_jax.reporting.files import is_primary, to_json, write_atomically
from grpo_jax.reporting.progress import Progress
from grpo_jax.rewards.equivalent import answer_key
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.rewards.reward import Reward, RewardError, check_rewards, load_reward
from grpo_jax.rewards.score import score
from grpo_jax.sampler.slots import lanes_and_rows
from grpo_jax.sharding import agree, batch_shards, global_to_host, run_key
from grpo_jax.stages.programs import sampling_program
from grpo_jax.stages.run import Run
from grpo_jax.stages.sources import load_answered
from grpo_jax.types import Problem

# Folded into the run's seed, so that evaluation does not draw the noise of training.
EVALUATION_STREAM = 1_000_003


class Evaluator(NamedTuple):
    """The held-out problems and the compiled programs, shared by all evaluations of a run."""

    run: Run
    problems: Sequence[Problem]
    reward: Reward
    greedy: Callable[..., Any]
    sampled: Callable[..., Any]


def prepare(run: Run) -> Evaluator:
    """Read the held-out problems and check the batch, before device memory is taken."""
    c: EvaluationConfig = run.config.evaluation
    run.check_batch("evaluation.batch_prompts", c.batch_prompts)
    for n in (1, c.num_samples):  # greedy, and samples
        lanes_and_rows(c.batch_prompts, n, c.decode_rows, shards=batch_shards(run.mesh))
    length = run.config.prompt.max_prompt_length + c.sampling.max_completion_length
    run.check_length("prompt.max_prompt_length + evaluation.sampling.max_completion_length", length)
    reward = load_reward(c.reward)
    if reward.host is None or reward.columns is not None:
        raise RewardError(
            f"evaluation.reward: {c.reward.kind} judges arrays, not answers; give one that reads text, such as accuracy"
        )
    check_rewards([reward], run.workers)
    problems = load_answered(run, c.source)
    run.note(f"evaluation: {len(problems)} held-out problems, greedy and {c.num_samples} samples each")
    return Evaluator(
        run=run,
        problems=problems,
        reward=reward,
        greedy=sampling_program(run.model, run.sampling(c.sampling, 1, greedy=True, decode_rows=c.decode_rows)),
        sampled=sampling_program(run.model, run.sampling(c.sampling, c.num_samples, decode_rows=c.decode_rows)),
    )


def evaluate(evaluator: Evaluator, params: Any, advance: Callable[[], None]) -> tuple[Graded, Graded]:
    """Greedy and sampled completions of all problems, graded."""
    c: EvaluationConfig = evaluator.run.config.evaluation
    key = jax.random.fold_in(run_key(evaluator.run.config.seed), EVALUATION_STREAM)
    greedy, sampled = (
        grade_samples(
            evaluator.problems,
            n,
            batch_prompts=c.batch_prompts,
            sample=lambda indices, program=program: draw(evaluator, program, params, key, indices),
            judge=lambda problems, texts, n=n: judge(evaluator, problems, texts, n),
            extract=extract_answer,
            name_class=answer_key,
            advance=advance,
        )
        for n, program in ((1, evaluator.greedy), (c.num_samples, evaluator.sampled))
    )
    return greedy, sampled


def draw(evaluator: Evaluator, program: Callable[..., Any], params: Any, key: Any, indices: np.ndarray) -> Sampled:
    """Completions of some problems by a compiled program; the noise of a problem does not depend on its batch."""
    run = evaluator.run
    rollout = program(params, run.prompts(evaluator.problems, indices), key, 0)
    rollout = run.end_at_stop(rollout, run.config.evaluation.sampling.stop)
    mask, finished = global_to_host((rollout.completion_mask, rollout.finished))
    return Sampled(run.texts(rollout), mask.sum(-1), finished)


def judge(evaluator: Evaluator, problems: Sequence[Problem], texts: list[str], num_samples: int) -> np.ndarray:
    """Rewards [P, n] of completions, NaN where they cannot be judged."""
    run = evaluator.run
    scored = score(
        problems,
        texts,
        [evaluator.reward],
        run.workers,
        num_generations=num_samples,
        prompts=[run.prompt_as_seen(problem) for problem in problems],
        conversational=run.conversational,
    )
    return agree(scored.parts)[0]


def run_evaluation(evaluator: Evaluator, params: Any, name: str, origin: str) -> dict[str, Any]:
    """Evaluate a policy once and keep the result as evaluation/<name>.json with one record a problem beside it."""
    run, c = evaluator.run, evaluator.run.config.evaluation
    passes = 2 * -(-len(evaluator.problems) // c.batch_prompts)  # greedy and sampled, batch by batch

    def advance() -> None:
        progress.advance()
        run.stop_if_asked(f"in evaluation {name!r}, which is not kept")

    with Progress(f"evaluation {name}", total=passes, unit="part") as progress, progress.phase("evaluate"):
        greedy, sampled = evaluate(evaluator, params, advance)
    result = {
        "name": name,
        "title": origin,
        "num_problems": len(evaluator.problems),
        "num_samples": c.num_samples,
        "temperature": c.sampling.temperature,
        "unjudged": int(sampled.unjudged.sum() + greedy.unjudged.sum()),
        "truncated": float(1.0 - sampled.finished.mean()),
        "mean_length": float(sampled.lengths.mean()),
        "metrics": measures(greedy, sampled, c.k, seed=run.config.seed),
    }
    if is_primary():
        lines = "".join(to_json(record) + "\n" for record in records(evaluator.problems, sampled))
        write_atomically(result_path(run, name).with_suffix(".samples.jsonl"), lines)
        write_atomically(result_path(run, name), json.dumps(result, indent=1) + "\n")
    return result


class Stopped(Exception):
    """A signal came in the middle of an evaluation."""


def in_loop(evaluator: Evaluator) -> Callable[[Any], dict[str, float] | None]:
    """`params -> {"eval/greedy": ..., "eval/mean@8": ...}` for the log of a training stage; None on a signal."""
    c: EvaluationConfig = evaluator.run.config.evaluation

    def go_on() -> None:
        if evaluator.run.interruption.requested_anywhere():
            raise Stopped

    def held_out(params: Any) -> dict[str, float] | None:
        try:
            greedy, sampled = evaluate(evaluator, params, go_on)
        except Stopped:
            return None
        numbers = measures(greedy, sampled, c.k, seed=evaluator.run.config.seed)
        return {f"eval/{name}": entry["value"] for name, entry in numbers.items()}

    return held_out


def result_path(run: Run, name: str) -> Path:
    """Where the result of an evaluation lies."""
    return run.stage("evaluation") / f"{name}.json"
