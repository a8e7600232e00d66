"""Small models and batches that the tests of this folder share."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, ragged, randomized

from grpo_jax.config import MeshConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Prompts


@pytest.fixture(scope="session")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="session")
def params(mesh):
    return randomized(TINY, mesh)


@pytest.fixture(scope="session", params=["scan", "loop"])
def model(request):
    return Decoder(dataclasses.replace(TINY, scan_layers=request.param == "scan"))


@pytest.fixture(scope="session")
def forward():
    """The plain forward pass, compiled once for each model and shape."""

    @partial(jax.jit, static_argnums=0)
    def run(model, params, sequences):
        return model.apply({"params": params}, sequences)[0]

    return run


@pytest.fixture(scope="session")
def group():
    """Two prompts of unequal length, three completions each of unequal length, and the same as whole rows."""
    rng = np.random.default_rng(0)
    P, G, Tp, Tc = 2, 3, 7, 5
    prompts = ragged(rng.integers(0, 34, (P, Tp)), [4, 7], pad=5)
    starts = np.repeat([4, 7], G)
    lengths = np.array([5, 1, 3, 4, 5, 2])
    completions = ragged(rng.integers(0, 34, (P * G, Tc)), lengths, pad=9, side="right")
    moved = jnp.where(completions.segments > 0, completions.positions + starts[:, None], 0)
    completions = completions.replace(positions=moved)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, G, axis=0), prompts)
    whole = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), repeated, completions)
    return Prompts(prompts, jnp.arange(P)), completions, whole
