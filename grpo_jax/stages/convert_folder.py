"""The directory that `launch/convert.py from-hf` makes: a model whose weights are a checkpoint.

    config.json, generation_config.json, tokenizer files      as they were
    checkpoints/0/                                            the weights, sharded, every byte with its digest

It stands wherever a Hugging Face directory may (`model.model_name_or_path`): each host reads its part, in parallel.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.models.decoder import DTYPES, DecoderConfig
from grpo_jax.models.fingerprint import model_fingerprint
from grpo_jax.models.folder import check_regular, read_json
from grpo_jax.models.hf import check_params, load_params
from grpo_jax.models.loading import with_matrices_in
from grpo_jax.models.parameters import abstract_params
from grpo_jax.training import manifest, storage
from grpo_jax.training.checkpoint import Checkpoints
from grpo_jax.training.manifest import CheckpointError

REMEDY = "make it anew with launch/convert.py from-hf"
CHECKPOINTS, STEP = "checkpoints", 0
WHERE = ("state", "params")  # in the saved tree, as in a stage's checkpoints
SETTINGS = ("config.json", "generation_config.json")
TOKENIZER = ("tokenizer*", "chat_template*", "special_tokens*", "added_tokens*", "vocab*", "merges.txt", "*.model")
TEMPLATES = "additional_chat_templates"  # the one folder of a tokenizer


def is_converted(name: str | Path) -> bool:
    """Whether a model name is a directory whose weights are a checkpoint."""
    return _step(name).is_dir() and (Path(name).expanduser() / "config.json").is_file()


def head_of_files(folder: Path) -> str:
    """The head of a model directory, as its config.json says."""
    names = read_json(folder / "config.json").get("architectures") or [""]
    return "scalar" if str(names[0]).endswith("ForSequenceClassification") else "lm"


def load_model(
    name: str | Path, config: DecoderConfig, mesh: Mesh, *, dtype: Literal["float32", "bfloat16"] | None = None
) -> dict[str, Any]:
    """The parameters of a model directory of either kind, or of a hub name, created sharded; types as `load_params`.

    Raises as `load_params`; `CheckpointError` if a byte of a checkpoint is not as it was written.
    """
    if not is_converted(name):
        return load_params(name, config, mesh, dtype=dtype)
    wanted = with_matrices_in(abstract_params(config, mesh), jnp.dtype(DTYPES[dtype or "float32"]))
    try:
        with Checkpoints(_step(name).parent) as checkpoints:
            return restore_as(checkpoints, STEP, wanted)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {REMEDY}") from error


def check_model(name: str | Path, config: DecoderConfig, mesh: Mesh) -> None:
    """Raise what `load_model` would, as far as headers, the manifest and the mesh tell; no weight is read."""
    if not is_converted(name):
        return check_params(name, config, mesh)
    saved, wanted = saved_leaves(_step(name)), manifest.leaf_table(abstract_params(config, mesh))
    lines = manifest.differences(
        *({k: leaf[leaf.index("[") :] for k, leaf in table.items()} for table in (saved, wanted))
    )
    if lines:
        raise CheckpointError(
            f"{_step(name)}: is of another model than config.json says: {'; '.join(lines[:3])}; {REMEDY}"
        )


def model_record(name: str | Path) -> dict[str, str]:
    """What a model is, whatever its path and kind: a checkpoint made by `from-hf` is what it was made of."""
    return manifest.read(_step(name))["meta"]["model"] if is_converted(name) else model_fingerprint(name)


def save_converted(params: Any, source: Path, path: Path, *, rounded: bool) -> None:
    """Write parameters, and what stands beside the weights of the model directory `source`, to a new directory.

    `rounded` says that not all numbers are those of `source`: it is another model.
    """
    path.mkdir()
    copy_files(source, path, (*SETTINGS, *TOKENIZER))
    record = model_fingerprint(source)
    record["weights"] += "-rounded" if rounded else ""
    with Checkpoints(path / CHECKPOINTS, 1) as checkpoints:
        checkpoints.save(STEP, {"state": {"params": params}}, {"model": record})
    (path / CHECKPOINTS / storage.LOCK).unlink()


def restore_as(checkpoints: Checkpoints, step: int, wanted: Any) -> Any:
    """The parameters of a checkpoint in the types of `wanted`, whatever they were saved in; raises `CheckpointError`.

    One of them at a time is there in both types.
    """
    saved = saved_leaves(checkpoints.directory / str(step))

    def stored(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        dtype = saved.get(name, str(leaf.dtype)).partition("[")[0]
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    tree = checkpoints.restore_params(step, jax.tree_util.tree_map_with_path(stored, wanted), at=WHERE)
    leaves, structure = jax.tree.flatten(tree)
    del tree
    for number, leaf in enumerate(jax.tree.leaves(wanted)):
        if leaves[number].dtype != leaf.dtype:
            leaves[number] = leaves[number].astype(leaf.dtype)
    return jax.tree.unflatten(structure, leaves)


def saved_leaves(step: Path) -> dict[str, str]:
    """Name, type and shape of the parameters of a checkpoint, from its manifest; raises `CheckpointError`."""
    prefix = "/".join(WHERE) + "/"
    leaves = manifest.read(step)["leaves"].items()
    return {name.removeprefix(prefix): leaf for name, leaf in leaves if name.startswith(prefix)}


def copy_tokenizer(source: Path, path: Path) -> None:
    """Put a tokenizer's files as they are in the place of those that transformers wrote.

    It writes others than it has read: a normalizer that belongs to the model type, notes of how it was loaded.
    """
    for file in _matching(path, TOKENIZER):
        file.unlink()
    copy_files(source, path, TOKENIZER)


def copy_files(source: Path, path: Path, patterns: Iterable[str]) -> None:
    """Copy files of a model directory, with the templates of its tokenizer; on the disk when this returns."""
    for file in _matching(source, patterns):
        check_regular(file)
        copy = path / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
        with copy.open("rb") as written:
            os.fsync(written.fileno())


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    found = {file for pattern in patterns for file in folder.glob(pattern) if not file.is_dir()}
    return sorted(found | set((folder / TEMPLATES).glob("*.jinja")))


def _step(name: str | Path) -> Path:
    return Path(name).expanduser() / CHECKPOINTS / str(STEP)
