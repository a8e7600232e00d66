"""Saves one checkpoint after the other and prints each announced step; the test kills it somewhere."""

import sys

import jax
import jax.numpy as jnp

from grpo_jax.training.checkpoint import Checkpoints


def main(directory: str, first: int) -> None:
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"step": jnp.int32(first), "w": jax.random.normal(jax.random.key(0), (64, 1024)) + first}
    announce = lambda saved: print(saved.step, flush=True)  # noqa: E731
    with Checkpoints(directory, 2, announce=announce) as checkpoints:
        for step in range(first + 1, 100_000):
            state = add(state)
            checkpoints.save(step, state, {"step": step})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
