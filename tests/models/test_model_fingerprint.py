"""A model is known again wherever it lies and however its files are cut, and taken for no other."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import TINY, randomized

from grpo_jax.models.fingerprint import model_fingerprint
from grpo_jax.models.hf import save_params
from tests.make_random_model import make_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mesh):
    path = tmp_path_factory.mktemp("saved") / "model"
    return save_params(randomized(TINY, mesh), TINY, make_tokenizer(300), path, dtype="bfloat16")


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def changed(one, other) -> set[str]:
    a, b = model_fingerprint(one), model_fingerprint(other)
    assert a.keys() == b.keys() == {"weights", "config", "tokenizer"}
    return {name for name in a if a[name] != b[name]}


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_same_model(saved, copy, mesh, tmp_path):
    """Elsewhere, in other shards, described by another version of transformers."""
    edit(copy, transformers_version="9.9", _name_or_path="elsewhere")
    assert changed(saved, copy) == set()
    params = randomized(TINY, mesh)
    cut = save_params(params, TINY, make_tokenizer(300), tmp_path / "cut", dtype="bfloat16", max_shard_bytes=3000)
    assert len(list(cut.glob("*.safetensors"))) > 3 and changed(saved, cut) == set()


@pytest.mark.parametrize("share", [1.0, 0.05])
def test_trained_on(saved, copy, share):
    """A step of training changes numbers everywhere; in bfloat16 a small one only a few of them."""
    rng, path = np.random.default_rng(0), copy / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        moved = rng.random(tensor.shape) < share
        tensors[name] = np.where(moved, tensor.astype(np.float32) * 1.01, tensor).astype(ml_dtypes.bfloat16)
    save_file(tensors, path)
    assert changed(saved, copy) == {"weights"}


def test_other_types_names_settings_and_tokenizers(saved, copy, mesh, tmp_path):
    edit(copy, rms_norm_eps=1e-5)
    assert changed(saved, copy) == {"config"}
    shutil.copy(saved / "config.json", copy)
    tokenizer = copy / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"id": 299', '"id": 298'))
    assert changed(saved, copy) == {"tokenizer"}
    shutil.copy(saved / "tokenizer.json", copy)
    tensors = load_file(copy / "model.safetensors")
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, copy / "model.safetensors")
    assert changed(saved, copy) == {"weights"}
