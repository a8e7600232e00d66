"""Which completion is decoded where: a fixed number of rows, refilled from a queue as completions end.

Letters: `R` lanes, `M` rows of a lane, `I` prompts that a lane takes in turn, `J = I*G` completions of a lane. Lane r
takes the prompts r*I .. r*I + I-1, so a lane's completions are contiguous rows of the batch and a device decodes only
what it holds. All rows of a lane continue one prompt, whose keys and values they read together; a lane goes on to its
next prompt when all completions of the present one have ended.

Only bookkeeping is here: integers by row, no model, no randomness.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.types import pytree

NAMED = 4  # numbers of rows that an error proposes


class DecodeError(ValueError):
    """Rows that cannot be shared out among prompts; the message names both numbers and what would do."""

    exit_code = 2


def lanes_and_rows(prompts: int, num_generations: int, decode_rows: int, *, shards: int = 1) -> tuple[int, int]:
    """How many prompts (lanes R) are decoded at once, and how many completions of each (M), so that `R M = rows`.

    As many lanes as can be: a divisor of the prompts that is a multiple of the batch `shards`, with at most
    `num_generations` rows each. 0 rows, or more than there are, is all at once and never refused.
    Raises `DecodeError` for rows that cannot be shared out so.
    """
    P, G = prompts, num_generations
    rows = min(decode_rows or P * G, P * G)
    if rows == P * G:
        return P, G
    fitting = [R for R in range(P, 0, -1) if P % R == 0 and R % shards == 0]
    for R in fitting:
        if rows % R == 0 and rows // R <= G:
            return R, rows // R
    some = sorted({R * M for R in fitting for M in range(1, G + 1)} | {P * G})
    near = sorted(sorted(some, key=lambda n: abs(n - rows))[:NAMED])
    raise DecodeError(
        f"decode_rows: {rows} rows cannot be shared out evenly among {P} prompts of {G} completions over {shards} "
        f"batch shard(s); the nearest that can are {', '.join(map(str, near))}, and 0 is all at once"
    )


@pytree
class Slots:
    """What each row is doing, and where the tokens of each completion were written."""

    prompt: Array  # [R] i32, of the lane's prompts, the present one
    queued: Array  # [R] i32, the lane's next completion to start
    job: Array  # [R, M] i32, the completion that a row decodes
    t: Array  # [R, M] i32, its tokens so far
    active: Array  # [R, M] bool
    started: Array  # [R, J] i32, the step of a completion's first token
    row: Array  # [R, J] i32, the row of its lane that decodes it
    length: Array  # [R, J] i32, its tokens
    ended: Array  # [R, J] bool, by itself and not by the limit of length


def open_slots(lanes: int, rows: int, jobs: int) -> Slots:
    """All rows idle, all completions queued."""
    by_lane, by_row, by_job = (lanes,), (lanes, rows), (lanes, jobs)
    return Slots(
        prompt=jnp.zeros(by_lane, jnp.int32),
        queued=jnp.zeros(by_lane, jnp.int32),
        job=jnp.zeros(by_row, jnp.int32),
        t=jnp.zeros(by_row, jnp.int32),
        active=jnp.zeros(by_row, bool),
        started=jnp.zeros(by_job, jnp.int32),
        row=jnp.zeros(by_job, jnp.int32),
        length=jnp.zeros(by_job, jnp.int32),
        ended=jnp.zeros(by_job, bool),
    )


def refill(slots: Slots, step: Array, *, num_generations: int) -> tuple[Slots, Array]:
    """Give idle rows the next completions of their lane's prompt, or of its next prompt if none is under way.

    -> the slots and which rows begin a completion at this step [R, M].
    """
    jobs, rows = slots.started.shape[1], slots.active.shape[1]
    prompts = jobs // num_generations
    over = ~slots.active.any(1) & (slots.queued == (slots.prompt + 1) * num_generations)
    prompt = jnp.where(over & (slots.prompt + 1 < prompts), slots.prompt + 1, slots.prompt)  # [R]
    idle = ~slots.active
    candidate = slots.queued[:, None] + jnp.cumsum(idle, 1) - 1  # [R, M]
    begins = idle & (candidate < ((prompt + 1) * num_generations)[:, None])
    job = jnp.where(begins, candidate, slots.job)
    at = begins[:, :, None] & (job[:, :, None] == jnp.arange(jobs))  # [R, M, J], at most one row a completion
    started, row = at.any(1), jnp.sum(at * jnp.arange(rows)[:, None], 1, dtype=jnp.int32)
    return slots.replace(
        prompt=prompt,
        queued=slots.queued + begins.sum(1, dtype=jnp.int32),
        job=job,
        t=jnp.where(begins, 0, slots.t),
        active=slots.active | begins,
        started=jnp.where(started, step, slots.started),
        row=jnp.where(started, row, slots.row),
    ), begins


def advance_slots(slots: Slots, ends: Array, *, limit: int) -> Slots:
    """Count one more token for each active row; rows whose token `ends` [R, M] the completion, or fills it, go idle."""
    t = jnp.where(slots.active, slots.t + 1, slots.t)
    return close_slots(slots.replace(t=t), slots.active & (ends | (t == limit)), ends)


def close_slots(slots: Slots, done: Array, ends: Array) -> Slots:
    """Note the completions of the rows `done` [R, M], and which of them end by themselves; the rows go idle."""
    jobs = slots.started.shape[1]
    at = done[:, :, None] & (slots.job[:, :, None] == jnp.arange(jobs))  # [R, M, J]
    return slots.replace(
        active=slots.active & ~done,
        length=jnp.where(at.any(1), jnp.sum(at * slots.t[:, :, None], 1), slots.length),
        ended=slots.ended | (at & ends[:, :, None]).any(1),
    )


def unfinished(slots: Slots) -> Array:
    """Whether any completion is under way or queued: [] bool."""
    return slots.active.any() | (slots.queued < slots.started.shape[1]).any()


def most_steps(prompts: int, num_generations: int, rows: int, limit: int) -> int:
    """Steps that a lane of so many prompts and rows needs at most."""
    return prompts * -(-num_generations // rows) * limit


def by_completion(log: Array, slots: Slots, *, limit: int) -> Array:
    """What was noted by step and row, [steps, R, M], as rows of the batch: [R*J, limit], 0 behind the end."""
    steps = log.shape[0]

    def lane(log, started, row, length):  # [steps, M], [J], [J], [J]
        t = jnp.arange(limit)
        at = jnp.minimum(started[:, None] + t, steps - 1)  # [J, limit]
        return jnp.where(t < length[:, None], log[at, row[:, None]], 0)

    taken = jax.vmap(lane, in_axes=(1, 0, 0, 0))(log, slots.started, slots.row, slots.length)  # [R, J, limit]
    return taken.reshape(-1, limit)
