"""Attention of whole sequences: every kernel gives what plain attention gives, forward and backward, on a mesh too."""

import dataclasses
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
from grpo_jax.models import attention
from grpo_jax.models.attention import AttentionError, automatic, blockwise, choose, splash
from grpo_jax.models.logprobs import completion_logprobs
from grpo_jax.models.ops import KeyValues, attend
from grpo_jax.sharding import make_mesh, named
from grpo_jax.types import Sequences
from tests import tiny
from tests.models.test_experts import ROOT, TPU_COMPILER

KERNELS = {"blocks": partial(blockwise, piece=16), "splash": partial(splash, interpret=True)}
SLOW = [pytest.param("splash", marks=pytest.mark.slow), "blocks"]  # the kernel's interpreter takes seconds to compile
# P, G, Tp (0: packed rows, no prompt), T, N, K, H
SHAPES = {
    "groups": (2, 3, 20, 40, 4, 2, 16),
    "one key-value head, a prompt of more than a tile": (1, 2, 130, 70, 4, 1, 8),
    "packed, queries of two tiles": (2, 1, 0, 150, 2, 2, 8),
}


def case(P, G, Tp, T, N, K, H, seed=0):
    """Queries, and blocks of keys: left-padded prompts with right-padded completions, or several segments a row."""
    rng, B = np.random.default_rng(seed), P * G

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    blocks = []
    if Tp:
        lengths = rng.integers(1, Tp + 1, P)
        before = (np.arange(Tp) >= Tp - lengths[:, None]).astype(np.int32)
        places = np.maximum(np.cumsum(before, 1) - 1, 0)
        blocks.append(KeyValues(random(P, K, Tp, H), random(P, K, Tp, H), *map(jnp.int32, (places, before))))
        segments = (np.arange(T) < rng.integers(0, T + 1, B)[:, None]).astype(np.int32)
        segments[0] = 0  # a row that is all padding
        positions = np.repeat(lengths, G)[:, None] + np.arange(T)
    else:
        cuts = np.sort(rng.integers(1, T, (B, 3)), 1)
        number = 1 + (np.arange(T)[:, None] >= cuts[:, None]).sum(-1)  # 1 to 4
        starts = np.concatenate([np.zeros((B, 1), int), cuts], 1)
        positions = np.arange(T) - np.take_along_axis(starts, number - 1, 1)
        segments = np.where(number == 4, 0, number)
    positions, segments = jnp.int32(positions), jnp.int32(segments)
    blocks.append(KeyValues(random(B, K, T, H), random(B, K, T, H), positions, segments))
    return random(B, T, N, H), positions, segments, blocks


@partial(jax.jit, static_argnums=0)
def value_and_gradients(kernel, q, positions, segments, blocks):
    def loss(q, values):
        seen = [block.replace(k=k, v=v) for block, (k, v) in zip(blocks, values, strict=True)]
        out = kernel(q, positions, segments, seen)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

    (_, out), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(q, [(b.k, b.v) for b in blocks])
    return out, gradients


def assert_alike(got, expected, atol=1e-5):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), atol=atol)


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [("blocks", shape) for shape in SHAPES]
    + [("splash", "packed, queries of two tiles")]
    + [pytest.param("splash", shape, marks=pytest.mark.slow) for shape in list(SHAPES)[:2]],
)
def test_as_plain_attention(shape, kernel):
    made = case(*SHAPES[shape])
    assert_alike(value_and_gradients(KERNELS[kernel], *made), value_and_gradients(attend, *made))


@pytest.mark.parametrize("kernel", KERNELS)
def test_scale_and_softcap(kernel):
    made, more = case(*SHAPES["groups"]), {"scale": 0.7, "cap": 2.0}
    got = value_and_gradients(partial(KERNELS[kernel], **more), *made)
    assert_alike(got, value_and_gradients(partial(attend, **more), *made))
    assert not np.allclose(got[0], value_and_gradients(attend, *made)[0], atol=1e-2)


def test_windows():
    """Pieces have them, the TPU kernel says that it has none."""
    made = case(*SHAPES["groups"])
    got = value_and_gradients(partial(KERNELS["blocks"], window=5), *made)
    assert_alike(got, value_and_gradients(partial(attend, window=5), *made))
    with pytest.raises(AttentionError, match="window; choose blocks or xla"):
        splash(*made, window=5)
    with pytest.raises(ValueError, match="attention_kernel is splash"):
        dataclasses.replace(tiny.decoder().config, windows=(0, 4), attention_kernel="splash")


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_cache_with_other_keys_is_refused(kernel):
    q, positions, segments, blocks = case(*SHAPES["groups"])
    with pytest.raises(AttentionError, match="39 queries over 40 keys"):
        KERNELS[kernel](q[:, 1:], positions[:, 1:], segments[:, 1:], blocks)


@pytest.mark.parametrize("kernel", SLOW)
def test_half_precision(kernel):
    """Queries are scaled before the product: the scale must not be rounded to half precision first."""
    q, positions, segments, blocks = case(1, 2, 20, 40, 2, 1, 6)  # 1 / sqrt(6) is no short number
    blocks = [block.replace(k=block.k.astype(jnp.bfloat16), v=block.v.astype(jnp.bfloat16)) for block in blocks]
    got = value_and_gradients(KERNELS[kernel], q.astype(jnp.bfloat16), positions, segments, blocks)[0]
    assert got.dtype == jnp.bfloat16
    exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, blocks)
    assert_alike(got, attend(q.astype(jnp.bfloat16).astype(jnp.float32), positions, segments, exact), atol=0.03)


@pytest.mark.parametrize("kernel", SLOW)
def test_a_mesh_changes_nothing(kernel):
    q, positions, segments, blocks = made = case(4, 1, 10, 20, 4, 2, 8)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        rows = [jax.device_put(x, named(mesh, "batch")) for x in (positions, segments)]
        heads = named(mesh, "batch", "kv_heads")
        placed = [
            KeyValues(
                *(jax.device_put(x, heads) for x in (b.k, b.v)),
                *(jax.device_put(x, named(mesh, "batch")) for x in (b.positions, b.segments)),
            )
            for b in blocks
        ]
        got = value_and_gradients(
            KERNELS[kernel], jax.device_put(q, named(mesh, "batch", None, "heads")), *rows, placed
        )
    assert_alike(got, value_and_gradients(attend, *made))


def test_the_rule():
    plain = tiny.decoder().config
    windowed = dataclasses.replace(plain, windows=(0, 4))
    assert [automatic(plain, device, 512) for device in ("cpu", "tpu", "gpu")] == ["blocks", "splash", "xla"]
    assert automatic(windowed, "tpu", 512) == "xla" and automatic(windowed, "cpu", 512) == "blocks"
    assert {automatic(plain, device, 511) for device in ("cpu", "tpu", "gpu")} == {"xla"}
    assert choose(plain, 512, own=True) is blockwise
    assert choose(plain, 512, own=False) is attend
    asked = dataclasses.replace(plain, attention_kernel="blocks")
    assert choose(asked, 2, own=True) is blockwise and choose(asked, 1, own=True) is attend
    with pytest.raises(AttentionError, match="splash is a kernel for TPUs, and the devices are of platform cpu"):
        choose(dataclasses.replace(plain, attention_kernel="splash"), 2, own=True)


@pytest.mark.parametrize("kernel", SLOW)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_model_and_its_gradients(kernel, remat, monkeypatch):
    """Through the whole decoder, scanned: prompts as they are prefilled, completions behind them."""
    used = []

    def counted(*arguments, **about):
        used.append(kernel)
        return KERNELS[kernel](*arguments, **about)

    monkeypatch.setitem(attention.KERNELS, kernel, counted)
    monkeypatch.setattr(attention, "platform_in_context", lambda: "tpu")
    params, batch, rows = tiny.host_params(), tiny.prompts(P=2), completions(2, 20)

    def scored(name):
        model = tiny.decoder(attention_kernel=name, remat=remat)

        def loss(params):
            return completion_logprobs(model, params, batch, rows, chunk=8)[0].sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    got = scored(kernel)
    assert used == [kernel] * len(used) and len(used) >= 2, "of prompts and of completions"
    assert_alike(got, scored("xla"), atol=3e-5)


def completions(P, Tc, G=2):
    rng, starts = np.random.default_rng(3), np.asarray(tiny.prompts(P=P).sequences.positions[:, -1]) + 1
    tokens = rng.integers(2, tiny.V, (P * G, Tc)).astype(np.int32)
    segments = (np.arange(Tc) < rng.integers(1, Tc + 1, P * G)[:, None]).astype(np.int32)
    return Sequences(tokens, (np.repeat(starts, G)[:, None] + np.arange(Tc)).astype(np.int32), segments)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler here: pip install -e '.[tpu]'")
def test_compiled_for_tpus(tmp_path, capsys):
    """With gradients on a v5e-8, of a 0.5B model: the kernel moves a fraction of what plain attention does."""
    command = [sys.executable, str(Path(__file__).with_name("tpu_attention_worker.py")), str(tmp_path / "takes.json")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | TPU_COMPILER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "takes.json").read_text())
    with capsys.disabled():
        for name, takes in result.items():
            moved, floor = takes["bytes"] / 1e9, takes["floor"] / 1e9
            print(f"\n{name}: {moved:.2f} GB moved (floor {floor:.2f}), {takes['temporaries'] / 2**20:.0f} MiB", end="")
    plain, splash = result["training, xla"], result["training, splash"]
    assert splash["bytes"] < plain["bytes"] / 4 and splash["temporaries"] < plain["temporaries"] / 4
    assert result["training, blocks"]["temporaries"] < plain["temporaries"] / 2
    assert result["decode, xla"]["bytes"] < 1.3 * result["decode, xla"]["floor"]
