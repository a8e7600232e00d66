"""A Hugging Face directory to a checkpoint, which `launch/train.py` starts from as from the directory, and faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from grpo_jax.data.tokenizer import check_vocabulary, load_tokenizer
from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.folder import find_folder
from grpo_jax.models.hf import check_params, load_params, read_config
from grpo_jax.models.parameters import count
from grpo_jax.models.weights import WeightFiles
from grpo_jax.reporting.progress import Progress
from grpo_jax.stages.convert_check import changed, fingerprint
from grpo_jax.stages.convert_folder import head_of_files, is_converted, load_model, save_converted
from grpo_jax.stages.convert_place import (
    BYTES,
    RESULT,
    finish,
    local_mesh,
    new_directory,
    require_room,
    say,
    workspace,
    writing,
)
from grpo_jax.stages.convert_source import ConvertError, plain


def from_hf(model: str, out: str, dtype: str | None = None) -> None:
    """Make a checkpoint of a Hugging Face directory or hub name: sharded, with digests, and loaded faster.

    `dtype` None keeps the type of the files (float32 where it is neither that nor bfloat16). Raises as `to_hf`.
    """
    if is_converted(model):
        raise ConvertError(f"{model}: was made by from-hf already")
    folder = find_folder(model)
    path = new_directory(out, folder)
    decoder = plain(read_config(folder, head=head_of_files(folder)))
    mesh = local_mesh(decoder)
    check_params(folder, decoder, mesh)
    check_vocabulary(load_tokenizer(str(folder), say, prompt_format="text"), decoder.vocab_size)
    own = dtype_of_files(folder)
    dtype = dtype or own
    size = count(decoder) * BYTES[dtype]
    require_room(path, size)
    say(f"from-hf: {model} to {path}: {count(decoder):,} numbers of weights in {dtype}, {mesh.size} device(s)")
    with workspace(path) as work:
        with Progress("read", total=2, unit="part") as progress:
            with progress.phase("read the files"):
                params = jax.block_until_ready(load_params(folder, decoder, mesh, dtype=dtype))
            progress.advance()
            with progress.phase("digest"):
                numbers = fingerprint(params, "float32")
            progress.advance()
        with writing(work, size):
            save_converted(params, folder, work / RESULT, rounded=dtype != own and dtype != "float32")
        del params
        wrong = read_back_otherwise(work / RESULT, numbers, decoder, mesh, dtype)
        finish(work, path, wrong)
    say(f"weights: all {count(decoder):,} numbers read back bit for bit{'' if dtype == own else f', {own} as {dtype}'}")
    say(f"done: {path}, for --model.model_name_or_path")


def read_back_otherwise(
    path: Path, numbers: dict[str, Any], decoder: DecoderConfig, mesh: Mesh, dtype: str
) -> list[str]:
    """What is wrong with a checkpoint that was written, a line for each parameter whose numbers are others."""
    try:
        with Progress("check", total=2, unit="part") as progress:
            with progress.phase("read what was written"):
                params = jax.block_until_ready(load_model(path, decoder, mesh, dtype=dtype))
            progress.advance()
            with progress.phase("compare"):
                names = changed(numbers, fingerprint(params, "float32"))
            progress.advance()
    except ValueError as error:  # what our own loader refuses
        return [str(error)]
    return [f"{name}: its numbers are not those that were meant" for name in names]


def dtype_of_files(folder: Path) -> str:
    """The type that holds every number of the files."""
    files = WeightFiles(folder)
    return "bfloat16" if all(files.dtype(name).name == "bfloat16" for name in files.names()) else "float32"
