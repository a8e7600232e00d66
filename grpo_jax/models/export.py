"""Parameters to a model's files: tensors fetched one by one and written as they come, in shards with an index."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.layout import Stored, stored_tensors, to_stored
from grpo_jax.models.weights import INDEX, SINGLE
from grpo_jax.sharding import agree, global_to_host

CODES = {"float32": "F32", "bfloat16": "BF16"}


class Export(NamedTuple):
    """Tensors that are fetched together: one, or one layer's experts."""

    tensors: list[tuple[str, tuple[int, ...]]]  # names and shapes
    dtype: np.dtype
    fetch: Callable[[], np.ndarray]  # their numbers one after the other; on every process

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(math.prod(shape) for _, shape in self.tensors) * self.dtype.itemsize


def exports(params: Mapping[str, Any], names: Mapping[str, Stored], dtype: jnp.dtype) -> list[Export]:
    """The tensors of a model in the order of its layers: embedding, layer by layer, norm, head.

    Raises ValueError for a tree with more than that: adapters must be merged first, or written by themselves.
    """
    single = ("embed", "final_norm", "head", "score")
    if more := set(params) - {"layers", *single}:
        raise ValueError(
            f"params: {', '.join(sorted(more))} has no place in these files; merge adapters, or leave them out"
        )

    def export(name: str, leaf: jax.Array, layer: int | None = None) -> Export:
        stored = names[name]
        tensors = list(stored_tensors(stored, leaf.shape))
        if layer is not None:
            each = len(tensors) // leaf.shape[0]
            tensors = tensors[layer * each : (layer + 1) * each]
        fetch = partial(_fetch, leaf, layer, stored, jnp.dtype(dtype))
        return Export(tensors, jnp.dtype(dtype), fetch)

    def all_of_them() -> Iterator[Export]:
        yield export("embed", params["embed"])
        for layer in range(len(next(iter(params["layers"].values())))):
            for name, leaf in sorted(params["layers"].items()):
                yield export(f"layers.{name}", leaf, layer)
        for name in single[1:]:
            if name in params:
                yield export(name, params[name])

    return list(all_of_them())


def _fetch(leaf: jax.Array, layer: int | None, stored: Stored, dtype: jnp.dtype) -> np.ndarray:
    """One layer of a parameter, or all of one that is not stacked, on the host; the rest stays where it is."""
    return global_to_host(_as_stored(leaf, layer, stored=stored, dtype=dtype))


@partial(jax.jit, static_argnames=("stored", "dtype"))
def _as_stored(leaf: jax.Array, layer: int | None, *, stored: Stored, dtype: jnp.dtype) -> jax.Array:
    """A layer of a parameter in the type and order of the file, experts stacked."""
    own = leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    order = partial(to_stored, stored)
    return (jax.vmap(order) if stored.stacked == 2 else order)(own).astype(dtype)


def write_directory(
    path: Path,
    tensors: list[Export],
    max_shard_bytes: float,
    texts: Mapping[str, Any],
    tokenizer: Any | None,
    *,
    single: str = SINGLE,
) -> None:
    """Write shards, JSON files (`texts`: file name -> value) and tokenizer beside `path`, then rename them to it.

    What fits one shard is the file `single`. Every process calls it, the first one writes. Raises
    `ModelFolderError` if `path` exists or cannot be made, or the disk has no room.
    """
    writer = jax.process_index() == 0
    partial_path = path.with_name(f".{path.name}.partial")
    refused = _prepare(path, partial_path, sum(e.size for e in tensors)) if writer else None
    if agree(refused is not None):
        raise ModelFolderError(refused or f"{path}: refused by process 0, which says why")
    try:
        _write_shards(tensors, partial_path, max_shard_bytes, single, writer)
        if writer:
            if tokenizer is not None:
                tokenizer.save_pretrained(partial_path)
            for name, value in texts.items():
                _write_json(partial_path / name, value)
            _to_disk(*partial_path.rglob("*"), partial_path)
            partial_path.rename(path)
            _to_disk(path.parent)
    except BaseException:
        if writer:
            shutil.rmtree(partial_path, ignore_errors=True)
        raise
    _wait_for_all(str(path))


def _prepare(path: Path, partial_path: Path, size: int) -> str | None:
    """Make an empty directory on a disk with room for `size` bytes and a tenth more, or say why not."""
    if os.path.lexists(path):
        return f"{path}: exists and is not overwritten; choose another directory or remove it"
    shutil.rmtree(partial_path, ignore_errors=True)
    try:
        partial_path.mkdir(parents=True)
    except OSError as error:  # told to all processes: they would wait for this one
        return f"{path}: cannot be made ({error}); choose another directory"
    free = shutil.disk_usage(partial_path).free
    if free >= 1.1 * size:
        return None
    partial_path.rmdir()
    return f"{path.parent}: {free} bytes free, the model needs {size}; make room"


def _write_shards(tensors: list[Export], folder: Path, max_bytes: float, single: str, writer: bool) -> None:
    """Write the tensors in as many files as needed; one fetch at a time is in memory."""
    shards: list[list[Export]] = [[]]
    for export in tensors:
        if shards[-1] and sum(e.size for e in shards[-1]) + export.size > max_bytes:
            shards.append([])
        shards[-1].append(export)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = single if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= {name: file for export in shard for name, _ in export.tensors}
        if writer:
            _write_file(folder / file, shard)
        else:
            for export in shard:
                export.fetch()  # a collective operation
    if writer and len(shards) > 1:
        total = sum(e.size for e in tensors)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_file(path: Path, shard: list[Export]) -> None:
    """Write a safetensors file: length of the header, header, numbers. Sizes are known before any number is."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for export in shard:
        for name, shape in export.tensors:
            start, end = end, end + math.prod(shape) * export.dtype.itemsize
            header[name] = {"dtype": CODES[export.dtype.name], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for export in shard:
            file.write(np.ascontiguousarray(export.fetch()).view(np.uint8).data)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_disk(*paths: Path) -> None:
    """Force files and the entries of directories to disk: what is announced outlives a power cut."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _wait_for_all(name: str) -> None:
    """Return when every process is here: the directory exists for all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"saved {name}")
