"""Every parameter of the decoder in one table, and the trees that follow from it.

Letters: `V` vocabulary, `D` width, `L` layers, `N` query heads, `K` key-value heads, `H` head width, `F` mlp
width, `E` experts. Layers are stacked on axis 0. All parameters are float32: the decoder casts to its computing type
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

zeros = jax.nn.initializers.zeros


def matrix(fan_in: int) -> Callable[..., jax.Array]:
    """Normal with deviation `1 / sqrt(fan_in)`: outputs as large as inputs at any width (at 4096 it is 0.016)."""
    return jax.nn.initializers.normal(fan_in**-0.5)


class Parameter(NamedTuple):
    """A parameter's declaration: its shape, the logical axis of each dimension, and how it starts."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    initializer: Callable[..., jax.Array]


def is_matrix(name: str, dimensions: int) -> bool:
    """Whether a parameter is used in the computing type and decays, and is no norm, bias or other vector.

    Its own name decides: layers are stacked, a norm is [L, D] and a bias [L, N, H], and dimensions alone do not tell.
    """
    return dimensions > 1 and name.rpartition("_")[2] not in ("norm", "bias")


def parameter_table(config: DecoderConfig) -> dict[str, Any]:
    """The nested dict of `Parameter`s of a decoder; the tree of its parameters has exactly this structure."""
    c = config
    V, D = c.vocab_size, c.hidden_size
    table = {
        "embed": Parameter((V, D), ("vocab", "embed"), matrix(D)),
        "layers": _attention(c) | (_experts(c) if c.num_experts else _mlp(c)) | _norms(c),
        "final_norm": Parameter((D,), ("embed",), _norm_start(c)),
    }
    if c.head == "scalar":
        table["score"] = Parameter((D, 1), ("embed", None), matrix(D))
    elif not c.tie_word_embeddings:
        table["head"] = Parameter((D, V), ("embed", "vocab"), matrix(D))
    return table


def _attention(c: DecoderConfig) -> dict[str, Parameter]:
    L, D, N, K, H = c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim
    heads, kv = ("heads", "head_dim"), ("kv_heads", "head_dim")
    table = {
        "q": Parameter((L, D, N, H), ("layers", "embed", *heads), matrix(D)),
        "k": Parameter((L, D, K, H), ("layers", "embed", *kv), matrix(D)),
        "v": Parameter((L, D, K, H), ("layers", "embed", *kv), matrix(D)),
        "o": Parameter((L, N, H, D), ("layers", *heads, "embed"), matrix(N * H)),
    }
    if c.qkv_bias:
        table["q_bias"] = Parameter((L, N, H), ("layers", *heads), zeros)
        table["k_bias"] = Parameter((L, K, H), ("layers", *kv), zeros)
        table["v_bias"] = Parameter((L, K, H), ("layers", *kv), zeros)
    if c.o_bias:
        table["o_bias"] = Parameter((L, D), ("layers", "embed"), zeros)
    if c.qk_norm == "head":
        table["q_norm"] = Parameter((L, H), ("layers", "head_dim"), _norm_start(c))
        table["k_norm"] = Parameter((L, H), ("layers", "head_dim"), _norm_start(c))
    if c.qk_norm == "width":
        table["q_norm"] = Parameter((L, N, H), ("layers", *heads), _norm_start(c))
        table["k_norm"] = Parameter((L, K, H), ("layers", *kv), _norm_start(c))
    return table


def _mlp(c: DecoderConfig) -> dict[str, Parameter]:
    L, D, F = c.num_layers, c.hidden_size, c.mlp_size
    table = {
        "gate": Parameter((L, D, F), ("layers", "embed", "mlp"), matrix(D)),
        "up": Parameter((L, D, F), ("layers", "embed", "mlp"), matrix(D)),
        "down": Parameter((L, F, D), ("layers", "mlp", "embed"), matrix(F)),
    }
    if c.mlp_bias:
        table["gate_bias"] = Parameter((L, F), ("layers", "mlp"), zeros)
        table["up_bias"] = Parameter((L, F), ("layers", "mlp"), zeros)
        table["down_bias"] = Parameter((L, D), ("layers", "embed"), zeros)
    return table


def _experts(c: DecoderConfig) -> dict[str, Parameter]:
    """Stored over fsdp by expert, not by width: both cannot lie on one mesh axis."""
    L, D, F, E = c.num_layers, c.hidden_size, c.mlp_size, c.num_experts
    return {
        "router": Parameter((L, D, E), ("layers", "embed", None), matrix(D)),
        "gate": Parameter((L, E, D, F), ("layers", "experts", None, "mlp"), matrix(D)),
        "up": Parameter((L, E, D, F), ("layers", "experts", None, "mlp"), matrix(D)),
        "down": Parameter((L, E, F, D), ("layers", "experts", "mlp", None), matrix(F)),
    }


def _norms(c: DecoderConfig) -> dict[str, Parameter]:
    before, after = ("attention_norm", "mlp_norm"), ("attention_post_norm", "mlp_post_norm")
    names = {"pre": before, "post": after, "both": before + after}[c.norms]
    return {name: Parameter((c.num_layers, c.hidden_size), ("layers", "embed"), _norm_start(c)) for name in names}


def _norm_start(c: DecoderConfig) -> Callable[..., jax.Array]:
    """A norm starts at a scale of 1, whatever is added to its parameter."""
    return jax.nn.initializers.constant(1.0 - c.norm_offset)


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
    return abstract_table(parameter_table(config), mesh)


def init_params(config: DecoderConfig, key: jax.Array, mesh: Mesh) -> dict[str, Any]:
    """Random float32 parameters, each created on its own shards by one compiled program.

    A parameter's key is folded from its name: the numbers depend neither on the mesh nor on the other
    parameters.
    """
    return init_table(parameter_table(config), key, mesh)


def abstract_table(table: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The parameters of any table in abstract form; raises `ShardingError` if the mesh does not divide one."""

    def abstract(name, parameter):
        sharding = named(mesh, *parameter.axes)
        check_divisible(name, parameter.shape, sharding)
        return jax.ShapeDtypeStruct(parameter.shape, jnp.float32, sharding=sharding)

    return _map(abstract, table)


def init_table(table: dict[str, Any], key: jax.Array, mesh: Mesh) -> dict[str, Any]:
    """The parameters of any table, drawn by their initializers on the shards where they live."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_table(table, mesh))

    def create(key):
        def draw(name, parameter):
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            return parameter.initializer(own, parameter.shape, jnp.float32)

        return _map(draw, table)

    return jax.jit(create, out_shardings=shardings)(key)
