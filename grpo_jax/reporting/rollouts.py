"""What the policy wrote, kept by group for the report: rollouts/step_000100.jsonl, one group a line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_jax.reporting.files import is_primary, read_json_lines, to_json, write_atomically


def rollout_groups(
    *,
    step: int,
    problem_index: Sequence[int],
    questions: Sequence[str],
    prompts: Sequence[str],
    answers: Sequence[str],
    texts: Sequence[str],
    tokens: Sequence[Sequence[str]],
    completion_mask: np.ndarray,
    logprobs: np.ndarray,
    parts: Mapping[str, np.ndarray],
    rewards: np.ndarray,
    advantages: np.ndarray,
    finished: np.ndarray,
    trainer_logprobs: np.ndarray | None = None,
    ref_logprobs: np.ndarray | None = None,
    entropy: np.ndarray | None = None,
    extracted: Sequence[str | None] | None = None,
) -> list[dict[str, Any]]:
    """The groups of a step as dictionaries, ready for `write_rollouts`.

    `problem_index`, `questions`, `prompts`, `answers` have P entries; `texts`, `tokens` (a row's strings, as
    many as it has tokens or more), `finished`, `extracted` have B = P*G, a group contiguous. `logprobs`,
    `completion_mask`, `trainer_logprobs`, `ref_logprobs`, `entropy` are [B, Tc]; `rewards` and each of
    `parts` [P, G]; `advantages` [P, G] or [B, Tc], of which the first chosen token's is kept. NaN is null.
    Raises ValueError naming the argument whose length does not fit.
    """
    rewards, mask = np.asarray(rewards), np.asarray(completion_mask, bool)
    num_prompts, num_generations = rewards.shape
    per_prompt = {"problem_index": problem_index, "questions": questions, "prompts": prompts, "answers": answers}
    per_row = {"texts": texts, "tokens": tokens, "finished": finished, "completion_mask": mask}
    check_lengths(per_prompt, num_prompts)
    check_lengths(per_row | ({} if extracted is None else {"extracted": extracted}), rewards.size)
    advantages = of_rows(np.asarray(advantages), mask)
    arrays = {"logprobs": logprobs, "trainer_logprobs": trainer_logprobs}
    arrays |= {"ref_logprobs": ref_logprobs, "entropy": entropy}
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}

    def completion(row: int) -> dict[str, Any]:
        place = divmod(row, num_generations)
        chosen = mask[row, : span(mask[row])]
        check_lengths({f"tokens of row {row}": tokens[row][: len(chosen)]}, len(chosen))
        entry = {"text": texts[row], "tokens": list(tokens[row][: len(chosen)])}
        entry |= {name: per_token(array[row, : len(chosen)], chosen) for name, array in arrays.items()}
        entry["rewards"] = {name: rounded(np.asarray(part)[place]) for name, part in parts.items()}
        entry |= {"reward": rounded(rewards[place]), "advantage": rounded(advantages[row])}
        entry["finished"] = bool(finished[row])
        return entry | ({} if extracted is None else {"extracted": extracted[row]})

    return [
        {"step": int(step)}
        | {"problem_index": int(problem_index[p]), "question": questions[p]}
        | {"prompt": prompts[p], "answer": answers[p]}
        | {"completions": [completion(p * num_generations + g) for g in range(num_generations)]}
        for p in range(num_prompts)
    ]


def check_lengths(arguments: Mapping[str, Sequence[Any]], expected: int) -> None:
    """Raise ValueError naming the first argument that has not `expected` entries."""
    for name, value in arguments.items():
        if len(value) != expected:
            raise ValueError(f"rollout_groups: {name} has {len(value)} entries, expected {expected}")


def of_rows(advantages: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One advantage a row [B]: given by group [P, G], or that of the first chosen token of [B, Tc]."""
    if advantages.shape == mask.shape:
        return advantages[np.arange(len(mask)), mask.argmax(axis=1)]
    return advantages.reshape(-1)


def span(mask: np.ndarray) -> int:
    """Tokens up to the last chosen one: what follows is padding, what is between is context."""
    chosen = np.flatnonzero(mask)
    return int(chosen[-1]) + 1 if len(chosen) else 0


def per_token(values: np.ndarray, chosen: np.ndarray) -> list[float | None]:
    """The values of a row's tokens; null where the policy did not choose the token."""
    return [rounded(value) if own else None for value, own in zip(values, chosen, strict=True)]


def rounded(value: Any) -> float | None:
    """Five decimals; None for NaN and infinities."""
    value = float(value)
    return round(value, 5) if math.isfinite(value) else None


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text that each token adds; joined they are the decoded text.

    `decode` should keep special tokens. A character made of several tokens belongs to the last of them; only
    a short window is decoded for each token, so the cost is linear.
    """
    texts: list[str] = []
    start = read = 0
    for end in range(1, len(ids) + 1):
        before, whole = decode(ids[start:read]), decode(ids[start:end])
        if whole.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(whole[len(before) :])
        start, read = read, end
    return texts


def rollout_path(directory: str | Path, step: int) -> Path:
    """Where the rollouts of a step lie below a stage's directory."""
    return Path(directory) / "rollouts" / f"step_{step:06d}.jsonl"


def write_rollouts(directory: str | Path, step: int, groups: Sequence[Mapping[str, Any]]) -> Path:
    """Write the groups of a step below a stage's directory, whole or not at all; only process 0 writes."""
    path = rollout_path(directory, step)
    if is_primary():
        write_atomically(path, "".join(to_json(group) + "\n" for group in groups))
    return path


def read_rollouts(path: str | Path) -> list[dict[str, Any]]:
    """The groups of a file. Raises ValueError naming the line that is not a JSON object."""
    groups, problems = read_json_lines(Path(path))
    if problems:
        raise ValueError(problems[0])
    return groups


def rollout_files(directory: str | Path) -> dict[int, Path]:
    """The files below a stage's directory by step, in the order of steps."""
    found = {
        int(match[1]): path
        for path in (Path(directory) / "rollouts").glob("step_*.jsonl")
        if (match := re.fullmatch(r"step_(\d+)\.jsonl", path.name))
    }
    return dict(sorted(found.items()))


def drop_rollouts_after(directory: str | Path, step: int) -> None:
    """Delete the files of later steps, and halves of any: a run that resumes at `step` writes them again."""
    if is_primary():
        for half in (Path(directory) / "rollouts").glob(".step_*.tmp"):  # of a process that was killed as it wrote
            half.unlink(missing_ok=True)
        for later, path in rollout_files(directory).items():
            if later > step:
                path.unlink(missing_ok=True)
