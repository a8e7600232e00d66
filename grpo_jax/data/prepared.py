"""Data sets prepared by TensorFlow Datasets, and a builder for GSM8K from local files. No TensorFlow is
imported."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.text.gsm8k import gsm8k

from grpo_jax.data.json_lines import read_rows
from grpo_jax.data.rows import RowError, gsm8k_answer


class NotPreparedError(RowError):
    """A data set that is not in its place, which is `place`."""

    def __init__(self, message: str, place: Any):
        super().__init__(message)
        self.place = place


SPLITS = ("train", "test", "train_socratic", "test_socratic")

with tfds.core.registered.skip_registration():

    class LocalGsm8k(gsm8k.Gsm8k):
        """TFDS's gsm8k, made from train.jsonl and test.jsonl in `manual_dir` instead of a download.

        On disk it is plain gsm8k/1.0.0, which `tfds.data_source("gsm8k", data_dir=...)` reads.
        """

        name = "gsm8k"
        pkg_dir_path = None
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Put train.jsonl and test.jsonl of GSM8K into manual_dir."

        def _split_generators(self, dl_manager):
            files = _local_files(Path(dl_manager.manual_dir))
            return {split: self._generate_examples(path) for split, path in files.items()}

        def _generate_examples(self, path):
            for line, row in read_rows(Path(path)):
                yield int(line) - 1, _local_example(row, f"{path}:{line}")


def read_split(
    name: str, split: str, data_dir: str | None, manual_dir: str | None, download: bool
) -> Sequence[dict[str, Any]]:
    """Return the rows of a split, random access, texts decoded.

    Raises `RowError` if there is no such builder or split, or nothing is prepared and nothing may be fetched.
    """
    builder = _local_gsm8k(name, data_dir, Path(manual_dir)) if manual_dir else _builder(name, data_dir)
    if not builder.info.splits:
        _prepare(builder, name, download)
    known = sorted(builder.info.splits)
    try:
        return Rows(builder.as_data_source(split=split))
    except (ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RowError(f"tfds {name}: split {split!r}: {reason} (splits: {', '.join(known)})") from error


class Rows(Sequence):
    """A data source whose texts are `str` instead of bytes and whose numbers are Python's."""

    def __init__(self, source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return plain(self.source[index])
        except UnicodeDecodeError as error:
            return RowError(f"row {index}: a text is not UTF-8: {error}")


def plain(value: Any) -> Any:
    """Return the value with bytes decoded and NumPy arrays and numbers made Python's."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        # gsm8k is registered by the import above, which `tfds.builder` alone does not do.
        return tfds.builder(name, data_dir=data_dir, try_gcs=False, file_format="array_record")
    except Exception as error:  # each failure has a class of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RowError(f"tfds {name}: {first} (data_dir {data_dir or 'not given'})") from error


def _prepare(builder: tfds.core.DatasetBuilder, name: str, download: bool) -> None:
    if not download:
        raise NotPreparedError(
            f"tfds {name}: nothing is prepared in {builder.data_path}; set source.data_dir to where it is, "
            f"source.download to true to fetch it, or (gsm8k) source.manual_dir to a directory with "
            f"train.jsonl",
            builder.data_path,
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RowError(f"tfds {name}: cannot be fetched: {first}") from error


def _local_gsm8k(name: str, data_dir: str | None, manual_dir: Path) -> tfds.core.DatasetBuilder:
    if name.split("/")[0].split(":")[0] != "gsm8k":
        raise RowError(f"tfds {name}: source.manual_dir is for gsm8k only; remove it, or use the source jsonl")
    digest = _digest(_local_files(manual_dir))
    builder = LocalGsm8k(data_dir=data_dir, file_format="array_record")
    record = Path(builder.data_path) / "manual_files.sha256"
    if not builder.info.splits:
        settings = tfds.download.DownloadConfig(manual_dir=str(manual_dir))
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it would speak of a download
            builder.download_and_prepare(download_config=settings)
        record.write_text(digest)
    if not record.is_file() or record.read_text() != digest:
        raise RowError(
            f"tfds {name}: {builder.data_path} was prepared from other files than those in {manual_dir}; "
            f"remove it, give another source.data_dir, or leave source.manual_dir out"
        )
    return builder


def _local_files(manual_dir: Path) -> dict[str, Path]:
    files = {split: manual_dir / f"{split}.jsonl" for split in SPLITS}
    found = {split: path for split, path in files.items() if path.is_file()}
    if not found:
        what = "has no train.jsonl or test.jsonl" if manual_dir.is_dir() else "does not exist"
        raise RowError(f"source.manual_dir: {manual_dir} {what}; give the directory of GSM8K's files")
    return found


def _digest(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for split, path in files.items():
        digest.update(split.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _local_example(row: Any, name: str) -> dict[str, str]:
    if isinstance(row, RowError):
        raise row
    split = gsm8k_answer(row["answer"]) if isinstance(row, dict) and {"question", "answer"} <= row.keys() else None
    if split is None:
        raise RowError(f"{name}: expected {{question, answer: 'rationale #### 18'}}; is this a file of GSM8K?")
    annotation, short_answer = split
    return {
        "question": row["question"],
        "answer": row["answer"],
        "annotation": annotation,
        "short_answer": short_answer,
    }
