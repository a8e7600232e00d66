"""The one decoder of all families: declares its parameters, embeds, runs the layers, applies the last norm.

A linen module without collections or state: `model.apply({"params": params}, sequences, cache=...,
prefix=...)`. The maths is in `ops.py`; here it is only wired up, as a scan over stacked layers or as a loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.config import ArchitectureConfig
from grpo_jax.models import attention, ops
from grpo_jax.models.cache import Cache, advance, of_rows, stack, unstack, write_slots
from grpo_jax.models.decoding import DECODE, LAYOUTS
from grpo_jax.models.experts import KERNELS
from grpo_jax.models.lora import Lora
from grpo_jax.models.ops import KeyValues
from grpo_jax.models.parameters import Parameter, parameter_table
from grpo_jax.models.quantize import SCALES
from grpo_jax.models.rope import Rope, rotation
from grpo_jax.sharding import constrain
from grpo_jax.types import Sequences

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
PLAIN = Rope()
NO_WINDOW = 2**30  # more positions than there are


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder and how it is computed; hashable, closed over by compiled functions.

    The defaults are Llama's; what a family does otherwise is a field.
    """

    family: str = "llama"  # the file of `families` that reads and writes this shape
    vocab_size: int  # V
    hidden_size: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    mlp_size: int  # F, of one expert where there are experts
    rope: Rope = PLAIN
    local_rope: Rope | None = None  # of the layers with a window; None: `rope`
    windows: tuple[int, ...] = ()  # for each layer: keys a query sees, itself included, 0: all; (): all in all layers
    norms: Literal["pre", "post", "both"] = "pre"  # before attention and mlp, after them, or both
    norm_offset: float = 0.0  # added to the parameter of every norm
    rms_norm_eps: float = 1e-6
    qk_norm: Literal["none", "head", "width"] = "none"  # of queries and keys: by head, or over all heads
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"
    attention_scale: float | None = None  # None: 1 / sqrt(H)
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embed_scale: bool = False  # embeddings are multiplied by sqrt(D)
    num_experts: int = 0  # E; 0: one mlp
    experts_per_token: int = 0
    normalize_experts: bool = False  # the weights of a token's experts sum to 1
    tie_word_embeddings: bool = False
    max_positions: int = 4096  # what the model was made for; rotary positions themselves have no end
    head: Literal["lm", "scalar"] = "lm"
    lora: Lora | None = None  # which projections have adapters, where there are any
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    scan_layers: bool = True
    decode_layers: Literal["auto", "scan", "unroll"] = "auto"  # in the decode loop
    decode_weights: Literal["auto", "stored", "joined", "gathered"] = "auto"  # as the decode loop holds them
    experts_kernel: Literal["auto", "dense", "ragged", "blocks"] = "auto"  # auto: by the platform of the mesh
    attention_kernel: Literal["auto", "xla", "blocks", "splash"] = "auto"  # auto: by platform, windows and length

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads are not a multiple of {self.num_kv_heads} kv heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(f"{len(self.windows)} windows for {self.num_layers} layers; give one a layer, or none")
        if self.local_rope and not any(self.windows):
            raise ValueError("local_rope is the rotary embedding of layers with a window, and there are none")
        if bool(self.num_experts) != (0 < self.experts_per_token <= self.num_experts):
            raise ValueError(f"{self.experts_per_token} experts a token of {self.num_experts}")
        if self.attention_kernel == "splash" and any(self.windows):
            raise ValueError("attention_kernel is splash, which knows no window, and there are windows; choose blocks")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The type of activations, caches and matrix products."""
        return jnp.dtype(DTYPES[self.dtype])

    @property
    def longest(self) -> int:
        """Positions that mean something to the model: what it was made for, or what its scaling stretches that to."""
        if self.rope.rope_type not in ("llama3", "yarn"):
            return self.max_positions
        return max(self.max_positions, int(self.rope.factor * self.rope.original_max_position_embeddings))


CHOICES = {
    "norms": ("pre", "post", "both"),
    "qk_norm": ("none", "head", "width"),
    "activation": ops.ACTIVATIONS,
    "head": ("lm", "scalar"),
    "dtype": DTYPES,
    "remat": REMAT,
    "experts_kernel": ("auto", *KERNELS),
    "decode_layers": ("auto", "scan", "unroll"),
    "decode_weights": ("auto", *LAYOUTS),
    "attention_kernel": ("auto", *attention.KERNELS),
}


def from_architecture(architecture: ArchitectureConfig, *, vocab_size: int, **options: Any) -> DecoderConfig:
    """The decoder of a config's `architecture`; `options` are the other fields of `DecoderConfig`."""
    a = architecture
    return DecoderConfig(
        family="qwen2" if a.qkv_bias else "llama",
        vocab_size=vocab_size,
        hidden_size=a.hidden_size,
        num_layers=a.num_hidden_layers,
        num_heads=a.num_attention_heads,
        num_kv_heads=a.num_key_value_heads,
        head_dim=a.head_dim,
        mlp_size=a.intermediate_size,
        rope=Rope(rope_theta=a.rope_theta),
        rms_norm_eps=a.rms_norm_eps,
        tie_word_embeddings=a.tie_word_embeddings,
        qkv_bias=a.qkv_bias,
        **options,
    )


def _declare(module: nn.Module, table: dict[str, Any]) -> dict[str, Any]:
    """Declare the parameters of a table, nested tables as submodules of the same name."""
    return {
        name: module.param(name, entry.initializer, entry.shape, jnp.float32)
        if isinstance(entry, Parameter)
        else _Group(entry, name=name)()
        for name, entry in table.items()
    }


class _Group(nn.Module):
    """A nested part of the parameter table; it exists only to give the tree its nesting."""

    table: dict[str, Any]

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        return _declare(self, self.table)


class Decoder(nn.Module):
    """A decoder of any of the families; what differs between them is in its config."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, sequences: Sequences, *, cache: Cache | None = None, prefix: Cache | Sequence[Cache] | None = None
    ) -> tuple[Array, Cache | None]:
        """Final-normed hidden states [B, T, D], or scores [B, T] f32 of the scalar head, and the new cache.

        With `cache` the new tokens are written at `cache.length`, which may be a slot for each row, and queries look
        at the whole cache. A cache with exactly T slots is taken to be empty: it is filled without a copy, and
        gradients flow through the result. `prefix` is a cache of P rows that is only read: row p is the shared context
        of rows p*G .. p*G + G-1, unless it says which row each query row continues; of several, each has its own number
        of rows. Parameters with the key `lora` are a base with adapters (`lora.py`), those with `decode` are laid out
        for a decode loop (`decoding.py`), those with `scales` are integers (`quantize.py`).
        """
        config = self.config
        given = self.variables.get("params", {})
        table = parameter_table(config)
        params = _declare(self, {name: table[name] for name in table if name != "layers" or DECODE not in given})
        layers = given[DECODE] if DECODE in given else params["layers"]
        if SCALES in given.get("layers", {}):
            layers = {**layers, SCALES: given["layers"][SCALES]}
        if "lora" in given:
            layers = {**layers, "lora": given["lora"]}
        prefixes = () if prefix is None else (prefix,) if isinstance(prefix, Cache) else tuple(prefix)
        x = jnp.take(params["embed"], sequences.tokens, axis=0).astype(config.compute_dtype)  # [B, T, D]
        if "embed" in given.get(SCALES, {}):
            x = (x * jnp.take(given[SCALES]["embed"], sequences.tokens)[..., None]).astype(x.dtype)
        if config.embed_scale:
            x = x * jnp.asarray(config.hidden_size**0.5, x.dtype)
        # A device looks up its slice of the width for the rows of its whole replica, then slices change places with
        # rows: neither the table nor its gradient is ever gathered.
        if DECODE not in given or config.decode_weights != "gathered":
            x = constrain(x, "replica", None, "embed")
        x = constrain(x, "batch", None, None)
        if cache is not None:
            cache = advance(cache, sequences)
        run = _scan_layers if config.scan_layers else _loop_layers
        x, cache = run(config, layers, x, sequences, cache, prefixes)
        x = ops.rms_norm(x, params["final_norm"], config.rms_norm_eps, offset=config.norm_offset)
        if config.head == "scalar":
            scores = jnp.einsum("btd,do->bto", x, params["score"].astype(x.dtype), preferred_element_type=jnp.float32)
            return scores[..., 0], cache
        return x, cache


def _layer(config: DecoderConfig, sequences: Sequences, cache: Cache | None, prefixes: tuple[Cache, ...]):
    """One layer as a function of (x, weights, own cached (k, v), each prefix's (k, v), window, layer index).

    What does not apply is None. With an index, cached keys and values are those of all layers, stacked, and
    are returned so.
    """
    angles = rotation(sequences.positions, config.rope, config.head_dim)
    local = rotation(sequences.positions, config.local_rope, config.head_dim) if config.local_rope else None
    time = sequences.tokens.shape[1]
    attend = attention.choose(config, time, own=cache is None or cache.size == time)

    def choose(first: Array, one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.tree.map(partial(jnp.where, first), one, other)

    def write(old: Array, new: Array, index: Array | None) -> tuple[Array, Array]:
        """(keys or values that this layer sees, what to keep), the new ones at their slots."""
        slot = cache.length - time
        if index is None:
            old = write_slots(old, new, slot, rows=0, slots=2)
            return old, old
        old = write_slots(old, new[None], slot, rows=1, slots=3, first=index)
        return jax.lax.dynamic_index_in_dim(old, index, keepdims=False), old

    def apply(x, weights, cached, shared=(), window=None, index=None):
        def store(k, v):
            kept = (k, v)
            if cached is not None:
                (k, kept_k), (v, kept_v) = (write(old, new, index) for old, new in zip(cached, (k, v), strict=True))
                kept = (kept_k, kept_v)
            about = sequences if cache is None else cache
            before = [_shared(p, kv) for kv, p in zip(shared, prefixes, strict=True)]
            return [*before, KeyValues(k, v, about.positions, about.segments)], kept

        x, kept = ops.decoder_layer(
            x,
            weights,
            angles if local is None else choose(window < NO_WINDOW, local, angles),
            sequences.positions,
            sequences.segments,
            store,
            config=config,
            window=window,
            attention=attend,
        )
        return constrain(x, "batch", None, None), kept

    if config.remat == "none":
        return apply
    return jax.checkpoint(apply, policy=REMAT[config.remat], prevent_cse=not config.scan_layers)


def _shared(prefix: Cache, layer: tuple[Array, Array]) -> KeyValues:
    """A layer of the prefix as a block of keys, a row for each group, or the rows that the prefix names.

    Rows are taken layer by layer, so that the copies of one layer exist at once.
    """
    block = KeyValues(*layer, prefix.positions, prefix.segments)
    return block if prefix.rows is None else jax.tree.map(lambda x: of_rows(x, prefix.rows), block)


def _windows(config: DecoderConfig) -> Array | None:
    """The window of each layer, as an array that runs along with the layers: [L] i32; None where there is none."""
    if not any(config.windows):
        return None
    return jnp.array([window or NO_WINDOW for window in config.windows], jnp.int32)


def _scan_layers(config, layers, x, sequences, cache, prefixes) -> tuple[Array, Cache | None]:
    """Run the layers as one scan: compiled once, whatever their number."""
    apply = _layer(config, sequences, cache, prefixes)
    shared = tuple((p.k, p.v) for p in map(stack, prefixes))
    if cache is None or cache.size == sequences.tokens.shape[1]:  # keys and values are results, nothing is copied

        def step(x, inputs):
            weights, block, window = inputs
            x, kept = apply(x, weights, None, block, window)
            return x, None if cache is None else kept

        x, kept = jax.lax.scan(step, x, (layers, shared, _windows(config)))
        return x, None if cache is None else cache.replace(k=kept[0], v=kept[1])

    def step(carry, inputs):  # the whole cache is carried, so that only the new slots are written
        weights, block, window, index = inputs
        return apply(carry[0], weights, carry[1], block, window, index), None

    carry = (x, (stack(cache).k, stack(cache).v))
    (x, (k, v)), _ = jax.lax.scan(step, carry, (layers, shared, _windows(config), jnp.arange(config.num_layers)))
    return x, cache.replace(k=k, v=v)


def _loop_layers(config, layers, x, sequences, cache, prefixes) -> tuple[Array, Cache | None]:
    """Run the layers one by one: longer to compile, but every layer's cache is an array of its own."""
    apply = _layer(config, sequences, cache, prefixes)
    filled = cache is not None and cache.size > sequences.tokens.shape[1]
    past = unstack(cache) if filled else None
    shared = [unstack(p) for p in prefixes]
    windows = _windows(config)
    kept = []
    for l in range(config.num_layers):
        x, pair = apply(
            x,
            layers[l] if isinstance(layers, tuple) else jax.tree.map(lambda leaf, l=l: leaf[l], layers),
            None if past is None else (past.k[l], past.v[l]),
            tuple((p.k[l], p.v[l]) for p in shared),
            None if windows is None else windows[l],
        )
        kept.append(pair)
    if cache is None:
        return x, None
    return x, cache.replace(k=tuple(k for k, _ in kept), v=tuple(v for _, v in kept))
