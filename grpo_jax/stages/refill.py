"""Dynamic sampling: groups without a signal give way to those of further prompts (DAPO, arXiv:2503.14476, section 3.2).

    while groups are dead and rounds are left:
        sample a batch of further prompts, of the same shape, and judge it
        put its groups with a signal in the places of dead ones

All batches have P prompts, so that nothing is compiled anew; what a round gives beyond what is needed is thrown away.
DAPO and verl sample until the batch is full, with a limit on the batches in verl; here the limit is always there, and
what is dead after it is left out of the means. The further prompts depend on seed, step and round alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from grpo_jax.data.order import further_indices
from grpo_jax.reporting.progress import Progress
from grpo_jax.reporting.timeline import LOOP
from grpo_jax.sharding import global_to_host
from grpo_jax.stages.exploration import Collected, Drawn, Gathered, Stage, draw, explore, gather, start_passes
from grpo_jax.stages.rounds import Use
from grpo_jax.types import TrainState


def collect(stage: Stage, state: TrainState, reference: Any, drawn: Drawn, progress: Progress) -> Collected:
    """The experience of a step, with as few dead groups as possible if the settings say so."""
    if stage.run.config.rl.dead_groups != "refill":
        return explore(stage, state, reference, drawn, progress)
    batch, numbers, uses = refill(stage, state, reference, drawn, progress)
    with progress.phase("train"):
        passes = start_passes(stage, state, reference, batch.rollout, drawn.step)
        with stage.timeline.span(LOOP, "start update", drawn.step + 1):
            stage.events.write(9, drawn.step + 1)
            experience = stage.programs.experience(batch.rollout, batch.judged.rewards, *passes)
    return Collected(*batch, experience, numbers, uses)


def refill(
    stage: Stage, state: TrainState, reference: Any, drawn: Drawn, progress: Progress
) -> tuple[Gathered, dict[str, Any], tuple[Use, ...]]:
    """Sample, judge and replace, at most `rl.refill_rounds` times.

    Also the metrics of it, some on the devices yet, and what became of the programs of all rounds.

    `refill/rounds`, `refill/frac_dead_drawn` of all groups that were sampled, `num_generated_tokens` in all of them.
    """
    c, batch = stage.run.config.rl, gather(stage, drawn, progress)
    dead = global_to_host(batch.judged.dead)
    drawn_dead, rounds, tokens, uses = [dead], 0, [batch.rollout.completion_mask.sum()], drawn.uses
    while dead.any() and rounds < c.refill_rounds:
        rounds += 1
        indices = further_indices(
            len(stage.problems), c.prompts_per_step, seed=stage.run.config.seed, step=drawn.step, round=rounds
        )
        further = draw(stage, state, reference, drawn.step, indices)
        more, uses = gather(stage, further, progress), (*uses, *further.uses)
        others = global_to_host(more.judged.dead)
        batch = with_groups(stage, batch, more, places(dead, others))
        dead = global_to_host(batch.judged.dead)
        drawn_dead.append(others)
        tokens.append(more.rollout.completion_mask.sum())
    numbers = {
        "refill/rounds": float(rounds),
        "refill/frac_dead_drawn": float(np.mean(drawn_dead)),
        "num_generated_tokens": sum(tokens),
    }
    return batch, numbers, uses


def places(dead: np.ndarray, others_dead: np.ndarray) -> np.ndarray:
    """Which group of another batch each group gives its place to: [P] i32, -1: none. First come, first served."""
    source = np.full(dead.shape, -1, np.int32)
    slots, live = np.flatnonzero(dead), np.flatnonzero(~others_dead)
    count = min(len(slots), len(live))
    source[slots[:count]] = live[:count]
    return source


def with_groups(stage: Stage, batch: Gathered, more: Gathered, source: np.ndarray) -> Gathered:
    """A batch with some groups of another, on the devices and on the host alike."""
    G, place = stage.run.config.rl.num_generations, stage.run.place(source)
    old, new = (
        (x.rollout, x.judged._replace(counts={}))  # counts are the host's
        for x in (batch, more)
    )
    rollout, judged = stage.programs.refill(old, new, place)
    texts = [
        text
        for p, q in enumerate(source)
        for text in (batch.texts[p * G : (p + 1) * G] if q < 0 else more.texts[q * G : (q + 1) * G])
    ]
    counts = {name: dict(Counter(of) + Counter(more.judged.counts[name])) for name, of in batch.judged.counts.items()}
    counts = {name: dict.fromkeys(batch.judged.counts[name], 0) | count for name, count in counts.items()}
    indices = np.where(source < 0, batch.indices, more.indices[np.maximum(source, 0)])
    return Gathered(indices, rollout, texts, judged._replace(counts=counts))
