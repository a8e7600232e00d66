"""Compiles a layer of experts and its gradient for a v5e-8: what each kernel takes goes to a file."""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from grpo_jax.config import MeshConfig
from grpo_jax.models.experts import KERNELS, mixture
from grpo_jax.sharding import make_mesh, named

B, T, D, F, E, k = 16, 512, 1024, 512, 32, 4


def loss(layer, x, kernel):
    out = mixture(x, layer, jax.nn.silu, experts_per_token=k, normalize=True, kernel=kernel)
    return jnp.sum(out.astype(jnp.float32) ** 2)


def main(path: str) -> None:
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2), list(topology.devices))

    def abstract(shape, *axes):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=named(mesh, *axes))

    layer = {
        "router": abstract((D, E), "embed", None),
        "gate": abstract((E, D, F), "experts", None, "mlp"),
        "up": abstract((E, D, F), "experts", None, "mlp"),
        "down": abstract((E, F, D), "experts", "mlp", None),
    }
    arguments = (layer, abstract((B, T, D), "batch", None, None))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, arguments)
    takes = {}
    with jax.set_mesh(mesh):
        for kernel in KERNELS:
            gradient = jax.grad(partial(loss, kernel=kernel), argnums=(0, 1))
            compiled = jax.jit(gradient, out_shardings=shardings).lower(*arguments).compile()
            takes[kernel] = {
                "flops": compiled.cost_analysis()["flops"],
                "bytes": compiled.memory_analysis().temp_size_in_bytes,
            }
    needed = 3 * 3 * 2 * (B * T * k // 4) * D * (F // 2)  # three products, their two gradients each, by a device
    Path(path).write_text(json.dumps({"takes": takes, "needed": needed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
