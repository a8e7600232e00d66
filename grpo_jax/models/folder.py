"""A Hugging Face model directory as files: found, checked and read slice by slice, never executed.

Only JSON and safetensors are read. Pickled weights and remote code are refused whatever they hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors asks for)
import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = ("F32", "F16", "BF16", "F64")
DOWNLOADS = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "vocab*", "merges.txt", "*.model")


class ModelFolderError(ValueError):
    """A model directory that cannot be used; the message names file, tensor, both values and the remedy."""

    exit_code = 2


def find_folder(name_or_path: str | Path) -> Path:
    """The local directory of a model: itself, or a hub name's files, downloaded or from the cache.

    Raises `ModelFolderError` if it is neither.
    """
    name = str(name_or_path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelFolderError(f"{name}: a file, not a model directory; give the directory that holds it")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelFolderError(f"{name}: no such model directory (a hub name would be owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(DOWNLOADS)))
    except Exception as error:  # the client raises many kinds; all mean that the files are not here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFolderError(
            f"{name}: no such directory here, and the Hugging Face hub did not give it ({reason}); "
            "check the path, or HF_TOKEN and the network if a hub name was meant"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `ModelFolderError` if it is absent, broken or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path}: missing; a Hugging Face model directory has this file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFolderError(f"{path}: not valid JSON ({error}); download the file again") from None
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: holds a {type(value).__name__}, not an object; download it again")
    return value


class WeightFiles:
    """The tensors of a directory's safetensors, single or sharded; headers are checked when it is made.

    As transformers does, `model.safetensors` is taken if it is there, else the shards that the index names.
    Raises `ModelFolderError` for pickled or no weights, a missing or cut shard, a tensor that is not in the
    file where the index puts it, and a type that is not floating point.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._home: dict[str, Path] = {}  # tensor -> file
        self._files = {path: _open(path) for path in self._paths()}
        for path, file in self._files.items():
            for tensor in file.keys():  # noqa: SIM118  (the file object is not iterable)
                self._check(path, tensor)
                self._home[tensor] = path
        self._check_index()

    def _paths(self) -> list[Path]:
        """The files that hold the weights."""
        if (self.folder / SINGLE).exists():
            return [self.folder / SINGLE]
        if not (self.folder / INDEX).exists():
            raise ModelFolderError(_no_weights(self.folder))
        names = sorted(set(self._weight_map().values()))
        for name in names:
            if Path(name).name != name:
                raise ModelFolderError(f"{self.folder / INDEX}: {name!r} is not a plain file name")
            if not (self.folder / name).exists():
                raise ModelFolderError(
                    f"{self.folder / name}: missing, one of {len(names)} shards in {INDEX}; download it"
                )
        return [self.folder / name for name in names]

    def _weight_map(self) -> dict[str, str]:
        """The index: tensor -> file name."""
        found = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(found, dict) or not found or not all(isinstance(v, str) for v in found.values()):
            raise ModelFolderError(f"{self.folder / INDEX}: no weight_map of file names; download it again")
        return found

    def _check_index(self) -> None:
        """Every tensor is where the index says."""
        if (self.folder / SINGLE) in self._files:
            return
        for tensor, name in self._weight_map().items():
            if self._home.get(tensor) != self.folder / name:
                raise ModelFolderError(
                    f"{self.folder / name}: has no tensor {tensor}, which {INDEX} puts there; download both again"
                )

    def _check(self, path: Path, tensor: str) -> None:
        """A tensor is floating point and in one file only."""
        dtype = self._files[path].get_slice(tensor).get_dtype()
        if dtype not in FLOATS:
            raise ModelFolderError(
                f"{path}: tensor {tensor} is {dtype}; quantized weights are not read, "
                f"give a directory with {', '.join(FLOATS)}"
            )
        if tensor in self._home:
            raise ModelFolderError(f"{path}: tensor {tensor} is also in {self._home[tensor]}; keep one of them")

    def names(self) -> set[str]:
        """All tensors."""
        return set(self._home)

    def where(self, tensor: str) -> Path:
        """The file that holds a tensor."""
        return self._home[tensor]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape, from its header."""
        return tuple(self._files[self._home[tensor]].get_slice(tensor).get_shape())

    def read(self, tensor: str, slices: Sequence[slice]) -> np.ndarray:
        """A slice of a tensor as float32, nothing else of it read.

        Raises `ModelFolderError` if it holds NaN or infinity.
        """
        path = self._home[tensor]
        part = np.asarray(self._files[path].get_slice(tensor)[tuple(slices)]).astype(np.float32)
        if not np.isfinite(part).all():
            raise ModelFolderError(f"{path}: tensor {tensor} holds NaN or infinity; get whole weights")
        return part


def _open(path: Path):
    """Map a safetensors file, its header checked against its length and its tensors' shapes and extents."""
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if path.is_file() else 0
        raise ModelFolderError(
            f"{path}: {size} bytes that are not a whole safetensors file ({error}); download it again"
        ) from None


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
