"""What a step needs at least, and what this machine can do: operations over rate, bytes over bandwidth.

Operations are counted as in a system that computes each prompt once a group, whatever the measured one does, so that
shares of two systems can be compared. A phase's floor is the longer of the two times.

    python -m grpo_jax.benchmark.floors S        # measure the machine for a workload, one JSON object
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from grpo_jax.benchmark.workloads import WORKLOADS, Workload

SIZES = {"float32": 4, "bfloat16": 2}
REPEATS = 7


class Work(NamedTuple):
    """What a phase needs: operations of its matrix products, and bytes that must be read from memory."""

    operations: float
    bytes: float = 0.0


def phase_work(w: Workload) -> dict[str, Work]:
    """The work of each phase of a step; completions have their mean length.

    forward:    2 (body (P Tp + B Tc) + head B Tc), and 4 N H a layer for each pair of query and key
    prefill:    the prompts' part of it;  decode: the completions' part
    reference:  one forward;  update: three
    bytes of a decode step: all weights, each prompt's keys and values once, those of the rows so far
    """
    alive = [w.lengths.survival(t) if w.lengths else 1.0 for t in range(w.completion_length)]
    tokens = w.rows * sum(alive)
    pair, kept = 4 * w.heads * w.head_dim * w.layers, 2 * w.kv_heads * w.head_dim * w.layers * SIZES[w.dtype]
    prompt_pairs = w.prompts * w.prompt_length * (w.prompt_length + 1) / 2
    pairs = w.rows * sum(a * (w.prompt_length + t + 1) for t, a in enumerate(alive))
    prefill = 2 * w.body * w.prompts * w.prompt_length + pair * prompt_pairs
    decode = 2 * (w.body + w.head) * tokens + pair * pairs
    weights = (w.body + w.head) * SIZES[w.dtype]
    own = w.rows * sum(a * t for t, a in enumerate(alive))
    read = w.completion_length * (weights + kept * w.prompts * w.prompt_length) + kept * own
    return {
        "prefill": Work(prefill, w.body * SIZES[w.dtype]),
        "decode": Work(decode, read),
        "reference": Work(prefill + decode),
        "update": Work(3 * (prefill + decode)),
    }


def floor_seconds(work: Work, machine: Mapping[str, float]) -> float:
    """The longer of operations over the best matmul rate and bytes over the rate of a read."""
    return max(work.operations / machine["matmul"], work.bytes / machine["read"])


def measure_machine(w: Workload) -> dict[str, float]:
    """Operations a second of matrix products, of the workload's shapes and the best of all; bytes a second of a read.

    `decode_*` are of all rows of a step at once, `train_*` of two groups' tokens, `square` of a large matrix. A floor
    is what the machine can do, so each rate is the best of some calls, and `matmul` the best of all shapes. A read is
    the sum of an array larger than the caches, which writes nothing: decoding reads weights, keys and values.
    """
    import jax
    import jax.numpy as jnp

    large = jax.default_backend() != "cpu"
    dtype = jnp.dtype(w.dtype)
    rows, tokens = w.rows, 2 * w.generations * w.completion_length
    side = 8192 if large else 2048
    shapes = {
        "square": (side, side, side),
        "decode_mlp": (rows, w.width, w.mlp),
        "decode_head": (rows, w.width, w.vocabulary),
        "train_mlp": (tokens, w.width, w.mlp),
        "train_head": (min(tokens, 2048), w.width, w.vocabulary),
    }
    found = {}
    for name, (m, k, n) in shapes.items():
        a, b = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
        found[name] = 2 * m * k * n / _seconds(jax.jit(jnp.matmul), a, b)
    # In pieces, as XLA's CPU compiler gives a sum over a whole array to one thread.
    x = jnp.ones((64, 2**24 if large else 2**20), jnp.float32)
    read = x.nbytes / _seconds(jax.jit(lambda x: x.sum(1)), x)
    return {"matmul": max(found.values()), "read": read} | found


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """The shortest time of a call, with enough calls in a row to be seen."""
    import jax

    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    calls = max(1, int(0.02 / max(time.perf_counter() - start, 1e-6)))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(measure_machine(WORKLOADS[sys.argv[1]])))
