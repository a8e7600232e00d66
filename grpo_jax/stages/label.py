"""Math-Shepherd's annotation: solutions of the policy, and of each of their steps what becomes of it, by the policy.

    label/solutions.jsonl    what the policy wrote for each problem, and which are right    (kept as it goes)
    label/prefixes.jsonl     of how many completions of each prefix the answer was right     (kept as it goes)
    label/labels.jsonl       each different solution with the estimates of its steps         (`labels: {kind: steps}`)
                             (num_completions 0: with the verdict on its answer alone)
    label/summary.json       how many of everything

Tokens go in and come out: a prefix is the policy's own tokens, never text that is encoded again. A completion's noise
depends on the seed, the number of its prefix and its own, so that a stage that was killed goes on to the same labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.config import LabelConfig
from grpo_jax.data.annotation import Prefix, Solution, distinct, estimates, prefixes_of, step_counts
from grpo_jax.data.labelled import tokenizer_mark
from grpo_jax.data.prompts import left_padded, prompt_ids
from grpo_jax.data.steps import newline_tokens, step_ends
from grpo_jax.evaluation.evaluate import batches
from grpo_jax.reporting.files import is_primary, to_json, write_atomically
from grpo_jax.reporting.progress import Progress
from grpo_jax.rewards.reward import Reward, RewardError, check_rewards, load_reward
from grpo_jax.rewards.score import score
from grpo_jax.sampler.slots import lanes_and_rows
from grpo_jax.sharding import agree, batch_shards, global_to_host, run_key
from grpo_jax.stages.evaluation import RIGHT
from grpo_jax.stages.journal import Journal
from grpo_jax.stages.programs import sampling_program
from grpo_jax.stages.run import Run
from grpo_jax.stages.sources import load_answered, source_record
from grpo_jax.types import Problem, Rollout

# Folded into the run's seed: the noise of solutions, and of completions, is that of no other stage.
SOLUTIONS, COMPLETIONS = 2_000_003, 2_000_029
WIDTHS = 4  # lengths to which prefixes are padded, each of which is compiled once


class Prepared(NamedTuple):
    """What the stage needs from outside, checked before device memory is taken."""

    problems: Sequence[Problem]
    reward: Reward
    about: dict[str, Any]  # what its files are of
    iteration: int = 0  # of reinforcement, that it is a part of; 0: it is a stage of its own


class Programs(NamedTuple):
    """What runs on the devices: `(params, prompts, key, 0) -> Rollout`."""

    solutions: Callable[..., Rollout]
    completions: Callable[..., Rollout]


class Labels(NamedTuple):
    """What the stage has written, in numbers."""

    solutions: int  # different ones
    completions: int


def prepare(run: Run) -> Prepared:
    """Read the problems, check batch and reward, and say what the stage costs at most."""
    c: LabelConfig = run.config.label
    check_batches(run, "label", c, c.num_completions)
    length = run.config.prompt.max_prompt_length + c.sampling.max_completion_length
    run.check_length("prompt.max_prompt_length + label.sampling.max_completion_length", length)
    reward = answer_reward(run, "label", c.reward)
    problems = load_answered(run, c.source)
    run.note(cost("label", len(problems), c.num_solutions, c.num_completions))
    return Prepared(problems, reward, record(run, problems))


def cost(section: str, problems: int, num_solutions: int, num_completions: int) -> str:
    """What labelling costs at most, in words."""
    before = f"{section}: {problems} problems x {num_solutions} solutions = {problems * num_solutions} completions"
    if not num_completions:
        return before
    return f"{before} first, then {num_completions} for each different beginning of them, counted before"


def check_batches(run: Run, section: str, c: Any, num_completions: int) -> None:
    """Refuse batches of solutions, or of completions, that the mesh does not divide."""
    run.check_batch(f"{section}.batch_prompts", c.batch_prompts)
    for n in (c.num_solutions, num_completions):
        if n:
            lanes_and_rows(c.batch_prompts, n, c.decode_rows, shards=batch_shards(run.mesh))


def answer_reward(run: Run, section: str, c: Any) -> Reward:
    """The reward that says which answers are right; raises `RewardError` for one that judges none."""
    reward = load_reward(c)
    if reward.host is None:
        raise RewardError(f"{section}.reward: {c.kind} judges no answers; give one that does, such as accuracy")
    check_rewards([reward], run.workers)
    return reward


def record(run: Run, problems: Sequence[Problem]) -> dict[str, Any]:
    """What the stage's files say that they are of."""
    return {"tokenizer": tokenizer_mark(run.tokenizer), **source_record(problems)}


def open_programs(run: Run) -> Programs:
    """The programs of the stage, for the settings of section `label`; compiled when they are first needed."""
    c: LabelConfig = run.config.label
    numbers = (c.num_solutions, c.num_completions)
    return Programs(
        *(sampling_program(run.model, run.sampling(c.sampling, n, decode_rows=c.decode_rows)) for n in numbers)
    )


def train(
    run: Run,
    policy: Callable[[], Any],
    prepared: Prepared,
    programs: Programs | None = None,
    note_solutions: Callable[[int], None] = lambda count: None,
) -> Labels:
    """Label the policy's solutions, from where the stage stands; the policy stays as it is.

    A stage that is finished leaves the same files again. `note_solutions(how many)` is called when all are written,
    before the first is labelled.
    """
    c, stage = run.config.label, run.stage("label")
    written = Journal(stage / "solutions.jsonl", prepared.about)
    run.ledger.begin("label", prepared.about, run.ledger.written("label") if written.lines else None)
    run.ledger.reset("label", **taken(written.lines, (), c.num_completions))
    programs, params = programs or open_programs(run), run.policy(policy())
    write_solutions(run, params, prepared, programs, written)
    solutions, total = read_solutions(written)
    note_solutions(len(solutions))
    if not c.num_completions:
        run.note(f"label: {len(solutions)} different solutions of {total}; no steps are labelled")
        keep_labels(run, prepared, solutions, None)
        run.finish("label", len(solutions))
        return Labels(len(solutions), 0)
    prefixes = prefixes_of(solutions)
    steps = sum(len(solution.ends) for solution in solutions)
    run.note(
        f"label: {len(solutions)} different solutions of {total} with {steps} steps; {len(prefixes)} different "
        f"beginnings x {c.num_completions} = {len(prefixes) * c.num_completions} completions to sample (without "
        f"sharing {(steps - len(solutions)) * c.num_completions})"
    )
    judged = Journal(stage / "prefixes.jsonl", prepared.about | {"prefixes": len(prefixes)})
    if uncounted := sum("tokens" not in line for line in judged.lines):
        run.note(
            f"label: {uncounted} lines of {stage / 'prefixes.jsonl'} are of an older program, which counted no tokens: "
            "the ledger is without those of their completions"
        )
    run.ledger.count("label", **taken((), judged.lines, c.num_completions))
    complete_prefixes(run, params, prepared, programs, prefixes, judged)
    right = dict(zip(prefixes, (line["right"] for line in judged.lines), strict=True))
    keep_labels(run, prepared, solutions, right)
    run.finish("label", len(solutions))
    return Labels(len(solutions), len(prefixes) * c.num_completions)


def write_solutions(run: Run, params: Any, prepared: Prepared, programs: Programs, written: Journal) -> None:
    """Sample and judge the solutions of the problems that are not in the journal yet, a line a problem."""
    c: LabelConfig = run.config.label
    newline = newline_tokens(run.tokenizer, run.model.config.vocab_size)
    key, start = noise(run, prepared, SOLUTIONS), len(written.lines)
    with _progress("label: solutions", len(prepared.problems), start, c.num_solutions) as progress:
        for indices in _batches(len(prepared.problems), start, c.batch_prompts):
            rollout = programs.solutions(params, run.prompts(prepared.problems, indices), key, 0)
            tokens, mask = _chosen(run, rollout, c.sampling.stop)
            ends = step_ends(tokens, mask, newline, run.eos_ids)
            problems = [prepared.problems[i] for i in indices]
            ids = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
            right = verdicts(run, prepared.reward, problems, ids, c.num_solutions)
            rows = [
                {"ids": row, "ends": np.flatnonzero(end).tolist(), "right": bool(ok)}
                for row, end, ok in zip(ids, ends, right.reshape(-1), strict=True)
            ]
            lines = [
                {"problem": int(index), "solutions": rows[p * c.num_solutions : (p + 1) * c.num_solutions]}
                for p, index in enumerate(_real(indices))
            ]
            written.add(lines)
            run.ledger.count("label", **taken(lines, (), c.num_completions))
            run.ledger.advance("label", len(written.lines))
            progress.advance(steps=len(lines) * c.num_solutions)
            run.stop_if_asked(f"in label: {len(written.lines)} of {len(prepared.problems)} problems have solutions")


def noise(run: Run, prepared: Prepared, what: int) -> jax.Array:
    """The key of the solutions, or of the completions: another in each iteration of reinforcement."""
    key = jax.random.fold_in(run_key(run.config.seed), what)
    return jax.random.fold_in(key, prepared.iteration) if prepared.iteration else key


def read_solutions(written: Journal) -> tuple[list[Solution], int]:
    """The different solutions of a journal, and how many there were."""
    found = [
        Solution(line["problem"], tuple(row["ids"]), tuple(row["ends"]), row["right"])
        for line in written.lines
        for row in line["solutions"]
    ]
    return distinct(found), len(found)


def complete_prefixes(
    run: Run, params: Any, prepared: Prepared, programs: Programs, prefixes: Sequence[Prefix], judged: Journal
) -> None:
    """Sample and judge the completions of the prefixes that are not in the journal yet, a line a prefix."""
    c: LabelConfig = run.config.label
    N, limit = c.num_completions, c.sampling.max_completion_length
    key, start = noise(run, prepared, COMPLETIONS), len(judged.lines)
    with _progress("label: completions", len(prefixes), start, N) as progress:
        for indices in _batches(len(prefixes), start, c.batch_prompts):
            begun = [prefixes[i] for i in indices]
            problems = [prepared.problems[prefix.problem] for prefix in begun]
            rows = [[*prompt_of(run, p), *b.ids] for p, b in zip(problems, begun, strict=True)]
            longest = run.config.prompt.max_prompt_length + limit
            prompts = left_padded(rows, indices, padded(max(map(len, rows)), longest), run.pad_id)
            tokens, mask = _chosen(run, programs.completions(params, run.place(prompts), key, 0), c.sampling.stop)
            # As long as a solution may be, its beginning included: what is longer was cut there.
            ids = [[*begun[b // N].ids, *tokens[b][mask[b]].tolist()][:limit] for b in range(len(begun) * N)]
            right = verdicts(run, prepared.reward, problems, ids, N).sum(-1)
            lengths = mask.sum(-1).reshape(len(begun), N).sum(-1)
            lines = [
                {"prefix": int(i), "right": int(right[p]), "tokens": int(lengths[p])}
                for p, i in enumerate(_real(indices))
            ]
            judged.add(lines)
            run.ledger.count("label", **taken((), lines, N))
            run.ledger.advance("label", len(judged.lines))
            progress.advance(steps=len(lines) * N)
            run.stop_if_asked(f"in label: {len(judged.lines)} of {len(prefixes)} beginnings are completed")


def taken(solutions: Sequence[Mapping[str, Any]], prefixes: Sequence[Mapping[str, Any]], N: int) -> dict[str, int]:
    """What lines of the two files took: prompts, completions and the tokens that were generated.

    Lines of an older program, which did not count the tokens of completions, have none.
    """
    written = [len(row["ids"]) for line in solutions for row in line["solutions"]]
    return {
        "prompts": len(solutions) + len(prefixes),
        "completions": len(written) + len(prefixes) * N,
        "generated_tokens": sum(written) + sum(line.get("tokens", 0) for line in prefixes),
    }


def verdicts(
    run: Run, reward: Reward, problems: Sequence[Problem], ids: Sequence[Sequence[int]], size: int
) -> np.ndarray:
    """Whether each completion is right: [P, size] bool; what cannot be judged is not.

    Whether to stop and what is right are the first host's word, as in `judging.py`.
    """
    failed, parts = None, np.full((1, len(problems), size), np.nan, np.float32)
    try:
        parts = score(
            problems,
            run.decode(ids),
            [reward],
            run.workers,
            num_generations=size,
            prompts=[run.prompt_as_seen(problem) for problem in problems],
            completion_ids=ids,
            conversational=run.conversational,
            encoding=run.encoding(run.config.label.sampling.max_completion_length),
        ).parts
    except RewardError as error:
        failed = error
    if agree(failed is not None):
        raise failed or RewardError("the reward function failed on the first host; its message is there")
    return np.nan_to_num(agree(parts)[0], nan=0.0) > RIGHT


def keep_labels(
    run: Run, prepared: Prepared, solutions: Sequence[Solution], right: Mapping[Prefix, int] | None
) -> None:
    """Write the labelled solutions, and the numbers of it all; without `right` no steps are labelled."""
    c, stage = run.config.label, run.stage("label")
    rows = list(label_rows(run, prepared, solutions, right))
    steps = [step for row in rows for step in row["steps"]]
    summary: dict[str, Any] = {"problems": len(prepared.problems), "solutions": len(rows), "steps": len(steps)}
    if right is not None:
        summary |= {"prefixes": len(right), "completions": len(right) * c.num_completions}
    summary["right_solutions"] = float(np.mean([row["outcome"] for row in rows]))
    said = f"label: {stage / 'labels.jsonl'}: {summary['right_solutions']:.1%} of the solutions are right"
    if right is not None:
        summary |= {name: float(np.mean([step[name] for step in steps])) for name in ("hard", "soft")}
        said += (
            f"; of the steps {summary['hard']:.1%} are good by the hard estimate, {summary['soft']:.1%} on average by "
            "the soft one"
        )
    if is_primary():
        write_atomically(stage / "labels.jsonl", "".join(to_json(row) + "\n" for row in rows))
        write_atomically(stage / "summary.json", json.dumps(summary, indent=1) + "\n")
    run.note(said)


def label_rows(
    run: Run, prepared: Prepared, solutions: Sequence[Solution], right: Mapping[Prefix, int] | None
) -> Iterator[dict[str, Any]]:
    """The rows of `data/labels/steps.py`, one a solution; without `right` nothing is said of its steps."""
    for number, solution in enumerate(solutions):
        problem = prepared.problems[solution.problem]
        written = solution.steps()
        said: Sequence[dict[str, Any]] = [{"soft": None}] * len(written)
        if right is not None:
            said = [_estimate(*counts) for counts in step_counts(solution, right, run.config.label.num_completions)]
        texts = [run.decode([list(ids)])[0].strip("\n") for ids in written]
        steps = [{"text": text, "ids": list(ids)} | of for text, ids, of in zip(texts, written, said, strict=True)]
        yield {
            "id": f"{problem.id or solution.problem}#{number}",
            "question": problem.question,
            "answer": problem.answer,
            "outcome": float(solution.right),
            "tokenizer": prepared.about["tokenizer"],
            "prompt_ids": prompt_of(run, problem),
            "steps": steps,
        }


def _estimate(right: int, completions: int) -> dict[str, Any]:
    hard, soft = estimates(right, completions)
    return {"completions": completions, "right": right, "hard": hard, "soft": soft}


def prompt_of(run: Run, problem: Problem) -> list[int]:
    """The ids of a problem's prompt."""
    return prompt_ids(problem, run.config.prompt, run.tokenizer)


def padded(length: int, longest: int) -> int:
    """The length to which prefixes are padded: the next of a few, so that each program is compiled once."""
    width = math.ceil(longest / WIDTHS)
    return min(math.ceil(length / width) * width, longest)


def _chosen(run: Run, rollout: Rollout, stop: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of completions and which of them count, ended at the stop strings, on the host."""
    rollout = run.end_at_stop(rollout, stop)
    return global_to_host((rollout.completions.tokens, rollout.completion_mask))


def _batches(count: int, start: int, size: int) -> Iterator[np.ndarray]:
    """Indices start..count-1 in batches of one size, the last filled up with its first."""
    for indices in batches(count - start, size):
        yield indices + start


def _real(indices: np.ndarray) -> np.ndarray:
    return np.unique(indices)


def _progress(name: str, total: int, start: int, each: int) -> Progress:
    return Progress(name, total=total * each, start=start * each, unit="completion")
