"""Mixture of experts: a token is sent to a few of many gated MLPs and their outputs are added by weight.

Letters as in `ops.py`; `E` experts, `k` experts a token, `n` tokens of a device, `s = n k` slots: a token stands in one
for each of its experts. Three computations of one formula. `dense` runs every expert on every token and is the
reference. The others sort the slots by expert and multiply each by its own expert only: `ragged` by
`jax.lax.ragged_dot`, which TPUs have as an instruction; `blocks` by plain batched products, for GPUs, where XLA expands
`ragged_dot` to arrays of `s E` rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.sharding import MESH_AXES, RULES, platform_in_context, spec
from grpo_jax.types import pytree

Activation = Callable[[Array], Array]


def route(x: Array, router: Array, *, experts_per_token: int, normalize: bool) -> tuple[Array, Array]:
    """The experts of each token and their weights: [B, T, k] f32 and [B, T, k] i32.

    `softmax(x router)` over all experts, its `k` largest, divided by their sum if `normalize`; in float32, as a
    token whose two next experts change places is another function. x [B, T, D], router [D, E].
    """
    logits = jnp.einsum("btd,de->bte", x, router, preferred_element_type=jnp.float32)
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), experts_per_token)
    return weights / weights.sum(-1, keepdims=True) if normalize else weights, experts


def dense(x: Array, layer: dict[str, Array], weights: Array, experts: Array, activation: Activation) -> Array:
    """`sum_e weight_e (act(x gate_e) * (x up_e)) down_e` with every expert on every token: [B, T, D].

    One expert after the other, computed again in the backward pass, so that the activations of one are held at a time.
    layer: gate, up [E, D, F], down [E, F, D]; weights, experts [B, T, k].
    """

    @jax.checkpoint
    def add(total, one):
        number, gate, up, down = one
        share = jnp.sum(jnp.where(experts == number, weights, 0.0), axis=-1, keepdims=True)  # [B, T, 1] f32
        hidden = activation(jnp.einsum("btd,df->btf", x, gate)) * jnp.einsum("btd,df->btf", x, up)
        return total + share * jnp.einsum("btf,fd->btd", hidden, down, preferred_element_type=jnp.float32), None

    numbers = jnp.arange(layer["gate"].shape[0])
    stacked = (numbers, layer["gate"], layer["up"], layer["down"])
    return jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), stacked)[0].astype(x.dtype)


def ragged(x: Array, layer: dict[str, Array], weights: Array, experts: Array, activation: Activation) -> Array:
    """The same as `dense`, each token multiplied by its own `k` experts only, by `jax.lax.ragged_dot`."""
    return _sorted(_by_ragged_dot, x, layer, weights, experts, activation)


def blocks(x: Array, layer: dict[str, Array], weights: Array, experts: Array, activation: Activation) -> Array:
    """The same as `dense`, each token multiplied by its own `k` experts only, by batched products of equal blocks.

    The slots of an expert are cut into blocks of `s / E` rows, the last one filled up with zeros: at most `2 E` blocks
    however unevenly tokens are sent, so at most twice the products that are needed, and no token is ever dropped.
    """
    return _sorted(_by_blocks, x, layer, weights, experts, activation)


@pytree
class Groups:
    """How slots, sorted by expert, are parted among experts, and how they lie in blocks of one expert each."""

    sizes: Array  # [E] i32, slots of each expert
    place: Array  # [s] i32, the row of each sorted slot among the rows of all blocks
    owner: Array  # [b] i32, the expert of each block; blocks that are not needed hold no slot


def _sorted(product: Callable[[Array, Array, Groups], Array], x, layer, weights, experts, activation) -> Array:
    """The mixture by a `product` of sorted slots with the matrices of their experts: [B, T, D].

    On a mesh a device sorts the tokens of its own batch shard. The experts, stored over fsdp, are gathered for the
    layer as other weights are, and partial sums over the mlp width are added over `tensor`.
    """

    def local(x, gate, up, down, weights, experts):
        order = jnp.argsort(experts.reshape(-1), stable=True)
        groups = _groups(experts.reshape(-1)[order], gate.shape[0])
        slots = jnp.repeat(x.reshape(-1, x.shape[-1]), experts.shape[-1], axis=0)  # [s, D]
        sent = _permuted(slots, order)
        out = product(activation(product(sent, gate, groups)) * product(sent, up, groups), down, groups)
        out = _permuted(out, jnp.argsort(order)).reshape(*weights.shape, -1)  # [B, T, k, D]
        return jnp.sum(out * weights[..., None], axis=-2)  # f32

    arguments = (x, layer["gate"], layer["up"], layer["down"], weights, experts)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return local(*arguments).astype(x.dtype)
    batch = spec("batch")
    wide, narrow = spec(None, None, "mlp"), spec(None, "mlp", None)

    def part(x, gate, up, down, weights, experts):
        """What each device makes of its part of the width, summed; so are the gradients, over what they differ by."""
        x = jax.lax.pcast(x, "tensor", to="varying")
        gate, up, down = (jax.lax.pcast(m, RULES["batch"], to="varying") for m in (gate, up, down))
        return jax.lax.psum(local(x, gate, up, down, weights, experts), "tensor")

    on_mesh = jax.shard_map(
        part,
        in_specs=(batch, wide, wide, narrow, batch, batch),
        out_specs=batch,
        axis_names=set(MESH_AXES),
    )
    return on_mesh(*arguments).astype(x.dtype)


def _groups(experts: Array, number: int) -> Groups:
    """The groups of slots that go to `experts` [s], sorted, of this many."""
    rows = _rows(len(experts), number)
    sizes = jnp.bincount(experts, length=number)  # [E]
    counts = -(-sizes // rows)  # blocks of each expert
    ends = jnp.cumsum(counts)
    fillers = (ends - counts) * rows - (jnp.cumsum(sizes) - sizes)  # rows without a slot before each expert's first
    most = min(number, len(experts)) + len(experts) // rows
    owner = jnp.searchsorted(ends, jnp.arange(most), side="right", method="compare_all")
    return Groups(sizes, jnp.arange(len(experts)) + fillers[experts], jnp.minimum(owner, number - 1))


def _rows(slots: int, number: int) -> int:
    """The rows of a block: as many as an expert has slots on average."""
    return -(-slots // number)


def _permuted(x: Array, order: Array) -> Array:
    """`x[order]`; that no row is taken twice makes the gradient a permutation too, not a sum in any order."""
    return x.at[order].get(unique_indices=True, mode="promise_in_bounds")


def _filled(x: Array, groups: Groups, number: int) -> Array:
    """Sorted slots [s, D] in the blocks of this many experts, rows without a slot at zero: [b, m, D]."""
    rows = _rows(len(x), number)
    empty = jnp.zeros((len(groups.owner) * rows, x.shape[-1]), x.dtype)
    placed = empty.at[groups.place].set(x, unique_indices=True, mode="promise_in_bounds")
    return placed.reshape(-1, rows, x.shape[-1])


@partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)  # a block's weights are gathered again, not kept
def _by_blocks(x: Array, matrices: Array, groups: Groups) -> Array:
    """Sorted slots [s, D] times the matrices of their experts [E, D, F]: [s, F]."""
    out = jnp.einsum("bmd,bdf->bmf", _filled(x, groups, len(matrices)), matrices[groups.owner])
    return _permuted(out.reshape(-1, out.shape[-1]), groups.place)


@jax.custom_vjp
def _by_ragged_dot(x: Array, matrices: Array, groups: Groups) -> Array:
    """As `_by_blocks`; but for the gradient of the matrices, which XLA would compute as densely as `dense`."""
    return jax.lax.ragged_dot(x, matrices, groups.sizes)


def _ragged_forward(x: Array, matrices: Array, groups: Groups) -> tuple[Array, Any]:
    return _by_ragged_dot(x, matrices, groups), (x, matrices, groups)


def _ragged_backward(kept: Any, gradient: Array) -> tuple[Array, Array, None]:
    x, matrices, groups = kept
    number = len(matrices)
    parts = jnp.einsum("bmd,bmf->bdf", _filled(x, groups, number), _filled(gradient, groups, number))
    of_matrices = jax.ops.segment_sum(parts, groups.owner, number, indices_are_sorted=True)
    return jax.lax.ragged_dot(gradient, jnp.swapaxes(matrices, 1, 2), groups.sizes), of_matrices, None


_by_ragged_dot.defvjp(_ragged_forward, _ragged_backward)

KERNELS: dict[str, Callable[..., Array]] = {"dense": dense, "ragged": ragged, "blocks": blocks}
AUTO = {"cpu": "dense", "tpu": "ragged"}  # elsewhere: blocks


def mixture(
    x: Array,
    layer: dict[str, Any],
    activation: Activation,
    *,
    experts_per_token: int,
    normalize: bool,
    kernel: str,
) -> Array:
    """The routed MLP of a layer: [B, T, D] -> [B, T, D]; `kernel` is one of `KERNELS`, or "auto"."""
    weights, experts = route(x, layer["router"], experts_per_token=experts_per_token, normalize=normalize)
    kernel = AUTO.get(platform_in_context(), "blocks") if kernel == "auto" else kernel
    return KERNELS[kernel](x, layer, weights, experts, activation)
