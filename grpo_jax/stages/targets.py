"""What a plan is made for: devices that are not here, the memory of each, and the compiler that answers for them.

TPUs: the real compiler, on a topology by its name; it comes with libtpu. GPUs: the real compiler too, which needs the
`cuda` extra and no GPU. Without it fake CPU devices take their place; the layout of parameters, batches and caches is
the same, but the CPU compiler holds more temporaries: it multiplies bfloat16 in float32 and fuses less. In what was
compared (0.5B and 7B and a mixture of experts, on 1, 8 and 32 devices) they were 1.05 to 2.9 times a GPU's, a float32
model's as well, so that no factor of types would mend them: the figure is an upper bound.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple

import jax

GIB = 2**30
# Memory of what JAX calls a device, by its kind: a chip, or one of the two cores of older and of the newest chips.
TPU_MEMORY = {
    "TPU v2": 8 * GIB,
    "TPU v3": 16 * GIB,
    "TPU v4": 32 * GIB,
    "TPU v5 lite": 16 * GIB,
    "TPU v5": 95 * GIB,
    "TPU v6 lite": 32 * GIB,
    "TPU7x": 96 * GIB,
}
# A GPU of compute capability 9.0 (H100) as its compiler wants it described. One of 8.0 (A100) gave the same bytes.
GPU = """\
platform_name: "CUDA"
device_description_str: "GPU of compute capability 9.0"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  device_memory_size: {memory}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  clock_rate_ghz: 1.98
}}
"""


class TargetError(ValueError):
    """Devices that cannot be planned for; the message names them and the remedy."""

    exit_code = 2


class Target(NamedTuple):
    """Devices to compile for."""

    devices: list[Any]
    memory: int  # bytes of each
    kind: Literal["tpu", "gpu", "cpu"]  # the compiler
    name: str  # in words: "8 GPUs of 80 GB"
    compiler: str  # in words, and what its figures are

    @property
    def upper_bound(self) -> bool:
        """Whether another compiler than the devices' own gives the figures, and rather too large ones."""
        return self.kind == "cpu"


def tpu_target(topology: str, memory: int | None = None) -> Target:
    """The devices of a named topology (`v5e:4x8`); their memory is known by their kind.

    Raises `TargetError` if libtpu is not here, or knows no such topology, or the memory is not known.
    """
    from jax.experimental.topologies import get_topology_desc

    # A v4 chip is one device, unless both its cores are asked for.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        devices = get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        remedy = (
            "its compiler is libtpu (Linux on x86-64): python -m pip install -e '.[tpu]', no TPU needed"
            if "not installed" in reason
            else "write a name such as v5e:4x8, v5p:2x2x2, v6e:2x4, v4:2x2x2"
        )
        raise TargetError(f"--topology {topology}: {reason}; {remedy}") from error
    kind = devices[0].device_kind
    memory = memory or TPU_MEMORY.get(kind)
    if memory is None:
        raise TargetError(f"--topology {topology}: the memory of a {kind} is not known; give it with --device-memory")
    name = f"{topology}, {len(devices)} devices ({kind}) of {memory / GIB:g} GiB"
    return Target(list(devices), memory, "tpu", name, "the TPU compiler")


def gpu_target(count: int, memory: int, *, plugin: bool | None = None) -> Target:
    """`count` GPUs, for their own compiler if it is here, else as fake CPU devices; `plugin` says which.

    Raises `TargetError` if there are not so many fake devices.
    """
    name = f"{count} GPU{'s' * (count > 1)} of {memory / 1e9:g} GB"
    if has_gpu_compiler() if plugin is None else plugin:
        from jax.experimental.topologies import get_topology_desc

        described = GPU.format(memory=memory)
        devices = get_topology_desc(platform="cuda", target_config=described, topology=f"1x1x{count}").devices
        return Target(list(devices), memory, "gpu", name, "the GPU compiler")
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise TargetError(f"--devices {count}: only {len(devices)} fake devices have been made")
    compiler = (
        "the CPU compiler, whose temporaries are an upper bound (up to 3 times a GPU's where it trains); "
        "with the cuda extra, and no GPU, the GPU compiler answers: python -m pip install -e '.[cuda]'"
    )
    return Target(devices[:count], memory, "cpu", name, compiler)


def has_gpu_compiler() -> bool:
    """Whether JAX's plugin for CUDA is installed; no GPU is looked for."""
    return any("cuda" in entry.name for entry in entry_points(group="jax_plugins"))
