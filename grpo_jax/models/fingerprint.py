"""What a model directory is, whatever its path: to know again the base that adapters were trained on.

Cheap, whatever the size of the model: names, types and shapes of all tensors and a sample of their numbers, wherever
the files have them, and the settings of config.json but for those that programs write about themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.folder import find_folder, read_json
from grpo_jax.models.weights import WeightFiles
from grpo_jax.sharding import global_to_host

PLACES, NUMBERS = 4, 64  # places of a tensor that are read, and numbers at each
ABOUT_ITSELF = ("_name_or_path", "transformers_version")
OF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
DIGITS = 16


def model_fingerprint(path: str | Path) -> dict[str, str]:
    """`{"weights": ..., "config": ..., "tokenizer": ...}` of a model directory or hub name, as short digests.

    Training changes nearly all numbers, so a sample tells; files may be cut into other shards. With the config goes
    what ends a completion, with the tokenizer the template of its prompts.
    """
    folder = find_folder(path)
    files = WeightFiles(folder)
    weights = hashlib.sha256()
    for name in sorted(files.names()):
        weights.update(f"{name} {files.dtype(name)} {files.shape(name)}".encode())
        for place in _places(files.shape(name)):
            weights.update(files.read(name, place).tobytes())
    settings = {key: value for key, value in read_json(folder / "config.json").items() if key not in ABOUT_ITSELF}
    generation = folder / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
    texts = {"config": json.dumps([settings, ends if isinstance(ends, list) else [ends]], sort_keys=True).encode()}
    if tokenizer := [folder / name for name in OF_TOKENIZER if (folder / name).is_file()]:
        texts["tokenizer"] = b"\0".join(path.read_bytes() for path in tokenizer)
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    return {name: digest[:DIGITS] for name, digest in ({"weights": weights.hexdigest()} | digests).items()}


def _places(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Parts of a tensor along its diagonal, of some numbers of a row each."""
    for part in range(PLACES):
        *rows, last = (size * part // PLACES for size in shape or (1,))
        yield (*(slice(row, row + 1) for row in rows), slice(last, last + NUMBERS))[: len(shape)]


def params_fingerprint(params: Any) -> str:
    """16 hex digits of names, types, shapes and all numbers of a tree of arrays, wherever they lie.

    Computed where the arrays are, in integers: no rounding, so that mesh and order do not matter.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = global_to_host(_sums([leaf for _, leaf in leaves]))
    digest = hashlib.sha256(sums.tobytes())
    for path, leaf in leaves:
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
    return digest.hexdigest()[:DIGITS]


@jax.jit
def _sums(leaves: list[Array]) -> Array:
    """Two sums modulo 2^32 of the bits of each array, every number times one of its place: [leaves, 2] u32."""
    return jnp.stack([_weighted(leaf) for leaf in leaves])


def _weighted(x: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    bits, place = bits.astype(jnp.uint32), jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    odd = place * jnp.uint32(0x9E3779B1) * 2 + 1  # odd: a changed bit changes the sum
    mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA6B)
    return jnp.stack([(bits * odd).sum(dtype=jnp.uint32), (mixed * (odd ^ 0x27D4EB2E)).sum(dtype=jnp.uint32)])
