"""Problems from the Hugging Face hub, or a local data set in its form, through the optional package
`datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_jax.config import config
from grpo_jax.data.rows import RowConfig

if TYPE_CHECKING:
    from grpo_jax.types import Problem


@config
class Config(RowConfig):
    """A split of a data set by hub name, directory or saved data set."""

    path: str
    """A hub name such as openai/gsm8k, a directory of data files, or a directory written by save_to_disk."""
    name: str | None = None
    """The data set's configuration, such as main."""
    split: str = "train"
    """A split, or a slice such as train[:10%]."""
    revision: str | None = None
    """A commit or tag of the hub."""


def build(config: Config, seed: int) -> Sequence[Problem]:
    """Return the split's problems in their order; `seed` changes nothing.

    Raises `RowError` if the package `datasets`, the data set or the split is missing, or a row is no problem.
    """
    from grpo_jax.data.rows import problems_from_rows

    del seed
    name = f"{config.path}/{config.split}"
    rows = load_rows(config)
    return problems_from_rows(((str(i), row) for i, row in enumerate(rows)), config, name)


def load_rows(config: Config):
    """Return the rows of the split as the data set has them; raises `RowError`."""
    from pathlib import Path

    from grpo_jax.data.rows import RowError

    try:
        import datasets
    except ImportError as error:
        raise RowError(
            f"source hf: reading {config.path!r} needs the package datasets: "
            f'python -m pip install -e ".[hub]" (or: python -m pip install "datasets>=4.0")'
        ) from error
    path = Path(config.path).expanduser()
    try:
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))[config.split]
        if (path / "dataset_info.json").is_file():
            return datasets.load_from_disk(str(path))
        place = str(path) if path.exists() else config.path
        return datasets.load_dataset(place, config.name, split=config.split, revision=config.revision)
    except Exception as error:  # each failure has a class of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RowError(
            f"source hf: {config.path!r}, split {config.split!r}: {first}; "
            f"check source.path, source.name and source.split"
        ) from error
