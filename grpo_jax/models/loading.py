"""Parameters from a model's files: every tensor accounted for, then streamed onto the devices in small pieces.

The parameters are created first, sharded, as zeros. Each is then filled piece by piece: a process maps the
slices of the file that its devices hold, moves them as they are (type and order of the file), and one compiled
program transposes, casts and writes them in place. The host never holds more than a few pieces.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.layout import Stored, boxes, stored_slices, stored_tensors
from grpo_jax.models.parameters import is_matrix
from grpo_jax.models.weights import WeightFiles

HARMLESS = ("rotary_emb.inv_freq",)  # tables that old files carry along and that are computed here
PIECE = 16 * 2**20  # bytes of files that a process moves at once; about four times as much is in memory


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of nested dicts by dotted name."""
    return {".".join(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def with_matrices_in(abstract: Any, dtype: jnp.dtype) -> Any:
    """Abstract parameters with their matrices in another type; norms and biases stay as they are."""

    def change(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if not is_matrix(path[-1].key, leaf.ndim):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(change, abstract)


def account(files: WeightFiles, names: Mapping[str, Stored], abstract: Any, *, tied: bool) -> None:
    """Raise `ModelFolderError` unless every tensor is expected, and every expected one there in its shape.

    `tied`: the head is the embedding; a file that has it nevertheless must have the same shape there. Only
    headers are looked at.
    """
    leaves = named_leaves(abstract)
    expected = dict(itertools.chain.from_iterable(stored_tensors(names[n], leaf.shape) for n, leaf in leaves.items()))
    present = {name for name in files.names() if not name.endswith(HARMLESS)}
    head, embed = names["head"].name, names["embed"].name
    if tied and head in present:
        expected[head] = expected[embed]
    missing, surplus = sorted(set(expected) - present), sorted(present - set(expected))
    if missing:
        hint = "; if its head is the embedding, set tie_word_embeddings to true" if missing == [head] else ""
        raise ModelFolderError(
            f"{files.folder}: {len(missing)} of {len(expected)} tensors are missing: {_some(missing)}; "
            f"give a complete model directory{hint}"
        )
    if surplus:
        raise ModelFolderError(
            f"{files.where(surplus[0])}: {len(surplus)} tensors that config.json has no place for: "
            f"{_some(surplus)}; weights and config.json are of different models"
        )
    for name, shape in expected.items():
        if files.shape(name) != shape:
            raise ModelFolderError(
                f"{files.where(name)}: tensor {name} has shape {list(files.shape(name))}, config.json says "
                f"{list(shape)}; weights and config.json are of different models"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_tied(files: WeightFiles, head: str, embed: str) -> None:
    """Refuse a head that is stored beside tied embeddings and is no copy of them; compared in parts."""
    rows, columns = files.shape(embed) if head in files.names() else (0, 0)
    for start in range(0, rows, 4096):
        part = (slice(start, min(start + 4096, rows)), slice(0, columns))
        if not np.array_equal(files.read(head, part), files.read(embed, part)):
            raise ModelFolderError(
                f"{files.where(head)}: {head} differs from {embed}, but config.json ties them; "
                "set tie_word_embeddings to false to use both"
            )


def stream(files: WeightFiles, names: Mapping[str, Stored], abstract: Any) -> Any:
    """The parameters, in the types and shardings of `abstract`, read from files that were accounted for.

    Raises `ModelFolderError` for a tensor that holds NaN or infinity.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    zeros = jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract), out_shardings=shardings
    )()
    empty = named_leaves(zeros)
    del zeros  # or what is donated would stay alive
    return jax.tree.unflatten(
        jax.tree.structure(abstract), [_filled(files, names[name], empty.pop(name)) for name in list(empty)]
    )


def _filled(files: WeightFiles, stored: Stored, parameter: jax.Array) -> jax.Array:
    """A parameter with its numbers, written over the zeros that are given."""
    sharding = parameter.sharding
    local = sharding.shard_shape(parameter.shape)
    dtypes = {files.dtype(name) for name, _ in stored_tensors(stored, parameter.shape)}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    holders = len(sharding.device_set) // jax.process_count()
    box, starts = boxes(stored, local, PIECE // (dtype.itemsize * holders))
    for start in starts:
        piece = _piece(files, stored, parameter, box, start, dtype)
        parameter.block_until_ready()  # while a piece was read the one before was written, no others wait
        parameter = _write(parameter, piece, np.array(start, np.int32), order=stored.order, sharding=sharding)
    return parameter


def _piece(
    files: WeightFiles,
    stored: Stored,
    parameter: jax.Array,
    box: tuple[int, ...],
    start: tuple[int, ...],
    dtype: np.dtype,
) -> jax.Array:
    """The box at `start` of every shard of a parameter, in the order of the file and sharded as the parameter is."""
    shape, order, sharding = parameter.shape, stored.order, parameter.sharding
    local = sharding.shard_shape(shape)
    sizes = [own * (whole // part) for own, whole, part in zip(box, shape, local, strict=True)]
    read: dict[tuple, np.ndarray] = {}  # what several devices hold is read once

    def own(index: tuple[slice, ...]) -> np.ndarray:
        wanted: list[slice] = [slice(0)] * len(shape)
        for dimension, part in zip(order, index, strict=True):
            shard = (part.start or 0) // box[dimension]
            begin = shard * local[dimension] + start[dimension]
            wanted[dimension] = slice(begin, begin + box[dimension])
        key = tuple((w.start, w.stop) for w in wanted)
        if key not in read:
            read[key] = _read(files, stored, shape, wanted, dtype).reshape([box[d] for d in order])
        return read[key]

    split = NamedSharding(sharding.mesh, _ordered(sharding.spec, order))
    return jax.make_array_from_callback(tuple(sizes[d] for d in order), split, own)


def _read(
    files: WeightFiles, stored: Stored, shape: tuple[int, ...], wanted: list[slice], dtype: np.dtype
) -> np.ndarray:
    """A part of a parameter as it lies in the files: a view of one tensor, or several of them together."""
    where = stored_slices(stored, shape[stored.stacked :], wanted[stored.stacked :])
    places = itertools.product(*(range(w.start, w.stop) for w in wanted[: stored.stacked]))
    parts = [files.read(stored.tensor(place), where).astype(dtype, copy=False) for place in places]
    return parts[0] if len(parts) == 1 else np.stack(parts)


@partial(jax.jit, donate_argnums=0, static_argnames=("order", "sharding"))
def _write(
    parameter: jax.Array, piece: jax.Array, start: jax.Array, *, order: tuple[int, ...], sharding: NamedSharding
) -> jax.Array:
    """The parameter with a piece of each of its shards at `start`; where that is, is traced: one program for all."""

    def write(shard: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
        part = piece.transpose(np.argsort(order)).astype(shard.dtype)
        return jax.lax.dynamic_update_slice(shard, part, tuple(start))

    specs = (sharding.spec, _ordered(sharding.spec, order), PartitionSpec())
    return jax.shard_map(write, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec)(parameter, piece, start)


def _ordered(spec: PartitionSpec, order: tuple[int, ...]) -> PartitionSpec:
    """The mesh axes of a parameter's dimensions in another order."""
    axes = [*spec, *[None] * (len(order) - len(spec))]
    return PartitionSpec(*(axes[dimension] for dimension in order))
