"""Low-rank adapters (arXiv:2106.09685): which projections have them, their parameters, and merging them.

A policy with adapters is the tree of the base with one key more, `{**base, "lora": adapters}`; the decoder adds
`scale (x a^T) b` beside each adapted projection. Without the key the same decoder computes the base. So sampler,
trainer and evaluation take either, and a frozen base is shared by policy and reference.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.models.parameters import Parameter, abstract_table, init_table, parameter_table, zeros
from grpo_jax.sharding import constrain

if TYPE_CHECKING:
    from grpo_jax.models.decoder import DecoderConfig

INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}  # dimensions of a weight that are summed over
OF_EXPERTS = ("gate", "up", "down")  # in a mixture these are not one matrix a layer
SUFFIX = "_proj"  # of their names in Hugging Face models


class LoraError(ValueError):
    """Adapters that a model cannot have; the message names the projections and the remedy."""

    exit_code = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapters of a decoder: the same rank and scale for every target; static."""

    rank: int
    alpha: float
    rslora: bool = False
    targets: tuple[str, ...]  # of INPUTS, in its order

    @property
    def scale(self) -> float:
        """`alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA (arXiv:2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def choose_targets(patterns: Sequence[str], *, experts: bool) -> tuple[str, ...]:
    """The projections whose Hugging Face names (`q_proj`, ...) match any of the patterns, in the order of a layer.

    Raises `LoraError` for a pattern without a match, and for the projections of experts.
    """
    names = [target + SUFFIX for target in INPUTS]
    for pattern in patterns or ("",):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise LoraError(f"{pattern!r} matches no projection; there are {', '.join(names)}")
    found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    of_experts = [target + SUFFIX for target in OF_EXPERTS if experts]
    if routed := [name for name in found if name in of_experts]:
        raise LoraError(
            f"{', '.join(patterns)} matches {', '.join(routed)}, which every expert of this model has one of and "
            f"which have no adapters; there are {', '.join(name for name in names if name not in of_experts)}: set "
            "model.lora.targets to '[qkvo]_proj'"
        )
    return tuple(name.removesuffix(SUFFIX) for name in found)


def adapter_table(config: DecoderConfig) -> dict[str, Any]:
    """`{target: {"a": [L, r, in...], "b": [L, r, out...]}}` as `Parameter`s; sharded as the weight they adapt."""
    lora, layers = config.lora, parameter_table(config)["layers"]
    return {target: _pair(layers[target], INPUTS[target], lora.rank) for target in lora.targets}


def _pair(weight: Parameter, inputs: int, rank: int) -> dict[str, Parameter]:
    """`a` starts as PEFT starts it, uniform within `1 / sqrt(fan in)`; `b` is zero: at first the adapter is nothing."""
    shape, axes = weight.shape, weight.axes
    into, out = slice(1, 1 + inputs), slice(1 + inputs, None)
    bound = math.prod(shape[into]) ** -0.5

    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {
        "a": Parameter((shape[0], rank, *shape[into]), ("layers", "rank", *axes[into]), uniform),
        "b": Parameter((shape[0], rank, *shape[out]), ("layers", "rank", *axes[out]), zeros),
    }


def abstract_adapters(config: DecoderConfig, mesh: Mesh) -> dict[str, Any]:
    """The adapters as float32 `ShapeDtypeStruct`s that carry their shardings; raises `ShardingError`."""
    return abstract_table(adapter_table(config), mesh)


def init_adapters(config: DecoderConfig, key: jax.Array, mesh: Mesh) -> dict[str, Any]:
    """New float32 adapters, created on their shards; a policy with them is the base until they are trained."""
    return init_table(adapter_table(config), key, mesh)


def count_adapters(config: DecoderConfig) -> int:
    """The number of trainable numbers of the adapters."""
    return sum(math.prod(p.shape) for pair in adapter_table(config).values() for p in pair.values())


def attach(frozen: dict[str, Any] | None, trainable: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a policy: adapters on their frozen base, or all that is trained; nothing is copied."""
    return trainable if frozen is None else {**frozen, "lora": trainable}


def gathered(adapter: dict[str, jax.Array], target: str, config: DecoderConfig) -> tuple[jax.Array, jax.Array]:
    """The two halves of a layer's adapter as they are used: whole over fsdp, split over tensor as the weight is.

    Left to itself XLA shards the sum over the width, whose shards then change places at every use.
    a [r, in...], b [r, out...].
    """
    pair = adapter_table(config)[target]
    a, b = (
        constrain(adapter[half], *(None if axis == "embed" else axis for axis in pair[half].axes[1:])) for half in "ab"
    )
    return a, b


def merge(base: dict[str, Any], adapters: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """The base with `scale a^T b` added to each adapted weight, in float32: what a program without adapters loads.

    The other leaves are those of `base`, not copied.
    """

    def merged(name: str, weight: jax.Array) -> jax.Array:
        if name not in adapters:
            return weight
        letters = "abcd"[: weight.ndim - 1]
        into, out = letters[: INPUTS[name]], letters[INPUTS[name] :]
        a, b = adapters[name]["a"], adapters[name]["b"]
        product = jnp.einsum(f"lr{into},lr{out}->l{into}{out}", a, b, precision="highest")
        return weight.astype(jnp.float32) + config.lora.scale * product

    return {**base, "layers": {name: merged(name, weight) for name, weight in base["layers"].items()}}
