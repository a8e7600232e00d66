"""Experts: what a token gets, by the definition, and all kernels alike however tokens are sent, on a mesh too."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.config import MeshConfig
from grpo_jax.models.experts import KERNELS, mixture, route
from grpo_jax.sharding import make_mesh, named

ROOT = Path(__file__).resolve().parents[2]
TPU_COMPILER = {  # alone on this machine, and asking no server what machine it is
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "PYTHONPATH": str(ROOT),
}
B, T, D, F, E, k = 4, 6, 8, 6, 6, 3
AXES = {
    "router": ("embed", None),
    "gate": ("experts", None, "mlp"),
    "up": ("experts", None, "mlp"),
    "down": ("experts", "mlp", None),
}


def layer(seed=0, router=None):
    rng = np.random.default_rng(seed)
    shapes = {"router": (D, E), "gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
    made = {name: jnp.asarray(0.4 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return made if router is None else made | {"router": jnp.asarray(router, jnp.float32)}


def tokens(shape=(B, T), seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, D)), jnp.float32)


def mix(kernel, layer, x, normalize=True, times=k):
    return mixture(x, layer, jax.nn.silu, experts_per_token=times, normalize=normalize, kernel=kernel)


@partial(jax.jit, static_argnums=0)
def value_and_gradients(kernel, layer, x):
    def loss(layer, x):
        out = mix(kernel, layer, x)
        return jnp.sum(jnp.sin(out / 4)), out

    (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(layer, x)
    return out, gradients


def assert_alike(got, expected):
    def alike(path, a, b):
        np.testing.assert_allclose(a, b, atol=4e-6 * max(1, np.abs(b).max()), err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(alike, got, expected)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_by_the_definition(kernel, normalize):
    """Token by token and expert by expert, in float64."""
    w = {name: np.asarray(leaf, np.float64) for name, leaf in layer().items()}
    x = np.asarray(tokens(), np.float64)
    expected = np.zeros_like(x)
    for b, t in np.ndindex(B, T):
        logits = x[b, t] @ w["router"]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-shares)[:k]
        for e in best:
            gate, up = x[b, t] @ w["gate"][e], x[b, t] @ w["up"][e]
            share = shares[e] / (shares[best].sum() if normalize else 1.0)
            expected[b, t] += share * (gate / (1 + np.exp(-gate)) * up) @ w["down"][e]
    np.testing.assert_allclose(mix(kernel, layer(), tokens(), normalize), expected, atol=2e-6)


def one_for_all():
    """Expert 4 is first for every token whatever it says, expert 1 is nobody's."""
    router = 0.1 * np.random.default_rng(3).normal(size=(D, E))
    router[0] = [0, -9, 0, 0, 9, 0]
    return layer(router=router), tokens().at[..., 0].set(2.0)


ROUTINGS = {
    "spread": lambda: (layer(), tokens()),
    "one for all": one_for_all,
    "ties": lambda: (layer(router=np.zeros((D, E))), tokens()),
    "fewer slots than experts": lambda: (layer(), tokens((1, 1))),
    "a token a row": lambda: (layer(), tokens((B, 1))),
}


@pytest.mark.parametrize("kernel", ["ragged", "blocks"])
@pytest.mark.parametrize("name", ROUTINGS)
def test_kernels_agree(kernel, name):
    arguments = ROUTINGS[name]()
    assert_alike(value_and_gradients(kernel, *arguments), value_and_gradients("dense", *arguments))


def test_routings_are_what_they_are_called():
    def sent(name):
        made, x = ROUTINGS[name]()
        _, experts = route(x, made["router"], experts_per_token=k, normalize=True)
        return np.bincount(np.asarray(experts).ravel(), minlength=E)

    crowded = sent("one for all")
    assert crowded[4] == B * T and crowded[1] == 0
    assert list(sent("ties")) == [B * T] * k + [0] * (E - k), "of equal experts the first are taken"
    assert (sent("spread") > 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["spread", "one for all"])
def test_a_mesh_changes_nothing(kernel, name):
    made, x = ROUTINGS[name]()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        placed = {key: jax.device_put(leaf, named(mesh, *AXES[key])) for key, leaf in made.items()}
        got = value_and_gradients(kernel, placed, jax.device_put(x, named(mesh, "batch", None, None)))
    assert_alike(got, value_and_gradients("dense", made, x))


def test_the_kernel_is_chosen_by_the_mesh(monkeypatch):
    """Which may be of devices that are not here: a plan for TPUs is compiled on a CPU."""
    chosen = []
    for name in KERNELS:
        monkeypatch.setitem(KERNELS, name, lambda x, *_, name=name: chosen.append(name) or x)
    for platform in ("cpu", "tpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        mix("auto", layer(), tokens())
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        mix("auto", layer(), tokens())  # still said to be on a GPU
    assert chosen == ["dense", "ragged", "blocks", "dense"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision(kernel):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (layer(), tokens()))
    got = mix(kernel, *half)
    exact = mix("dense", *jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half))
    assert got.dtype == jnp.bfloat16
    assert np.abs(got.astype(jnp.float32) - exact).mean() < 0.01


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler here: pip install -e '.[tpu]'")
def test_compiled_for_tpus(tmp_path, capsys):
    """All kernels compile with gradients on a v5e-8, and those that sort compute at most twice what is needed."""
    command = [sys.executable, str(Path(__file__).with_name("tpu_experts_worker.py")), str(tmp_path / "takes.json")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | TPU_COMPILER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "takes.json").read_text())
    with capsys.disabled():
        for name, takes in result["takes"].items():
            print(
                f"\n{name}: {takes['flops'] / result['needed']:.2f} of the operations, {takes['bytes'] / 2**20:.0f} MiB"
            )
    for name in ("ragged", "blocks"):
        assert result["takes"][name]["flops"] < 2.1 * result["needed"]
