"""One of two processes that share a run: saves, restores on another mesh, leaves when either is signalled."""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.config import MeshConfig
from grpo_jax.sharding import host_to_global, make_mesh, named, replicated
from grpo_jax.training.checkpoint import CheckpointError, Checkpoints
from grpo_jax.training.interrupt import Interruption


def main(process: int, port: str, directory: str) -> dict:
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    w = host_to_global(values, named(mesh, "embed", "mlp"))
    make_key = jax.jit(jax.random.key, out_shardings=replicated(mesh))
    said, found = [], {}
    with Interruption() as interruption, Checkpoints(directory, 2, announce=said.append) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": w + step, "key": make_key(step)}, {"step": step})
        found["latest"] = checkpoints.latest().step
        found["announced"] = [saved.step for saved in said]
        found["steps"] = sorted(p.name for p in Path(directory).iterdir())

        other = make_mesh(MeshConfig(fsdp=4))
        abstract = {
            "w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=named(other, "embed", "mlp")),
            "key": jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(other)),
        }
        restored, found["meta"] = checkpoints.restore(3, abstract)
        found["equal"] = all(
            np.array_equal(np.asarray(shard.data), values[shard.index] + 3)
            for shard in restored["w"].addressable_shards
        )
        found["key"] = jax.random.key_data(restored["key"].addressable_data(0)).tolist()
        try:
            checkpoints.restore(9, abstract)
        except CheckpointError as error:
            found["refused"] = str(error)
        if process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        found["stop"] = [interruption.requested, interruption.requested_anywhere()]
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(main(int(sys.argv[1]), *sys.argv[2:])))
