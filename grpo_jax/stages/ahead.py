"""Programs compiled ahead of time on abstract arrays: what they take on a device, before one is held.

The devices of the mesh need not be here (`targets.py`): the compilers of TPUs and GPUs run on any machine that has
their libraries. Nothing is executed, and no array is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh
from jax.stages import Compiled

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What the TPU compiler says of a program that is too large: its temporaries alone, or all that it takes.
TOO_LARGE = (
    (re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds"), "temporaries"),
    (re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm"), "all"),
)


class CompileError(ValueError):
    """A program that the compiler refuses for another reason than its size."""

    exit_code = 1


class Footprint(NamedTuple):
    """What a program takes on each device: bytes as its compiler lays them out, and work."""

    arguments: int
    outputs: int
    donated: int  # of the outputs, what lies where arguments lay
    temporaries: int
    beside: int  # what the stage holds meanwhile and this program does not take
    flops: float  # of its matrix products, loops at their longest
    compiler_flops: float  # the compiler's count, which takes the body of a loop once; 0 where it has none
    compiler_bytes: float  # read and written, counted so too

    @property
    def peak(self) -> int:
        """Bytes in use while the program runs."""
        return self.arguments + self.outputs - self.donated + self.temporaries + self.beside


class Ahead(NamedTuple):
    """A program that was traced, and compiled if it fits its device, and was never run."""

    compiled: Compiled | None  # None: the compiler refused it as too large
    flops: float  # of the matrix products on each device
    refused: tuple[int, int] = (0, 0)  # if the compiler refused it: bytes of arguments, and of temporaries as it says

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
        if self.compiled is None:
            arguments, temporaries = self.refused
            return Footprint(arguments, 0, 0, temporaries, beside, self.flops, 0.0, 0.0)
        memory, cost = self.compiled.memory_analysis(), self.compiled.cost_analysis() or {}
        return Footprint(
            arguments=memory.argument_size_in_bytes,
            outputs=memory.output_size_in_bytes,
            donated=memory.alias_size_in_bytes,
            temporaries=_temporaries(self.compiled),
            beside=beside,
            flops=self.flops,
            compiler_flops=cost.get("flops", 0.0),
            compiler_bytes=cost.get("bytes accessed", 0.0),
        )


def _temporaries(compiled: Compiled) -> int:
    """Bytes of a compiled program's temporaries at their height.

    The TPU compiler's sum of temporaries counts on-chip memory as well, and can be twice what is taken of the device's;
    its peak is of the device's memory alone, without the gaps between buffers (up to 6 % in what was tried).
    """
    memory = compiled.memory_analysis()
    if _platform(compiled) != "tpu":
        return memory.temp_size_in_bytes
    taken = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return max(memory.peak_memory_in_bytes - taken, 0)


def _platform(compiled: Compiled) -> str:
    sharding = jax.tree.leaves(compiled.output_shardings)[0]
    return next(iter(sharding.device_set)).platform


def device_bytes(tree: Any) -> int:
    """Bytes that arrays, or their abstract forms with shardings, take on each device, without padding."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves if hasattr(x, "sharding"))


def matmul_flops(jaxpr: Jaxpr | ClosedJaxpr, *, longest: int | tuple[int, ...]) -> int:
    """`2 m n k` summed over all matrix products of all devices.

    A scan counts as often as it runs, a `while` loop `longest` times (several: of loops in loops, the outermost first),
    of branches the dearest one, and what is written for one device as often as there are devices.
    """
    here, *inside = longest if isinstance(longest, tuple) else (longest,)
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            k = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * k * math.prod(equation.outvars[0].aval.shape)
            continue
        if name.startswith("ragged_dot"):  # each row by the matrix of its own group
            total += 2 * equation.invars[0].aval.shape[-1] * math.prod(equation.outvars[0].aval.shape)
            continue
        inner = [p for p in jax.tree.leaves(list(params.values())) if isinstance(p, Jaxpr | ClosedJaxpr)]
        below = tuple(inside) if name == "while" and inside else longest
        counts = [matmul_flops(part, longest=below) for part in inner]
        times = {"scan": params.get("length", 1), "while": here}.get(name, 1)
        times = params["mesh"].size if name == "shard_map" else times
        total += times * (max(counts, default=0) if name == "cond" else sum(counts))
    return total


def compile_ahead(
    program: Callable[..., Any],
    *arguments: Any,
    mesh: Mesh,
    longest: int | tuple[int, ...] = 1,
    **named_arguments: Any,
) -> Ahead:
    """Trace, lower and compile a jitted program for a mesh on abstract arguments that carry their shardings.

    `longest` bounds its `while` loops. A program that the compiler refuses as too large for a device comes back
    without its compiled form. Raises `CompileError` for what else the compiler says.
    """
    with jax.set_mesh(mesh):
        traced = program.trace(*arguments, **named_arguments)
        flops = matmul_flops(traced.jaxpr, longest=longest) / mesh.size
        try:
            return Ahead(traced.lower().compile(), flops)
        except jax.errors.JaxRuntimeError as error:
            taken = device_bytes((arguments, named_arguments))
            temporaries = too_large(str(error), taken)
            if temporaries is None:
                raise CompileError(f"the compiler failed: {str(error)[:1000]}") from error
            return Ahead(None, flops, (taken, temporaries))


def too_large(message: str, arguments: int) -> int | None:
    """Bytes of temporaries that the TPU compiler names when it refuses a program as too large; None if it does not."""
    for pattern, what in TOO_LARGE:
        if found := pattern.search(message):
            size = int(float(found[1]) * UNITS[found[2]])
            return max(size - arguments, 0) if what == "all" else size
    return None
