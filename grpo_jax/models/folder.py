"""A Hugging Face model directory: found, and its JSON read; nothing of it is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOWNLOADS = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "vocab*", "merges.txt", "*.model")
LONGEST_MESSAGE = 800
MOST_JSON = 2**28  # bytes; an index of a million tensors has half as many


class ModelFolderError(ValueError):
    """A model directory that cannot be used; the message names file, tensor, both values and the remedy.

    Names come from the directory: what a terminal would obey is escaped, and what has no end is cut.
    """

    exit_code = 2

    def __init__(self, message: str):
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


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


def check_is_model(folder: Path, name: str | Path) -> None:
    """Raise `ModelFolderError`, with what to give instead, for the directory of an adapter, or of a run of ours."""
    if (folder / "config.json").exists():
        return
    if (folder / "adapter_config.json").is_file():
        raise ModelFolderError(f"{name}: a PEFT adapter, not a model; {_give_both(folder, 'the adapter')}")
    if (folder / "config.yaml").is_file() and (folder / "tokenizer").is_dir():
        models, adapters = (sorted(folder.glob(stem)) for stem in ("hf*", "adapter*"))
        if models:
            remedy = f"give what it has left, {models[0]}"
        elif adapters:
            remedy = f"it has left an adapter, {_give_both(adapters[0], str(adapters[0]))}"
        else:
            remedy = "it has left no policy yet; let it finish"
        raise ModelFolderError(f"{name}: the output_dir of a run, not a model directory; {remedy}")


def _give_both(adapter: Path, called: str) -> str:
    """What to give where a model is asked for and there is an adapter."""
    base = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    return f"give its base ({base}) as model.model_name_or_path, and {called} as model.lora.adapter_name_or_path"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `ModelFolderError` if it is absent, broken, far too large or no object."""
    if not path.exists():
        raise ModelFolderError(f"{path}: missing; a Hugging Face model directory has this file")
    check_regular(path, MOST_JSON)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, numbers of thousands of digits
        raise ModelFolderError(f"{path}: not valid JSON ({error}); download the file again") from None
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: holds a {type(value).__name__}, not an object; download it again")
    return value


def check_regular(path: Path, most: int | None = None) -> None:
    """Refuse what is no file, such as a pipe that would never end, and a file of more than `most` bytes."""
    if not path.is_file():
        raise ModelFolderError(f"{path}: not a regular file; a model directory holds files and links to files")
    size = path.stat().st_size
    if most is not None and size > most:
        raise ModelFolderError(
            f"{path}: {size} bytes, more than the {most} that such a file can need; download it again"
        )
