"""Hugging Face model directories in and out: config.json and safetensors to sharded parameters, and back.

Every tensor is accounted for: a missing, a surplus or a wrongly shaped one is an error, never a random start.
How tensors travel is in `loading.py` and `export.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.models import families
from grpo_jax.models.decoder import DTYPES, DecoderConfig
from grpo_jax.models.export import exports, write_directory
from grpo_jax.models.folder import ModelFolderError, check_is_model, find_folder, read_json
from grpo_jax.models.layout import Stored
from grpo_jax.models.loading import account, check_tied, stream, with_matrices_in
from grpo_jax.models.parameters import abstract_params
from grpo_jax.models.weights import WeightFiles

SIZES = {  # the least and the most of each in any model; a loop over 10**12 layers would never end
    "vocab_size": (1, 10**8),
    "hidden_size": (1, 10**6),
    "intermediate_size": (1, 10**7),
    "moe_intermediate_size": (1, 10**7),
    "num_hidden_layers": (1, 10**4),
    "num_attention_heads": (1, 10**5),
    "num_key_value_heads": (1, 10**5),
    "head_dim": (1, 10**5),
    "num_experts": (0, 10**5),
    "max_position_embeddings": (1, 10**9),
}


def family_names() -> list[str]:
    """The model types that can be read: the files of `models/families`."""
    return sorted(module.name for module in pkgutil.iter_modules(families.__path__))


def _family(name: str) -> ModuleType:
    return importlib.import_module(f"{families.__name__}.{name}")


def stored_names(config: DecoderConfig) -> Mapping[str, Stored]:
    """Where in the files of its family each parameter lies, by dotted name; some may be of other configs."""
    return _family(config.family).NAMES


def read_config(path: str | Path, **options: Any) -> DecoderConfig:
    """The decoder of a model directory or hub name; `options` are how it is computed (dtype, remat, ...) and its head.

    Raises `ModelFolderError` for an unknown family or rotary embedding, sizes that no model has, quantized
    weights, adapters and runs, and a directory that brings its own code, which is never run.
    """
    where = find_folder(path) / "config.json"
    check_is_model(where.parent, path)
    raw = read_json(where)
    _check_raw(where, raw)
    from transformers import AutoConfig

    try:
        hf = AutoConfig.from_pretrained(where.parent, trust_remote_code=False)
    except Exception as error:  # validation errors of several libraries, all about this file
        raise ModelFolderError(f"{where}: {' '.join(str(error).split())[:500]}") from error
    try:
        return _family(raw["model_type"]).decoder_config(hf, **options)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:  # of values that make no model
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ModelFolderError(f"{where}: {kind}{error}") from error


def _check_raw(where: Path, raw: Mapping[str, Any]) -> None:
    """Refuse a config.json for what can be said before a library works through it."""
    known = ", ".join(family_names())
    if "auto_map" in raw:
        raise ModelFolderError(
            f"{where}: auto_map {raw['auto_map']} asks to run code from the directory, which is never done; "
            f"remove the key if the weights are of a known family ({known})"
        )
    if raw.get("model_type") not in family_names():
        why = families.REMEDIES.get(str(raw.get("model_type")), f"is unknown; there are {known}")
        raise ModelFolderError(f"{where}: model_type {raw.get('model_type')!r} {why}")
    if raw.get("quantization_config"):
        raise ModelFolderError(f"{where}: quantization_config is set; give the model before quantization")
    for key, (least, most) in SIZES.items():
        if isinstance(raw.get(key), int) and not least <= raw[key] <= most:
            raise ModelFolderError(f"{where}: {key} is {raw[key]}; it lies between {least} and {most} in any model")


def load_params(
    path: str | Path, config: DecoderConfig, mesh: Mesh, *, dtype: Literal["float32", "bfloat16"] | None = None
) -> dict[str, Any]:
    """The parameters of a model directory or hub name, created sharded; a process reads what its devices hold.

    They are float32. With `dtype` "bfloat16" matrices are created in that type, norms and biases stay float32:
    for a base that is only read, which then takes half the memory; from a bfloat16 file nothing is rounded.

    Raises `ModelFolderError` for any tensor that is missing, surplus, of another shape or not finite, and
    `ShardingError` if the mesh does not divide a parameter; names and shapes are checked before any device
    memory is taken.
    """
    abstract = abstract_params(config, mesh)
    files, names = _accounted(path, config, abstract)
    if _tied(config):
        check_tied(files, names["head"].name, names["embed"].name)
    return stream(files, names, with_matrices_in(abstract, jnp.dtype(DTYPES[dtype or "float32"])))


def check_params(path: str | Path, config: DecoderConfig, mesh: Mesh) -> None:
    """Raise what `load_params` would, as far as headers and the mesh tell; no tensor is read."""
    _accounted(path, config, abstract_params(config, mesh))


def _accounted(
    path: str | Path, config: DecoderConfig, abstract: Mapping[str, Any]
) -> tuple[WeightFiles, Mapping[str, Stored]]:
    """The files of a model and the names in them, each of which is there."""
    files, names = WeightFiles(find_folder(path)), stored_names(config)
    account(files, names, abstract, tied=_tied(config))
    return files, names


def _tied(config: DecoderConfig) -> bool:
    return config.head == "lm" and config.tie_word_embeddings


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
    `max_shard_bytes`, or one tensor, or one layer's experts. `generation_config` is written as given; None:
    the tokenizer's special ids. All is written beside `path` and renamed when it is complete. Every process
    calls it, the first one writes. Raises `ModelFolderError` if `path` exists or the disk has no room.
    """
    family, path = _family(config.family), Path(path)
    ids = _special_ids(tokenizer)
    texts = {
        "config.json": family.hf_config(config) | {"dtype": dtype, "torch_dtype": dtype} | ids,
        "generation_config.json": ids if generation_config is None else dict(generation_config),
    }
    tensors = exports(params, family.NAMES, DTYPES[dtype])
    write_directory(path, tensors, max_shard_bytes, texts, tokenizer)
    return path


def _special_ids(tokenizer: Any | None) -> dict[str, int]:
    """The tokenizer's ids under the names of config.json."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name, None) is not None}
