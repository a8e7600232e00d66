"""The programs of a stage compiled ahead of time on abstract arrays: what they take on a device, before one is held.

The devices of the mesh need not be here: for a TPU topology the real TPU compiler runs on any machine with libtpu.
The programs are those of `programs.py`, chained as the stage chains them: what one returns, laid out as its compiler
chose, is what the next one takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
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
    """What a program takes on each device: bytes as its compiler lays them out, and work."""

    arguments: int
    outputs: int
    donated: int  # of the outputs, what lies where arguments lay
    temporaries: int
    beside: int  # what the stage holds meanwhile and this program does not take
    flops: float  # of its matrix products, loops at their longest
    compiler_flops: float  # the compiler's count, which takes the body of a loop once
    compiler_bytes: float  # read and written, counted so too

    @property
    def peak(self) -> int:
        """Bytes in use while the program runs."""
        return self.arguments + self.outputs - self.donated + self.temporaries + self.beside


class Ahead(NamedTuple):
    """A program that is compiled and was never run."""

    compiled: Compiled
    flops: float  # of the matrix products on each device

    @property
    def results(self) -> Any:
        """What it returns, in abstract form, laid out as the compiler chose."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.compiled.out_info,
            self.compiled.output_shardings,
        )

    def footprint(self, beside: int = 0) -> Footprint:
        """What it takes, with `beside` bytes of other arrays on each device."""
        memory, cost = self.compiled.memory_analysis(), self.compiled.cost_analysis()
        return Footprint(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes,
            donated=memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
            beside=beside,
            flops=self.flops,
            compiler_flops=cost.get("flops", 0.0),
            compiler_bytes=cost.get("bytes accessed", 0.0),
        )


class RLStep(NamedTuple):
    """The programs of one RL step, compiled, and what each takes."""

    programs: dict[str, Ahead]  # freeze, sample, logprobs, experience, update; logprobs only where it is called
    footprints: dict[str, Footprint]


def topology_mesh(config: MeshConfig, topology: str, *, platform: str = "tpu") -> Mesh:
    """A mesh of the devices of a named topology (`v5e:2x4`), for compiling only; needs the platform's compiler.

    Raises `ShardingError` if the mesh is of another size than the topology.
    """
    from jax.experimental.topologies import get_topology_desc

    return make_mesh(config, get_topology_desc(platform=platform, topology_name=topology).devices)


def device_bytes(tree: Any) -> int:
    """Bytes that arrays, or their abstract forms with shardings, take on each device, without padding."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def matmul_flops(jaxpr: Jaxpr | ClosedJaxpr, *, longest: int) -> int:
    """`2 m n k` summed over all matrix products of all devices.

    A scan counts as often as it runs, a `while` loop `longest` times, and of branches the dearest one.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            k = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * k * math.prod(equation.outvars[0].aval.shape)
            continue
        inner = [p for p in jax.tree.leaves(list(params.values())) if isinstance(p, Jaxpr | ClosedJaxpr)]
        counts = [matmul_flops(part, longest=longest) for part in inner]
        times = {"scan": params.get("length", 1), "while": longest}.get(name, 1)
        total += times * (max(counts, default=0) if name == "cond" else sum(counts))
    return total


def compile_ahead(program: Callable[..., Any], *arguments: Any, mesh: Mesh, longest: int = 1) -> Ahead:
    """Trace, lower and compile a jitted program for a mesh on abstract arguments that carry their shardings.

    `longest` bounds its `while` loops. Raises the compiler's error if the program does not fit the device.
    """
    with jax.set_mesh(mesh):
        traced = program.trace(*arguments)
        return Ahead(traced.lower().compile(), matmul_flops(traced.jaxpr, longest=longest) / mesh.size)


def abstract_prompts(prompts: int, length: int, mesh: Mesh) -> Prompts:
    """A batch of prompts [P, Tp] as the stages place it."""
    split = named(mesh, "batch")
    tokens = jax.ShapeDtypeStruct((prompts, length), jnp.int32, sharding=split)
    return Prompts(Sequences(tokens, tokens, tokens), jax.ShapeDtypeStruct((prompts,), jnp.int32, sharding=split))


def compile_rl(
    model: Decoder, config: RLConfig, sampling: Sampling, algorithm: Algorithm, mesh: Mesh, *, max_prompt_length: int
) -> RLStep:
    """Compile everything that runs on the devices in one RL step.

    Raises `ShardingError` if the mesh does not divide a parameter, and the compiler's error if a program does not fit.
    """
    c, longest = config, sampling.max_completion_length
    params = abstract_params(model.config, mesh)
    optimizer = make_optimizer(c.optimizer, c.iterations * c.max_steps * c.num_iterations)
    state = abstract_state(params, optimizer, mesh)
    call = rl_programs(model, c, sampling, algorithm, optimizer, params)
    prompts = abstract_prompts(c.prompts_per_step, max_prompt_length, mesh)
    outcome = jax.ShapeDtypeStruct((c.prompts_per_step, c.num_generations), jnp.float32, sharding=named(mesh, "batch"))

    done = {"freeze": compile_ahead(call.freeze, params, mesh=mesh)}
    reference = done["freeze"].results
    done["sample"] = compile_ahead(call.sample, params, prompts, state.key, 0, mesh=mesh, longest=longest)
    rollout = done["sample"].results
    ref = old = None
    if algorithm.reference:
        done["logprobs"] = compile_ahead(call.logprobs, reference, rollout, mesh=mesh)
        ref = done["logprobs"].results
    if c.num_iterations > 1:
        done["old_logprobs"] = compile_ahead(call.logprobs, params, rollout, mesh=mesh)
        old = done["old_logprobs"].results
    done["experience"] = compile_ahead(call.experience, rollout, Rewards(outcome), old, ref, mesh=mesh)
    done["update"] = compile_ahead(call.update, state, done["experience"].results, mesh=mesh)
    kept, moments = device_bytes(reference), device_bytes(state.opt_state)
    weights = device_bytes(params)
    beside = {
        "freeze": moments,
        "sample": kept + moments,
        "logprobs": weights + moments,
        "old_logprobs": kept + moments,
        "experience": weights + moments + kept,
        "update": kept,
    }
    return RLStep(done, {name: program.footprint(beside[name]) for name, program in done.items()})
