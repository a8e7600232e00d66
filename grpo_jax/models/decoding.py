"""The weights as a decode loop uses them, made once before it: cast, joined, one dict a layer, gathered over fsdp.

A loop that takes the weights as they are stored does all of this again at every token. What is computed with them is
the same, and what may be laid out before the loop is a question of memory: see `decode_bytes`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.lora import adapter_table
from grpo_jax.models.parameters import Parameter, is_matrix, parameter_table
from grpo_jax.models.quantize import SCALES
from grpo_jax.sharding import constrain, platform_in_context

if TYPE_CHECKING:
    from grpo_jax.models.decoder import DecoderConfig

DECODE = "decode"  # the key of the prepared layers in a tree of parameters
LAYOUTS = ("stored", "joined", "gathered")  # of weights
# Unrolled over scanned, seconds of a rollout of 64 rows (width 256, float32) on two CPU cores, as one or two devices:
#     layers, tokens        4, 64       12, 64      24, 64     4, 128      4, 1024 (32 rows)
#     one device            0.33/0.28   0.94/0.77   1.8/1.5    0.70/0.59   7.9/10.5
#     two devices                       0.83/1.5    1.6/2.5    0.65/0.99
#     to compile            1.8/1.5     2.7/1.6     4.1/1.5    3.3/2.5     3.5/3.0
# A scan copies each layer's part of the cache at every token, which only little caches on a whole machine forgive.
SCANNED_CACHE = 8 * 2**20  # bytes of a layer's keys and values up to which one CPU device scans
UNROLLED_ON_CPU, UNROLLED = 24, 8  # layers that are unrolled at most; the second is a guess, no accelerator was at hand
# Bytes a device that `auto` takes for the copy: a quarter of the smallest accelerators' memory, a twentieth of large
# ones'. More, as for 7B whole on each of 8 GPUs, is asked for by name; `launch/plan.py` says whether it fits.
ROOM = 4 * 2**30


def decode_config(
    config: DecoderConfig, mesh: dict[str, int], *, slots: int = 0, weights: Literal["same", "int8"] = "same"
) -> DecoderConfig:
    """The decoder of the decode loop: `decode_layers` and `decode_weights` decided, on a mesh of these sizes.

    `slots` are those of the whole cache, all rows together; `weights` as they are or in eight bits. They are left as
    they are stored where there is nothing to cast, to gather or to take from the stack, else laid out as far as `ROOM`
    allows.
    """
    unrolled = config.decode_layers == "unroll" or (config.decode_layers == "auto" and _unrolled(config, mesh, slots))
    layout = config.decode_weights
    if layout == "auto" and not unrolled and config.compute_dtype == jnp.float32 and mesh.get("fsdp", 1) == 1:
        layout = "stored"
    if layout == "auto":
        layout = next(l for l in reversed(LAYOUTS) if decode_bytes(config, l, mesh, weights=weights) <= ROOM)
    return dataclasses.replace(config, scan_layers=not unrolled, decode_weights=layout, remat="none")


def _unrolled(config: DecoderConfig, mesh: dict[str, int], slots: int) -> bool:
    """Whether `auto` unrolls the layers: the rule of the table above `SCANNED_CACHE`."""
    on_cpu = platform_in_context() == "cpu"
    layer_cache = 2 * slots * config.num_kv_heads * config.head_dim * config.compute_dtype.itemsize
    if on_cpu and math.prod(mesh.values()) == 1 and layer_cache <= SCANNED_CACHE:
        return False
    return config.num_layers <= (UNROLLED_ON_CPU if on_cpu else UNROLLED)


def decode_bytes(
    config: DecoderConfig, layout: str, mesh: dict[str, int], *, weights: Literal["same", "int8"] = "same"
) -> int:
    """Bytes on each device of a decode loop's own copy of the weights; adapters, norms and biases not counted."""
    if layout == "stored":
        return 0
    split = 1 if layout == "gathered" else mesh.get("fsdp", 1)
    entries = jax.tree_util.tree_leaves_with_path(parameter_table(config), is_leaf=lambda x: isinstance(x, Parameter))
    matrices = {path[-1].key: p for path, p in entries if is_matrix(path[-1].key, len(p.shape))}
    of_experts = [n for n, p in matrices.items() if "experts" in p.axes]
    total = sum(math.prod(p.shape) // (mesh.get("fsdp", 1) if n in of_experts else split) for n, p in matrices.items())
    return total * (1 if weights == "int8" else config.compute_dtype.itemsize) // mesh.get("tensor", 1)


def decode_params(params: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """The parameters for a decoder of `decode_config`: the same numbers, laid out for few tokens at a time.

    `joined`: matrices in the computing type; q, k and v of a layer as one matrix `qkv` [D, K, N/K + 2, H], gate and
    up as `gate_up` [D, 2, F]; for a loop over layers, one dict each. `gathered`: besides, whole on every fsdp shard
    (experts stay where they are). `stored`: nothing is done.
    """
    if config.decode_weights == "stored":
        return params
    table = parameter_table(config)
    layers = {name: _laid_out(params["layers"][name], p, name, config) for name, p in table["layers"].items()}
    layers = _joined(layers, config)
    if SCALES in params["layers"]:
        layers[SCALES] = _joined(params["layers"][SCALES], config)
    if "lora" in params:
        layers["lora"] = _adapters(params["lora"], config)
    if not config.scan_layers:
        layers = tuple(jax.tree.map(lambda x, l=l: x[l], layers) for l in range(config.num_layers))
    top = {name: _laid_out(params[name], p, name, config) for name, p in table.items() if name != "layers"}
    scales = {SCALES: params[SCALES]} if SCALES in params else {}
    return top | scales | {DECODE: layers}


def _laid_out(x: Array, parameter: Parameter, name: str, config: DecoderConfig) -> Array:
    """A matrix in the computing type, whole over fsdp if all are; what is no matrix stays in its type."""
    if is_matrix(name, len(parameter.shape)) and x.dtype != jnp.int8:
        x = x.astype(config.compute_dtype)
    if config.decode_weights != "gathered":
        return x
    return constrain(x, *(None if axis == "embed" else axis for axis in parameter.axes))


def _adapters(adapters: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    table = adapter_table(config)
    return {
        target: {half: _laid_out(x, table[target][half], target, config) for half, x in pair.items()}
        for target, pair in adapters.items()
    }


def _joined(layers: dict[str, Array], config: DecoderConfig) -> dict[str, Array]:
    """What is multiplied with the same activations as one matrix, split over heads and mlp as its parts are.

    Scales, which have no dimension of inputs, are joined alike.
    """
    K, H, into = config.num_kv_heads, config.head_dim, layers["k"].shape[:-2]  # [L, D], of scales [L]
    q = layers["q"].reshape(*into, K, -1, H)  # [L, D, K, N/K, H]
    joined = {"qkv": jnp.concatenate([q, layers["k"][..., None, :], layers["v"][..., None, :]], axis=-2)}
    parts = ["q", "k", "v"]
    if not config.num_experts:
        joined["gate_up"] = jnp.stack([layers["gate"], layers["up"]], axis=-2)  # [L, D, 2, F]
        parts += ["gate", "up"]
    return {name: x for name, x in layers.items() if name not in parts} | joined
