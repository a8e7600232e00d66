"""The tensors of a model directory: safetensors files, their headers checked, read slice by slice.

Only safetensors are read. Pickled weights are refused whatever they hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from grpo_jax.models.folder import ModelFolderError, check_regular, read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)


class Tensor(NamedTuple):
    """Where a tensor lies."""

    path: Path
    offset: int  # of its first byte in the file
    dtype: np.dtype
    shape: tuple[int, ...]


class WeightFiles:
    """The tensors of a directory's safetensors, single or sharded; headers are read and checked when it is made.

    As transformers does, `model.safetensors` (`single`) is taken if it is there, else the shards that the index names.
    Raises `ModelFolderError` for pickled or no weights, a missing or cut shard, a header that does not describe
    its file, a tensor that is not in the file where the index puts it, and a type that is not floating point.
    """

    def __init__(self, folder: Path, *, single: str = SINGLE):
        self.folder = folder
        self._tensors: dict[str, Tensor] = {}
        homes = None if (folder / single).exists() else _weight_map(folder)
        for path in [folder / single] if homes is None else _shards(folder, homes):
            for name, tensor in _tensors(path).items():
                if name in self._tensors:
                    raise ModelFolderError(
                        f"{path}: tensor {name} is also in {self._tensors[name].path}; keep one of them"
                    )
                self._tensors[name] = tensor
        for name, file in (homes or {}).items():
            if name not in self._tensors or self._tensors[name].path != folder / file:
                raise ModelFolderError(
                    f"{folder / file}: has no tensor {name}, which {INDEX} puts there; download both again"
                )

    def names(self) -> set[str]:
        """All tensors."""
        return set(self._tensors)

    def where(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._tensors[name].path

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from its header."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """The type in which a tensor is read: its own, but float32 for float64."""
        own = self._tensors[name].dtype
        return np.dtype(np.float32) if own == np.float64 else own

    def read(self, name: str, slices: Sequence[slice]) -> np.ndarray:
        """A slice of a tensor in the type of `dtype`: as a rule a view of the file, which takes no memory.

        Raises `ModelFolderError` if it holds NaN or infinity.
        """
        path, offset, dtype, shape = self._tensors[name]
        try:
            # Mapped anew each time: pages that were read leave this process with the view.
            whole = np.memmap(path, dtype, mode="r", offset=offset, shape=shape)
        except (OSError, ValueError) as error:
            raise ModelFolderError(f"{path}: changed while it was read ({error}); load again") from error
        with np.errstate(over="ignore"):
            part = np.asarray(whole[tuple(slices)]).astype(self.dtype(name), copy=False)
        if not _is_finite(part):
            raise ModelFolderError(f"{path}: tensor {name} holds NaN or infinity; get whole weights")
        return part


def _is_finite(array: np.ndarray) -> bool:
    """Whether no number has the exponent of infinity and NaN: four times as fast as `np.isfinite`."""
    bits = np.dtype(f"u{array.itemsize}")
    infinity = np.asarray(np.inf, array.dtype).view(bits)
    return bool((array.view(bits) & infinity).max(initial=0) < infinity)


def _weight_map(folder: Path) -> dict[str, str]:
    """The index of a sharded model: tensor -> file name."""
    if not (folder / INDEX).exists():
        raise ModelFolderError(_no_weights(folder))
    found = read_json(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
        raise ModelFolderError(f"{folder / INDEX}: no weight_map of file names; download it again")
    return found


def _shards(folder: Path, homes: dict[str, str]) -> list[Path]:
    """The files that an index names, all of them in its directory; links among them may lead anywhere."""
    names = sorted(set(homes.values()))
    for name in names:
        if not SHARD.fullmatch(name):
            raise ModelFolderError(
                f"{folder / INDEX}: {name[:100]!r} is not a plain file name that ends in .safetensors; no other "
                "file is opened, download the index again"
            )
        if not (folder / name).exists():
            raise ModelFolderError(f"{folder / name}: missing, one of {len(names)} shards in {INDEX}; download it")
    return [folder / name for name in names]


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    header, start = _header(path)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] not in FLOATS:
            raise ModelFolderError(
                f"{path}: tensor {name} is {about['dtype']}; quantized weights are not read, "
                f"give a directory with {', '.join(FLOATS)}"
            )
        offset, dtype = start + about["data_offsets"][0], np.dtype(FLOATS[about["dtype"]])
        tensors[name] = Tensor(path, offset, dtype, tuple(about["shape"]))
    return tensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begin.

    The safetensors library has checked it first: its length, that it is JSON of the right form, and that the
    tensors' types, shapes and extents fill the file without gap or overlap.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(
            f"{path}: {path.stat().st_size} bytes that are not a whole safetensors file ({error}); download it again"
        ) from None
    header.pop("__metadata__", None)
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose keys is given twice: programs differ in which of two they take."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {key}")
        found[key] = value
    return found


def _no_weights(folder: Path) -> str:
    """Why a directory with neither `model.safetensors` nor an index cannot be loaded."""
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder}: weights only as pickle ({', '.join(pickles[:3])}); reading those can run code, so "
            "they are never opened; convert them where you trust them: "
            "transformers.AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) writes safetensors"
        )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return f"{folder}: has {', '.join(shards[:3])} but no {INDEX} to say what is in them; download it"
    return f"{folder}: no weights; expected {SINGLE}, or {INDEX} and the shards that it names"
