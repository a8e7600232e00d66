"""Adapters as a PEFT directory, out and in: adapter_config.json and adapter_model.safetensors.

An adapter is stored apart from the weights it adapts, in float32: nothing is rounded, as merging into bfloat16 weights
would. Every tensor and every setting that is not at rest is accounted for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.export import Export, write_directory
from grpo_jax.models.folder import ModelFolderError, find_folder, read_json
from grpo_jax.models.hf import stored_names
from grpo_jax.models.layout import Stored, stored_tensors, to_stored
from grpo_jax.models.loading import named_leaves, stream
from grpo_jax.models.lora import INPUTS, SUFFIX, Lora, abstract_adapters, adapter_table
from grpo_jax.models.weights import WeightFiles
from grpo_jax.sharding import global_to_host

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of a tensor's name, before the name of the module that it adapts
TARGET = re.compile(rf"\.({'|'.join(INPUTS)}){SUFFIX}\.lora_[AB]\.weight$")

SAID = {"peft_type", "r", "lora_alpha", "use_rslora"}  # what `read_lora` reads
IDLE = {  # how the adapter was made, and what its tensors tell by themselves
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "init_lora_weights", "eva_config", "runtime_config", "megatron_core", "qalora_group_size"),
}
REST = {"bias": ("none",)}  # values at rest that are not empty
STARTS = (True, False, "gaussian", "orthogonal", "eva")  # of init_lora_weights: those that leave the base as it is


def adapter_names(config: DecoderConfig) -> dict[str, Stored]:
    """Where each adapter lies in the file: `{"q.a": ..., "q.b": ...}`.

    PEFT's `x A^T B^T` is `x a^T b` here: A is [r, in], B is [out, r].
    """
    names = {}
    for target in config.lora.targets:
        weight = stored_names(config)[f"layers.{target}"]
        out, into = weight.layout.split()
        stem = PREFIX + weight.name.removesuffix("weight")
        ours_in, ours_out = weight.ours[: INPUTS[target]], weight.ours[INPUTS[target] :]
        names[f"{target}.a"] = Stored(stem + "lora_A.weight", f"r {into}", "r" + ours_in)
        names[f"{target}.b"] = Stored(stem + "lora_B.weight", f"{out} r", "r" + ours_out)
    return names


def save_adapters(
    adapters: Mapping[str, Any], config: DecoderConfig, path: str | Path, *, base_name: str, tokenizer: Any | None
) -> Path:
    """Write a PEFT directory that `peft.PeftModel.from_pretrained` and `load_adapters` read; returns its path.

    `base_name` is the model that they adapt, a directory or hub name. Tensors are float32, every bit as trained. All
    is written beside `path` and renamed when it is complete. Every process calls it, the first one writes. Raises
    `ModelFolderError` if `path` exists or the disk has no room.
    """
    lora, path = config.lora, Path(path)
    names = adapter_names(config)
    tensors = [_export(names[name], leaf) for name, leaf in named_leaves(adapters).items()]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "use_rslora": lora.rslora,
        "target_modules": [target + SUFFIX for target in lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_directory(path, tensors, math.inf, {SETTINGS: settings}, tokenizer, single=WEIGHTS)
    return path


def _export(stored: Stored, leaf: jax.Array) -> Export:
    """All layers of an adapter, which is small: fetched at once."""

    def fetch(leaf: jax.Array) -> np.ndarray:
        return np.stack([to_stored(stored, layer) for layer in global_to_host(leaf)])

    return Export(list(stored_tensors(stored, leaf.shape)), np.dtype(leaf.dtype), partial(fetch, leaf))


def read_lora(path: str | Path) -> Lora:
    """Rank, scale and targets of a PEFT directory or hub name.

    Raises `ModelFolderError` for adapters of another kind, for what goes beyond low-rank products beside projections,
    and for pickled weights.
    """
    folder = find_folder(path)
    where = folder / SETTINGS
    raw = read_json(where)
    if raw.get("peft_type") != "LORA":
        raise ModelFolderError(f"{where}: peft_type is {raw.get('peft_type')!r}; only LORA is read")
    more = {k: v for k, v in raw.items() if k not in SAID | IDLE and v and v not in REST.get(k, ())}
    if raw.get("init_lora_weights", True) not in STARTS:
        more["init_lora_weights"] = raw["init_lora_weights"]
    if more:
        shown = ", ".join(f"{key} {value!r}" for key, value in sorted(more.items()))
        raise ModelFolderError(f"{where}: {shown} is not computed here; give an adapter of plain LoRA")
    rank, alpha, rslora = raw.get("r"), raw.get("lora_alpha"), raw.get("use_rslora", False)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or type(rslora) is not bool:
        raise ModelFolderError(
            f"{where}: r {rank!r}, lora_alpha {alpha!r}, use_rslora {rslora!r}; expected a whole number above 0, a "
            "number, and true or false"
        )
    found = {match[1] for name in _files(folder).names() if (match := TARGET.search(name))}
    return Lora(rank=rank, alpha=alpha, rslora=rslora, targets=tuple(t for t in INPUTS if t in found))


def load_adapters(path: str | Path, config: DecoderConfig, mesh: Mesh) -> dict[str, Any]:
    """The float32 adapters of a PEFT directory or hub name, created sharded; `config.lora` says what they must be.

    Raises `ModelFolderError` for another rank, scale or target, any tensor that is missing, surplus, of another shape
    or not finite, and what `read_lora` raises; `ShardingError` if the mesh does not divide one.
    """
    abstract = abstract_adapters(config, mesh)
    check_adapters(path, config)
    return stream(_files(find_folder(path)), adapter_names(config), abstract)


def check_adapters(path: str | Path, config: DecoderConfig) -> None:
    """Raise what `load_adapters` would, as far as settings and headers tell; no tensor is read."""
    folder = find_folder(path)
    theirs, ours = read_lora(folder), config.lora
    for key, name in (("rank", "r"), ("alpha", "lora_alpha"), ("rslora", "use_rslora")):
        if getattr(theirs, key) != getattr(ours, key):
            raise ModelFolderError(
                f"{folder / SETTINGS}: {name} is {getattr(theirs, key)}, model.lora.{key} is {getattr(ours, key)}; "
                f"set model.lora.{key} to {getattr(theirs, key)}"
            )
    if theirs.targets != ours.targets:
        have, want = (", ".join(target + SUFFIX for target in lora.targets) for lora in (theirs, ours))
        raise ModelFolderError(f"{folder / WEIGHTS}: adapts {have or 'nothing'}, model.lora.targets are {want}")
    _account(_files(folder), config)


def _account(files: WeightFiles, config: DecoderConfig) -> None:
    """Every tensor is expected, and every expected one is there in its shape."""
    names = adapter_names(config)
    pairs = [(target, side, p) for target, pair in adapter_table(config).items() for side, p in pair.items()]
    expected = {k: v for target, side, p in pairs for k, v in stored_tensors(names[f"{target}.{side}"], p.shape)}
    where = files.folder / WEIGHTS
    if missing := sorted(set(expected) - files.names()):
        raise ModelFolderError(
            f"{where}: {len(missing)} of {len(expected)} tensors are missing, such as {missing[0]}; give a complete "
            "adapter of this model"
        )
    if surplus := sorted(files.names() - set(expected)):
        raise ModelFolderError(
            f"{where}: {len(surplus)} tensors that this model has no place for, such as {surplus[0]}; give an adapter "
            "of this model, of projections alone"
        )
    for name, shape in expected.items():
        if files.shape(name) != shape:
            raise ModelFolderError(
                f"{where}: tensor {name} has shape {list(files.shape(name))}, this model's is {list(shape)}; give an "
                "adapter of this model"
            )


def _files(folder: Path) -> WeightFiles:
    """The tensors of a PEFT directory."""
    if not (folder / WEIGHTS).exists():
        pickled = sorted(path.name for path in folder.glob("adapter_model.*"))
        raise ModelFolderError(
            f"{folder}: no {WEIGHTS}"
            + (f"; {', '.join(pickled)} is never opened, as reading a pickle can run code" if pickled else "")
        )
    return WeightFiles(folder, single=WEIGHTS)
