"""Loading in pieces: memory that does not grow with the model, slices read once, types, and experts one by one."""

import collections
import dataclasses
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import TINY, randomized

from grpo_jax.config import MeshConfig
from grpo_jax.models import export, loading
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.hf import _family, check_params, load_params, read_config, save_params
from grpo_jax.models.layout import stored_tensors
from grpo_jax.models.loading import named_leaves
from grpo_jax.models.parameters import abstract_params
from grpo_jax.models.weights import WeightFiles
from grpo_jax.sharding import make_mesh

TYPES = {"float64": np.float64, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
BIG = dataclasses.replace(
    TINY, vocab_size=32768, hidden_size=1024, num_layers=36, num_heads=16, num_kv_heads=8, head_dim=64, mlp_size=3072
)  # 0.5 billion numbers
MOE = dataclasses.replace(
    TINY, family="qwen3_moe", qkv_bias=False, qk_norm="head", num_layers=3, num_experts=4, experts_per_token=2
)
SMALL = dataclasses.replace(
    TINY, vocab_size=16384, hidden_size=256, num_layers=64, num_heads=8, num_kv_heads=4, head_dim=32, mlp_size=768
)


def write_random(folder, config, mesh, dtype, shard_bytes=200_000_000):
    """A model directory with random numbers, written without holding it in memory; returns its bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_family(config.family).hf_config(config)))
    names = _family(config.family).NAMES
    leaves = named_leaves(abstract_params(config, mesh))
    tensors = [t for name, leaf in leaves.items() for t in stored_tensors(names[name], leaf.shape)]
    block = np.random.default_rng(0).normal(size=2**20).astype(TYPES[dtype])
    numbers = np.cumsum([np.prod(shape) for _, shape in tensors]) * block.itemsize
    weight_map = {}
    for number, shard in itertools.groupby(range(len(tensors)), lambda i: numbers[i] // shard_bytes):
        file = f"model-{number}.safetensors"
        shard = [tensors[i] for i in shard]
        save_file({name: np.resize(block, shape) for name, shape in shard}, folder / file)
        weight_map |= {name: file for name, _ in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return int(numbers[-1])


def largest(config, mesh):
    """Bytes of the largest tensor in float32."""
    names, leaves = _family(config.family).NAMES, named_leaves(abstract_params(config, mesh))
    shapes = [shape for name, leaf in leaves.items() for _, shape in stored_tensors(names[name], leaf.shape)]
    return 4 * max(int(np.prod(shape)) for shape in shapes)


def measured(folder, dtype, devices, piece=loading.PIECE):
    """What `loading_worker.py` finds: loaded for the first time, compilation included, and again."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed is given back, and counts when it is taken again
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    worker = Path(__file__).with_name("loading_worker.py")
    command = [sys.executable, worker, folder, dtype, piece]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def beyond_arrays(size, stored, found, budget):
    """Print what was found, and return the bytes of host memory beyond the arrays, first and again."""
    first, again = (growth["Anon"] - found["arrays"] for growth in found["growth"])
    seconds = found["seconds"]
    print(
        f"\n{size / 1e6:.0f} MB of {stored} to {found['arrays'] / 1e6:.0f} MB of {' and '.join(found['types'])} on "
        f"{found['devices']} devices: host memory beyond the arrays {first / 1e6:.0f} MB with compilation, "
        f"{again / 1e6:.0f} MB without (two of the largest tensors in float32: {budget / 1e6:.0f} MB); "
        f"{seconds[0]:.1f} s, then {seconds[1]:.1f} s ({size / 1e6 / seconds[1]:.0f} MB/s)"
    )
    return first, again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "dtype", "devices"),
    [("bfloat16", "float32", 1), ("bfloat16", "bfloat16", 1), ("bfloat16", "float32", 8), ("float32", "float32", 4)],
)
def test_memory_with_a_gigabyte(tmp_path, mesh, stored, dtype, devices):
    size = write_random(tmp_path / "model", BIG, mesh, stored)
    found, budget = measured(tmp_path / "model", dtype, devices), 2 * largest(BIG, mesh)
    shutil.rmtree(tmp_path / "model")  # pytest keeps what the last runs wrote
    assert size > 1e9 and max(beyond_arrays(size, stored, found, budget)) < budget


def test_memory_with_a_small_model(tmp_path, mesh):
    """In pieces of a megabyte: a stack of layers (50 MB) on the host would be seen."""
    size = write_random(tmp_path / "model", SMALL, mesh, "bfloat16", 20_000_000)
    found, budget = measured(tmp_path / "model", "float32", 2, 2**20), 2 * largest(SMALL, mesh)
    assert beyond_arrays(size, "bfloat16", found, budget)[1] < budget


@pytest.fixture(params=[TINY, MOE], ids=["dense", "experts"])
def config(request):
    return request.param


def equal(a, b):
    """Equal bit by bit, in types and in shardings."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


MESHES = {
    "one": (MeshConfig(), 1),
    "fsdp": (MeshConfig(fsdp=4), 4),
    "all": (MeshConfig(data=2, fsdp=2, tensor=2), 8),
}


@pytest.mark.parametrize("piece", [1, 3000])
@pytest.mark.parametrize("layout", MESHES)
def test_pieces_of_any_size_give_the_same(tmp_path, mesh, config, layout, piece, monkeypatch):
    """Rows, layers and experts that a piece does not divide overlap; on any mesh."""
    sizes, devices = MESHES[layout]
    target = make_mesh(sizes, jax.devices()[:devices])
    params = randomized(config, mesh)
    folder = save_params(params, config, None, tmp_path / "m", max_shard_bytes=6000)
    monkeypatch.setattr(loading, "PIECE", piece)
    loaded = load_params(folder, read_config(folder), target)
    equal(loaded, params)
    abstract = abstract_params(config, target)
    assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(lambda x: x.sharding, abstract)


def test_every_number_is_read_once(tmp_path, mesh, config, monkeypatch):
    """However many devices hold it; and the programs are as many as there are shapes, not layers."""
    folder = save_params(randomized(config, mesh), config, None, tmp_path / "m")
    seen = collections.defaultdict(lambda: 0)
    read = WeightFiles.read

    def counted(self, name, slices):
        part = read(self, name, slices)
        seen[name] += part.size
        return part

    monkeypatch.setattr(WeightFiles, "read", counted)
    before = loading._write._cache_size()
    load_params(folder, config, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    assert seen == {name: tensor.size for name, tensor in load_file(folder / "model.safetensors").items()}
    assert loading._write._cache_size() - before <= 13
    seen.clear()
    check_params(folder, config, mesh)
    assert not seen


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_types(tmp_path, mesh, config, stored, dtype):
    """Exact wherever the type allows it: subnormal numbers and signed zeros too. Norms and biases stay float32."""
    folder = save_params(randomized(config, mesh), config, None, tmp_path / "m")
    tensors = {k: v.astype(TYPES[stored]) for k, v in load_file(folder / "model.safetensors").items()}
    smallest = np.float64(ml_dtypes.finfo(TYPES[stored]).smallest_subnormal)
    for tensor in tensors.values():
        tensor.reshape(-1)[:4] = [-0.0, 5e-324 if stored == "float64" else smallest, -3 * smallest, 1 / 3]
    save_file(tensors, folder / "model.safetensors")
    loaded = named_leaves(load_params(folder, config, mesh, dtype=dtype))
    for name, leaf in loaded.items():
        own = name.rpartition("_")[2] in ("norm", "bias")
        assert leaf.dtype == (jnp.bfloat16 if dtype == "bfloat16" and not own else jnp.float32), name
        sources = [tensors[n] for n, _ in stored_tensors(_family(config.family).NAMES[name], leaf.shape)]
        bits = f"u{leaf.dtype.itemsize}"  # in the file they lie in another order: compared sorted
        expected = [np.sort(t.reshape(-1).astype(np.float32).astype(leaf.dtype).view(bits)) for t in sources]
        got = np.sort(np.asarray(leaf).reshape(len(sources), -1).view(bits), axis=1)
        np.testing.assert_array_equal(got, expected, name)


def test_bfloat16_is_loaded_as_it_is(tmp_path, mesh, config):
    """From a bfloat16 file the frozen base is the file: written again, every byte is the same."""
    first = save_params(randomized(config, mesh), config, None, tmp_path / "a", dtype="bfloat16")
    base = load_params(first, config, mesh, dtype="bfloat16")
    again = save_params(base, config, None, tmp_path / "b", dtype="bfloat16")
    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_types_may_differ_from_tensor_to_tensor(tmp_path, mesh, config):
    params = randomized(config, mesh)
    folder = save_params(params, config, None, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    types = itertools.cycle([np.float32, np.float64])
    save_file({name: t.astype(next(types)) for name, t in tensors.items()}, folder / "model.safetensors")
    equal(load_params(folder, config, make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])), params)
    halves = itertools.cycle([np.float32, ml_dtypes.bfloat16, np.float16])
    save_file({name: t.astype(next(halves)) for name, t in tensors.items()}, folder / "model.safetensors")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4e-3), load_params(folder, config, mesh), params)


def test_a_missing_expert_is_named(tmp_path, mesh):
    folder = save_params(randomized(MOE, mesh), MOE, None, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    lost = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"1 of \d+ tensors are missing: {name}; give a complete model"):
        check_params(folder, MOE, mesh)
    save_file(tensors | {name: np.ascontiguousarray(lost.T)}, folder / "model.safetensors")
    with pytest.raises(
        ModelFolderError, match=rf"model\.safetensors: tensor {name} has shape \[16, 20\], .* \[20, 16\]"
    ):
        check_params(folder, MOE, mesh)
    lost[3, 4] = np.nan
    save_file(tensors | {name: lost}, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=rf"tensor {name} holds NaN or infinity"):
        load_params(folder, MOE, mesh)


def test_export_fetches_one_layer_at_a_time(tmp_path, mesh, config, monkeypatch):
    """From any mesh the same bytes, and no stack of layers on the host."""
    params = randomized(config, mesh)
    save_params(params, config, None, tmp_path / "a", max_shard_bytes=6000)
    fetched = []
    whole = export.global_to_host
    monkeypatch.setattr(export, "global_to_host", lambda x: (fetched.append(x.size), whole(x))[1])
    target = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spread = load_params(tmp_path / "a", config, target)
    save_params(spread, config, None, tmp_path / "b", max_shard_bytes=6000)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    layer = max(leaf.size // len(leaf) for leaf in jax.tree.leaves(params["layers"]))
    assert max(fetched) == max(layer, params["embed"].size)


def test_adapters_are_not_dropped(tmp_path, mesh):
    params = randomized(TINY, mesh)
    with pytest.raises(ValueError, match=r"params: lora has no place in these files; merge adapters"):
        save_params({**params, "lora": {"q": {"a": params["embed"]}}}, TINY, None, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_read_their_own_and_write_one_directory(tmp_path, mesh):
    folder = save_params(randomized(MOE, mesh), MOE, None, tmp_path / "m", max_shard_bytes=6000)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, str(Path(__file__).with_name("loading_processes.py"))]
    both = [
        subprocess.Popen([*command, str(i), str(port), str(folder)], env=environment, stdout=-1, stderr=-1, text=True)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    for number, (out, _) in enumerate(outputs):
        found = json.loads(out.splitlines()[-1])
        assert found["experts"] == [2 * number, 2 * number + 1], "of those on its devices"
        assert "again: exists and is not overwritten" in found["refused"] or number == 1
        assert found["refused"]
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
