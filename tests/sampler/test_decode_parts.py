"""Rows decoded part by part: the same tokens on any mesh, in the batch's order, and parts that are whole."""

import jax
import numpy as np
import pytest

from grpo_jax.sampler.sample import DecodeError, decode_parts, sample_in_parts
from grpo_jax.sharding import batch_shards, host_to_global, named
from tests import tiny

P, G = 16, 2
MODEL = tiny.decoder()
MESHES = {"1 device": {}, "8 devices": {"data": 2, "fsdp": 2, "tensor": 2}}


@pytest.fixture(scope="module", params=MESHES)
def rolled(request):
    """Rollouts by the rows decoded at once, on a mesh."""
    mesh = tiny.mesh_of(**MESHES[request.param])
    settings = tiny.sampling(G=G)
    batch = host_to_global(tiny.prompts(P=P), named(mesh, "batch"))
    params = tiny.on_mesh(tiny.host_params(), MODEL, mesh)

    def roll(decode_rows):
        parts = decode_parts(P, G, decode_rows, shards=batch_shards(mesh))

        @jax.jit
        def program(params, prompts, key):
            return sample_in_parts(MODEL, params, prompts, key, sampling=settings, parts=parts)

        with jax.set_mesh(mesh):
            return program(params, batch, jax.random.key(0))

    return mesh, {rows: roll(rows) for rows in (0, 8)}


def test_the_tokens_are_the_same(rolled):
    _, rollouts = rolled
    whole, parts = rollouts[0], rollouts[8]
    assert 0 < whole.finished.sum() < P * G
    assert jax.tree.structure(parts) == jax.tree.structure(whole)
    np.testing.assert_allclose(parts.logprobs, whole.logprobs, atol=1e-5)
    exact = [(r.prompts, r.completions, r.completion_mask, r.finished) for r in (parts, whole)]
    jax.tree.map(np.testing.assert_array_equal, *exact)


def test_each_device_keeps_its_rows(rolled):
    mesh, rollouts = rolled
    for rollout in rollouts.values():
        assert rollout.completions.tokens.sharding.is_equivalent_to(named(mesh, "batch"), 2)
        assert rollout.finished.sharding.is_equivalent_to(named(mesh, "batch"), 1)


def test_parts_are_equal_and_of_whole_groups():
    assert decode_parts(16, 64, 0) == decode_parts(16, 64, 1024) == 1
    assert decode_parts(16, 64, 256) == 4
    assert decode_parts(16, 64, 512, shards=8) == 2
    assert decode_parts(6, 4, 0, shards=4) == 1, "all at once is never refused here"
    for rows in (100, 32, 192, 2048):
        with pytest.raises(DecodeError, match=r"choose one of 64, 128, 256, 512, 1024, or 0"):
            decode_parts(16, 64, rows)
    with pytest.raises(DecodeError, match=r"8 batch shard.*choose one of 512, 1024"):
        decode_parts(16, 64, 256, shards=8)
