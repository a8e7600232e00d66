"""Problems from TensorFlow Datasets, read without TensorFlow: `tfds.data_source` on array_record files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grpo_jax.config import config
from grpo_jax.data.rows import RowConfig

if TYPE_CHECKING:
    from grpo_jax.types import Problem


@config
class Config(RowConfig):
    """A split of a TFDS builder, such as gsm8k."""

    name: str = "gsm8k"
    """The builder: name, name/config or name/config:version."""
    split: str = "train"
    """A split, or a slice such as train[:10%]."""
    data_dir: str | None = None
    """Where prepared data sets lie; None: TFDS's own place in the home directory."""
    manual_dir: str | None = None
    """For gsm8k: a directory with train.jsonl and test.jsonl, prepared into `data_dir` on first use."""
    download: bool = False
    """Whether the builder may fetch what is not in `data_dir`."""


def build(config: Config, seed: int) -> Sequence[Problem]:
    """Return the split's problems in TFDS's fixed order; `seed` changes nothing.

    Raises `RowError` if the builder, its data or the split is not there, or a row is no problem.
    """
    from grpo_jax.data.prepared import read_split
    from grpo_jax.data.rows import problems_from_rows

    del seed
    name = f"{config.name}/{config.split}"
    rows = read_split(config.name, config.split, config.data_dir, config.manual_dir, config.download)
    return problems_from_rows(((str(i), rows[i]) for i in range(len(rows))), config, name)
