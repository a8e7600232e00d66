"""The stage programs compiled ahead of time on abstract arrays: what they take on a device, before one is held.

The mesh may be of devices that are not here: for a TPU topology the real TPU compiler runs on any machine that has
libtpu. The programs are those of `programs.py`, chained as the stage chains them: what one returns, with the layout
that the compiler chose for it, is what the next one takes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.config import MeshConfig, RLConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.parameters import abstract_params
from grpo_jax.sampler.sample import Sampling
from grpo_jax.sharding import make_mesh, named
from grpo_jax.stages.programs import rl_programs
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.state import abstract_state
from grpo_jax.types import Prompts, Rewards, Sequences


class Footprint(NamedTuple):
    """What one program takes on each device, as its compiler counts it."""

    arguments: int  # bytes
    outputs: int  # bytes
    donated: int  # bytes of the outputs that lie where arguments lay
    temporaries: int  # bytes
    beside: int  # bytes of arrays that the stage holds meanwhile and this program does not take
    flops: float
    traffic: float  # bytes read and written

    @property
    def peak(self) -> int:
        """Bytes in use while the program runs."""
        return self.arguments + self.outputs - self.donated + self.temporaries + self.beside


class Ahead(NamedTuple):
    """A program compiled ahead of time, and the bytes that the stage holds beside it on each device."""

    compiled: Compiled
    beside: int

    @property
    def footprint(self) -> Footprint:
        """What it takes; loops are counted by the compiler as if their bodies ran once."""
        memory, cost = self.compiled.memory_analysis(), self.compiled.cost_analysis()
        return Footprint(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes,
            donated=memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            beside=self.beside,
            flops=cost.get("flops", 0.0),
            traffic=cost.get("bytes accessed", 0.0),
        )


def topology_mesh(config: MeshConfig, topology: str, *, platform: str = "tpu") -> Mesh:
    """A mesh of the devices of a named topology (`v5e:2x4`), which need not be here.

    Needs the platform's compiler (for TPUs: libtpu).
    """
    from jax.experimental.topologies import get_topology_desc

    return make_mesh(config, get_topology_desc(platform=platform, topology_name=topology).devices)


def device_bytes(tree: Any) -> int:
    """Bytes that arrays, or their abstract forms with shardings, take on each device."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def abstract_prompts(prompts: int, length: int, mesh: Mesh) -> Prompts:
    """A batch of prompts as the stages place them: [P, Tp], split over the batch axis."""
    split = named(mesh, "batch")

    def rows(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split)

    tokens = rows(prompts, length)
    return Prompts(Sequences(tokens, tokens, tokens), rows(prompts))


def results(compiled: Compiled) -> Any:
    """The abstract results of a compiled program, lying as it lays them."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        compiled.out_info,
        compiled.output_shardings,
    )


def compile_rl(
    model: Decoder,
    config: RLConfig,
    sampling: Sampling,
    algorithm: Algorithm,
    mesh: Mesh,
    *,
    max_prompt_length: int,
) -> dict[str, Ahead]:
    """Compile the programs of one RL step for a mesh: `sample`, `logprobs` (of the reference), `update`.

    Raises `ShardingError` if the mesh does not divide a parameter, and the compiler's error if a program does not fit.
    """
    params = abstract_params(model.config, mesh)
    optimizer = make_optimizer(config.optimizer, config.iterations * config.max_steps * config.num_iterations)
    state = abstract_state(params, optimizer, mesh)
    programs = rl_programs(model, config, sampling, algorithm, optimizer, params)
    prompts = abstract_prompts(config.prompts_per_step, max_prompt_length, mesh)
    outcome = jax.ShapeDtypeStruct(
        (config.prompts_per_step, config.num_generations), jnp.float32, sharding=named(mesh, "batch")
    )
    with jax.set_mesh(mesh):
        reference = results(programs.freeze.lower(params).compile())
        sample = programs.sample.lower(params, prompts, state.key, 0).compile()
        rollout = results(sample)
        logprobs = programs.logprobs.lower(reference, rollout).compile()
        scored = results(logprobs)
        experience = results(
            programs.experience.lower(
                rollout,
                Rewards(outcome),
                scored if config.num_iterations > 1 else None,
                scored if algorithm.reference else None,
            ).compile()
        )
        update = programs.update.lower(state, experience).compile()
    kept, moments = device_bytes(reference), device_bytes(state.opt_state)
    return {
        "sample": Ahead(sample, kept + moments),
        "logprobs": Ahead(logprobs, device_bytes(params) + moments),
        "update": Ahead(update, kept),
    }
