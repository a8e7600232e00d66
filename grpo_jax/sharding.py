"""Where every array lives: one mesh, one table from logical axes to mesh axes, and nothing else.

A parameter names its logical axes where it is declared (`models/parameters.py`); `RULES` maps them to the mesh.
The batch is split over `data` and `fsdp`, the width of parameters over `fsdp`, heads, mlp and vocabulary over `tensor`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grpo_jax.config import MeshConfig

MESH_AXES = ("data", "fsdp", "tensor")

RULES: dict[str, Any] = {
    "batch": ("data", "fsdp"),
    "replica": "data",  # the part of the batch that one copy of the parameters works on
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "experts": "fsdp",
    "time": None,
    "head_dim": None,
    "layers": None,
    "rank": None,
    "any": PartitionSpec.UNCONSTRAINED,  # left to the compiler
}


class ShardingError(ValueError):
    """A mesh or an array that cannot be laid out as asked; the message names both sizes and the remedy."""


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Arrange the devices as (data, fsdp, tensor); one entry of -1 takes what is left.

    Raises `ShardingError` if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1:
        raise ShardingError(f"mesh: {sizes} has more than one -1; give all sizes but one")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if math.prod(sizes) != len(devices):
        asked = f"data {config.data} x fsdp {config.fsdp} x tensor {config.tensor}"
        raise ShardingError(
            f"mesh: {asked} does not fit {len(devices)} device(s); "
            f"choose sizes whose product is {len(devices)}, or -1 for one of them"
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, devices=devices, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def spec(*axes: str | None) -> PartitionSpec:
    """The mesh axes of an array whose dimensions have these logical names (None: not split)."""
    return PartitionSpec(*(RULES[a] if a is not None else None for a in axes))


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """The sharding of an array whose dimensions have these logical names."""
    return NamedSharding(mesh, spec(*axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(name: str, shape: tuple[int, ...], sharding: NamedSharding) -> None:
    """Refuse an array whose dimensions the mesh does not divide, naming the array, the axis and both sizes."""
    for size, axis in zip(shape, sharding.spec, strict=False):
        parts = math.prod(sharding.mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ()))
        if size % parts:
            raise ShardingError(
                f"{name}: a dimension of {size} cannot be split over mesh axis {axis} of size {parts}; "
                f"choose a mesh.{axis if isinstance(axis, str) else axis[0]} that divides {size}"
            )


def batch_shards(mesh: Mesh) -> int:
    """The number of parts into which the batch axis is split."""
    return math.prod(mesh.shape[a] for a in RULES["batch"])


def mesh_sizes() -> dict[str, int]:
    """The sizes of the axes of the mesh in context; empty without one."""
    return dict(jax.sharding.get_abstract_mesh().shape)


def shards_in_context() -> int:
    """The number of batch shards of the mesh in context; 1 without one."""
    sizes = mesh_sizes()
    return math.prod(sizes.get(axis, 1) for axis in RULES["batch"])


def platform_in_context() -> str:
    """What the program is compiled for: the platform of the mesh, which may be another than this process has."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an activation to the rules inside jit; without a mesh in context it is the identity."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))


def host_to_global(tree: Any, sharding: NamedSharding) -> Any:
    """Place host arrays, equal on every process, on the mesh: each process hands over the slices it owns."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda i, x=x: np.asarray(x)[i]), tree
    )


def start_to_host(tree: Any) -> Any:
    """Start to bring global arrays to every process, and return what `global_to_host` then has only to wait for.

    On several processes that is a program, which runs before those that are started later.
    """

    def start(x):
        if not isinstance(x, jax.Array):
            return x
        if not x.is_fully_addressable and not x.is_fully_replicated:
            x = _whole_everywhere(x.sharding.mesh)(x)
        x.copy_to_host_async()
        return x

    return jax.tree.map(start, tree)


@functools.cache
def _whole_everywhere(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def global_to_host(tree: Any) -> Any:
    """Fetch global arrays as NumPy arrays, whole, on every process."""

    def fetch(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)


def run_key(seed: int) -> jax.Array:
    """The key of a run. Threefry, whatever the environment prefers: only its noise is the same in any batch layout."""
    return jax.random.key(seed, impl="threefry2x32")


def agree(value: Any) -> Any:
    """What process 0 holds, on every process: numbers or arrays of one shape.

    For decisions that rest on something outside the arrays (a file, a clock, a reward function): processes that
    decide differently would wait for each other for ever. Every process must call it at the same point.
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(value))


def start_gathering(value: Any) -> Any:
    """Start to tell every process what each of them holds: [processes, ...], for which `global_to_host` then waits.

    Every process must call it at the same point. The answer comes when all is done that was started before, and waits
    for nothing that is started later.
    """
    value = np.asarray(value)[None]
    if jax.process_count() == 1:
        return value
    mesh, shape = _by_process(), (jax.process_count(), *value.shape[1:])
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("processes"))
        return start_to_host(jax.make_array_from_callback(shape, sharding, lambda _: value))


@functools.cache
def _by_process() -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(jax.process_count(), -1), ("processes", "devices"))


def gathered(value: Any) -> np.ndarray:
    """What each process holds, by its number: [processes, ...]. Every process must call it at the same point."""
    return np.asarray(global_to_host(start_gathering(value)))
