"""Every parameter of the decoder in one table, and the trees that follow from it.

Letters: `V` vocabulary, `D` width, `L` layers, `N` query heads, `K` key-value heads, `H` head width, `F` mlp
width. Layers are stacked on axis 0. All parameters are float32: the decoder casts to its computing type
where it uses them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.sharding import check_divisible, named

if TYPE_CHECKING:
    from grpo_jax.models.decoder import DecoderConfig

ones = jax.nn.initializers.ones
zeros = jax.nn.initializers.zeros


def matrix(fan_in: int) -> Callable[..., jax.Array]:
    """Normal with deviation `1 / sqrt(fan_in)`: outputs as large as inputs at any width (at 4096 it is 0.016)."""
    return jax.nn.initializers.normal(fan_in**-0.5)


class Parameter(NamedTuple):
    """A parameter's declaration: its shape, the logical axis of each dimension, and how it starts."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    initializer: Callable[..., jax.Array]


def parameter_table(config: DecoderConfig) -> dict[str, Any]:
    """The nested dict of `Parameter`s of a decoder; the tree of its parameters has exactly this structure."""
    c = config
    V, D, L, F = c.vocab_size, c.hidden_size, c.num_layers, c.mlp_size
    N, K, H = c.num_heads, c.num_kv_heads, c.head_dim
    heads, kv = ("heads", "head_dim"), ("kv_heads", "head_dim")
    layers = {
        "attention_norm": Parameter((L, D), ("layers", "embed"), ones),
        "q": Parameter((L, D, N, H), ("layers", "embed", *heads), matrix(D)),
        "k": Parameter((L, D, K, H), ("layers", "embed", *kv), matrix(D)),
        "v": Parameter((L, D, K, H), ("layers", "embed", *kv), matrix(D)),
        "o": Parameter((L, N, H, D), ("layers", *heads, "embed"), matrix(N * H)),
        "mlp_norm": Parameter((L, D), ("layers", "embed"), ones),
        "gate": Parameter((L, D, F), ("layers", "embed", "mlp"), matrix(D)),
        "up": Parameter((L, D, F), ("layers", "embed", "mlp"), matrix(D)),
        "down": Parameter((L, F, D), ("layers", "mlp", "embed"), matrix(F)),
    }
    if c.qkv_bias:
        layers["q_bias"] = Parameter((L, N, H), ("layers", *heads), zeros)
        layers["k_bias"] = Parameter((L, K, H), ("layers", *kv), zeros)
        layers["v_bias"] = Parameter((L, K, H), ("layers", *kv), zeros)
    table = {
        "embed": Parameter((V, D), ("vocab", "embed"), matrix(D)),
        "layers": layers,
        "final_norm": Parameter((D,), ("embed",), ones),
    }
    if c.head == "scalar":
        table["score"] = Parameter((D, 1), ("embed", None), matrix(D))
    elif not c.tie_word_embeddings:
        table["head"] = Parameter((D, V), ("embed", "vocab"), matrix(D))
    return table


def _map(function: Callable[[str, Parameter], Any], table: dict[str, Any]) -> dict[str, Any]:
    """Replace every parameter of a table by `function(dotted name, parameter)`."""

    def visit(path, parameter):
        return function(".".join(entry.key for entry in path), parameter)

    return jax.tree_util.tree_map_with_path(visit, table, is_leaf=lambda x: isinstance(x, Parameter))


def count(config: DecoderConfig) -> int:
    """The number of trainable numbers."""
    table = parameter_table(config)
    shapes = jax.tree.leaves(_map(lambda _, p: math.prod(p.shape), table))
    return sum(shapes)


def abstract_params(config: DecoderConfig, mesh: Mesh) -> dict[str, Any]:
    """The parameters as float32 `ShapeDtypeStruct`s that carry their shardings.

    Raises `ShardingError` for the first parameter that the mesh does not divide.
    """

    def abstract(name, parameter):
        sharding = named(mesh, *parameter.axes)
        check_divisible(name, parameter.shape, sharding)
        return jax.ShapeDtypeStruct(parameter.shape, jnp.float32, sharding=sharding)

    return _map(abstract, parameter_table(config))


def init_params(config: DecoderConfig, key: jax.Array, mesh: Mesh) -> dict[str, Any]:
    """Random float32 parameters, each created on its own shards by one compiled program.

    A parameter's key is folded from its name: the numbers depend neither on the mesh nor on the other
    parameters.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(config, mesh))

    def create(key):
        def draw(name, parameter):
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return parameter.initializer(own, parameter.shape, jnp.float32)

        return _map(draw, parameter_table(config))

    return jax.jit(create, out_shardings=shardings)(key)
