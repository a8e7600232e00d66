"""Hugging Face model directories in and out: config.json and safetensors to sharded parameters, and back.

Every tensor is accounted for: a missing, a surplus or a wrongly shaped one is an error, never a random start.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from grpo_jax.models import families
from grpo_jax.models.decoder import DTYPES, DecoderConfig
from grpo_jax.models.folder import INDEX, SINGLE, ModelFolderError, WeightFiles, find_folder, read_json
from grpo_jax.models.layout import Stored, from_stored, stored_shape, stored_slices, to_stored
from grpo_jax.models.parameters import abstract_params
from grpo_jax.sharding import global_to_host

HARMLESS = ("rotary_emb.inv_freq",)  # tables that old files carry along and that are computed here


def family_names() -> list[str]:
    """The model types that can be read: the files of `models/families`."""
    return sorted(module.name for module in pkgutil.iter_modules(families.__path__))


def _family(name: str) -> ModuleType:
    return importlib.import_module(f"{families.__name__}.{name}")


def read_config(path: str | Path, **options: Any) -> DecoderConfig:
    """The decoder of a model directory or hub name; `options` are dtype, remat, scan_layers and head.

    Raises `ModelFolderError` for an unknown family or rotary embedding, a sliding window, quantized weights,
    and a directory that brings its own code, which is never run.
    """
    where = find_folder(path) / "config.json"
    raw = read_json(where)
    if "auto_map" in raw:
        raise ModelFolderError(
            f"{where}: auto_map {raw['auto_map']} asks to run code from the directory, which is never done; "
            f"remove the key if the weights are of a known family ({', '.join(family_names())})"
        )
    if raw.get("model_type") not in family_names():
        raise ModelFolderError(
            f"{where}: model_type {raw.get('model_type')!r} is unknown; there are {', '.join(family_names())}"
        )
    if raw.get("quantization_config"):
        raise ModelFolderError(f"{where}: quantization_config is set; give the model before quantization")
    from transformers import AutoConfig

    try:
        hf = AutoConfig.from_pretrained(where.parent, trust_remote_code=False)
    except Exception as error:  # validation errors of several libraries, all about this file
        raise ModelFolderError(f"{where}: {' '.join(str(error).split())[:500]}") from error
    try:
        return _family(raw["model_type"]).decoder_config(hf, **options)
    except ValueError as error:
        raise ModelFolderError(f"{where}: {error}") from error


def load_params(path: str | Path, config: DecoderConfig, mesh: Mesh) -> dict[str, Any]:
    """The float32 parameters of a model directory or hub name; for each device only its slice is read.

    Raises `ModelFolderError` for any tensor that is missing, surplus, of another shape or not finite, and
    `ShardingError` if the mesh does not divide a parameter; names and shapes are checked before any device
    memory is taken.
    """
    abstract = abstract_params(config, mesh)
    files, names, leaves = _matched(path, config, abstract)
    parts = [_create(files, names[name], leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), parts)


def check_params(path: str | Path, config: DecoderConfig, mesh: Mesh) -> None:
    """Raise what `load_params` would, as far as names, shapes and the mesh tell; no tensor is read."""
    _matched(path, config, abstract_params(config, mesh))


def _matched(
    path: str | Path, config: DecoderConfig, abstract: Mapping[str, Any]
) -> tuple[WeightFiles, Mapping[str, Stored], dict[str, Any]]:
    """The files of a model, the names in them, and the parameters by dotted name, each of which is there."""
    folder = find_folder(path)
    names = _family(read_json(folder / "config.json")["model_type"]).NAMES
    flat = jax.tree_util.tree_leaves_with_path(abstract)
    leaves = {".".join(entry.key for entry in where): leaf for where, leaf in flat}
    files = WeightFiles(folder)
    _account(files, names, leaves, config)
    return files, names, leaves


def _tensors(stored: Stored, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor that holds a parameter."""
    if not stored.stacked:
        yield stored.name, stored_shape(stored, shape)
        return
    for layer in range(shape[0]):
        yield stored.name.format(layer=layer), stored_shape(stored, shape[1:])


def _account(files: WeightFiles, names: Mapping[str, Stored], leaves: Mapping[str, Any], config: DecoderConfig) -> None:
    """Every tensor of the files is expected, every expected one is there and has its shape."""
    pairs = (_tensors(names[name], leaf.shape) for name, leaf in leaves.items())
    expected = dict(itertools.chain.from_iterable(pairs))
    present = {name for name in files.names() if not name.endswith(HARMLESS)}
    missing, surplus = sorted(set(expected) - present), sorted(present - set(expected))
    head, embed = names["head"].name, names["embed"].name
    if config.head == "lm" and config.tie_word_embeddings and head in surplus and embed in present:
        _check_tied(files, head, embed)
        surplus.remove(head)
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


def _check_tied(files: WeightFiles, head: str, embed: str) -> None:
    """A head that is stored beside tied embeddings must be a copy of them; compared in parts."""
    same = files.shape(head) == files.shape(embed)
    rows, columns = files.shape(embed)
    for start in range(0, rows if same else 0, 4096):
        part = (slice(start, min(start + 4096, rows)), slice(0, columns))
        same = same and np.array_equal(files.read(head, part), files.read(embed, part))
    if not same:
        raise ModelFolderError(
            f"{files.where(head)}: {head} differs from {embed}, but config.json ties them; "
            "set tie_word_embeddings to false to use both"
        )


def _create(files: WeightFiles, stored: Stored, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """One parameter on the devices; a slice that several devices hold is read once."""
    read: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        bounds = tuple(s.indices(size)[:2] for s, size in zip(index, leaf.shape, strict=True))
        if bounds not in read:
            read[bounds] = _read(files, stored, leaf.shape, bounds)
        return read[bounds]

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def _read(files: WeightFiles, stored: Stored, shape: tuple[int, ...], bounds: tuple) -> np.ndarray:
    """A slice of a parameter, its layers stacked."""
    slices = [slice(*b) for b in bounds]
    sizes = [stop - start for start, stop in bounds]
    if not stored.stacked:
        part = files.read(stored.name, stored_slices(stored, shape, slices))
        return np.ascontiguousarray(from_stored(stored, part, sizes))
    out = np.empty(sizes, np.float32)
    where = stored_slices(stored, shape[1:], slices[1:])
    for row, layer in enumerate(range(*bounds[0])):
        out[row] = from_stored(stored, files.read(stored.name.format(layer=layer), where), sizes[1:])
    return out


class _Export(NamedTuple):
    """A tensor to be written: its name, its bytes, and how to fetch it."""

    name: str
    size: int
    fetch: Callable[[], np.ndarray]


def save_params(
    params: Mapping[str, Any],
    config: DecoderConfig,
    tokenizer: Any | None,
    path: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_bytes: int = 5_000_000_000,
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a Hugging Face model directory that transformers and `load_params` read; returns its path.

    float32 keeps every bit of the trained weights; bfloat16 halves the files. A file holds at most
    `max_shard_bytes`, or one tensor. `generation_config` is written as given; None: the tokenizer's special
    ids. All is written beside `path` and renamed when it is complete. Every process calls it, the first one
    writes. Raises `ModelFolderError` if `path` exists or the disk has no room.
    """
    path = Path(path)
    if path.exists():
        raise ModelFolderError(f"{path}: exists and is not overwritten; choose another directory or remove it")
    family = next(f for f in map(_family, family_names()) if f.describes(config))
    exports = list(_exports(params, family.NAMES, config, DTYPES[dtype]))
    settings = family.hf_config(config) | {"dtype": dtype, "torch_dtype": dtype} | _special_ids(tokenizer)
    if generation_config is None:
        generation_config = _special_ids(tokenizer)
    partial = path.with_name(f".{path.name}.partial")
    writer = jax.process_index() == 0
    try:
        if writer:
            _prepare(partial, sum(e.size for e in exports))
        _write_shards(exports, partial, max_shard_bytes, writer)
        if writer:
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
            _write_json(partial / "config.json", settings)
            _write_json(partial / "generation_config.json", dict(generation_config))
            _finish(partial)
            partial.rename(path)
    except BaseException:
        if writer:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    _wait_for_all(str(path))
    return path


def _exports(params, names: Mapping[str, Stored], config: DecoderConfig, dtype) -> Iterator[_Export]:
    """The tensors of a model in the order of its layers: embedding, layer by layer, norm, head."""

    def export(stored: Stored, leaf, layer: int | None = None) -> _Export:
        def fetch() -> np.ndarray:
            own = leaf if layer is None else leaf[layer]
            return to_stored(stored, global_to_host(own.astype(dtype)))

        numbers = leaf.size // (1 if layer is None else config.num_layers)
        return _Export(stored.name.format(layer=layer), numbers * jnp.dtype(dtype).itemsize, fetch)

    yield export(names["embed"], params["embed"])
    for layer in range(config.num_layers):
        for name, leaf in params["layers"].items():
            yield export(names[f"layers.{name}"], leaf, layer)
    for name in ("final_norm", "head", "score"):
        if name in params:
            yield export(names[name], params[name])


def _prepare(partial: Path, size: int) -> None:
    """Make an empty directory on a disk with room for `size` bytes and a tenth more."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    free = shutil.disk_usage(partial).free
    if free < 1.1 * size:
        raise ModelFolderError(f"{partial.parent}: {free} bytes free, the model needs {size}; make room")


def _write_shards(exports: list[_Export], folder: Path, max_bytes: int, writer: bool) -> None:
    """Write the tensors in as many files as needed, only one file's tensors in memory at a time."""
    shards: list[list[_Export]] = [[]]
    for export in exports:
        if shards[-1] and sum(e.size for e in shards[-1]) + export.size > max_bytes:
            shards.append([])
        shards[-1].append(export)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {e.name: e.fetch() for e in shard}  # on every process: to fetch is a collective operation
        weight_map |= dict.fromkeys(tensors, file)
        if writer:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if writer and len(shards) > 1:
        total = sum(e.size for e in exports)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _wait_for_all(name: str) -> None:
    """Return when every process is here: the directory exists for all of them."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"saved {name}")


def _special_ids(tokenizer: Any | None) -> dict[str, int]:
    """The tokenizer's ids under the names of config.json."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name, None) is not None}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finish(folder: Path) -> None:
    """Give all files the usual mode and force them to disk: what is announced outlives a power cut."""
    mode = (folder / "config.json").stat().st_mode  # safetensors makes its files readable by their owner alone
    for file in [*folder.iterdir(), folder]:
        if file.suffix == ".safetensors":
            file.chmod(mode)
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
