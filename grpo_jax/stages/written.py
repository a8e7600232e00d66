"""Completions that stand in the data instead of being sampled: a better and a worse one for each prompt.

The better is a problem's solution, the worse its column `rejected`; of a file with the keys of TRL,

    {"prompt": ..., "chosen": ..., "rejected": ...}      source: {kind: jsonl, path: ..., fields: {solution: chosen}}

They take the place of a rollout, so that the loop of `rl.py` learns from them as from any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo_jax.algorithms.settings import AlgorithmError
from grpo_jax.data.encoding import encode_answer
from grpo_jax.data.prompts import encode_prompts
from grpo_jax.stages.run import Run
from grpo_jax.types import Problem, Prompts, Rollout, Sequences

REJECTED = "rejected"


def written_rollout(run: Run, problems: Sequence[Problem], indices: np.ndarray) -> Rollout:
    """The pairs of some problems as a rollout of host arrays, better before worse; it has no log-probabilities."""
    prompts = encode_prompts(problems, indices, run.config.prompt, run.tokenizer)
    rows = [ids for i in indices for ids in pair_ids(run, problems[int(i)])]
    B, Tc = len(rows), run.config.rl.sampling.max_completion_length
    tokens, mask = np.full((B, Tc), run.pad_id, np.int32), np.zeros((B, Tc), bool)  # [B, Tc]
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    start = np.repeat(np.asarray(prompts.sequences.positions)[:, -1:] + 1, 2, axis=0)  # [B, 1]
    positions = (start + np.arange(Tc)).astype(np.int32)
    return Rollout(
        prompts=Prompts(prompts.sequences, prompts.index),
        completions=Sequences(tokens, positions, mask.astype(np.int32)),
        completion_mask=mask,
        logprobs=np.zeros((B, Tc), np.float32),
        finished=np.ones(B, bool),
    )


def pair_ids(run: Run, problem: Problem) -> tuple[list[int], list[int]]:
    """The tokens of the better and of the worse completion, each with an end of sequence.

    Raises `AlgorithmError` naming a problem without one of them, or with one that is too long.
    """
    texts = problem.solution, problem.columns.get(REJECTED)
    name, longest = problem.id or repr(problem.question[:60]), run.config.rl.sampling.max_completion_length
    if not all(isinstance(text, str) and text for text in texts):
        raise AlgorithmError(
            f"{name}: pairs_from data needs a solution and a column {REJECTED!r}, both texts, and this problem has "
            f"{texts[0]!r} and {texts[1]!r}; set rl.source.fields.solution to the key of the better one"
        )
    pair = tuple([*encode_answer(run.tokenizer, text), run.eos_ids[0]] for text in texts)
    if max(map(len, pair)) > longest:
        raise AlgorithmError(
            f"{name}: a completion of {max(map(len, pair))} tokens, and rl.sampling.max_completion_length is "
            f"{longest}; raise it, or leave the problem out"
        )
    return pair


def check_pairs(run: Run, problems: Sequence[Problem]) -> None:
    """Read every pair once, before device memory is taken. Raises `AlgorithmError`."""
    for problem in problems:
        pair_ids(run, problem)
