"""Measuring a reward model on held-out solutions: scores in batches of one shape, numbers on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.data.labelled import Scored
from grpo_jax.data.packing import pack
from grpo_jax.data.scored_rows import scored_rows
from grpo_jax.evaluation.verifier import first_error_measures, label_measures
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.scores import Candidates, sequence_scores
from grpo_jax.sharding import batch_shards, global_to_host
from grpo_jax.stages.run import Run
from grpo_jax.types import Sequences


class HeldOut(NamedTuple):
    """Held-out solutions laid out in rows, and the program that scores them."""

    run: Run
    examples: Sequence[Scored]
    rows: list[range]  # the examples of each row
    max_length: int
    batch: int  # rows scored at once
    program: Callable[[Any, Sequences], jax.Array]


def measuring_program(model: Decoder, candidates: Candidates | None) -> Callable[[Any, Sequences], jax.Array]:
    """`(params, sequences [R, T]) -> scores [R, T]`, compiled."""
    return jax.jit(partial(sequence_scores, model, candidates=candidates))


def opening(
    run: Run, examples: Sequence[Scored], max_length: int, batch: int, program: Callable[[Any, Sequences], jax.Array]
) -> HeldOut:
    """Lay held-out solutions out in rows, in order."""
    rows = [range(*row) for row in pack([len(example.tokens) for example in examples], max_length)]
    shards = batch_shards(run.mesh)
    fewest = -(-len(rows) // shards) * shards
    return HeldOut(run, examples, rows, max_length, min(batch, max(fewest, shards)), program)


def measure(held_out: HeldOut, params: Any, supervision: str) -> dict[str, float]:
    """Loss, accuracy, AUC and, of steps, how well the first error is found; of pairs, loss and accuracy."""
    scores = scores_at_labels(held_out, params)
    targets = [example.targets[example.mask] for example in held_out.examples]
    if supervision == "preference":
        margins = np.array([chosen - rejected for chosen, rejected in scores], np.float64)
        return {"loss": float(np.logaddexp(0.0, -margins).mean()), "accuracy": float((margins > 0).mean())}
    measured = label_measures(np.concatenate(scores), np.concatenate(targets))
    return measured | (first_error_measures(scores, targets) if supervision == "process" else {})


def scores_at_labels(held_out: HeldOut, params: Any) -> list[np.ndarray]:
    """The scores of each solution at its labelled places, in the order of the examples; of a pair both."""
    found: list[np.ndarray] = []
    for begin in range(0, len(held_out.rows), held_out.batch):
        rows = held_out.rows[begin : begin + held_out.batch]
        filled = [*rows, *[range(0)] * (held_out.batch - len(rows))]
        made = scored_rows(held_out.examples, filled, max_length=held_out.max_length, pad=held_out.run.pad_id)
        scores = global_to_host(held_out.program(params, held_out.run.place(made.sequences)))
        for r, row in enumerate(rows):
            start = 0
            for number in row:
                example = held_out.examples[number]
                found.append(scores[r, start : start + len(example.tokens)][example.mask])
                start += len(example.tokens)
    return found
