"""The train state: its noise is threefry's whatever the environment prefers, its moments lie as the parameters do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.sampler.draw import row_keys
from grpo_jax.sharding import run_key
from grpo_jax.training.state import abstract_state, create_state
from tests import tiny


@pytest.fixture
def rbg():
    jax.config.update("jax_default_prng_impl", "rbg")
    yield
    jax.config.update("jax_default_prng_impl", "threefry2x32")


def test_noise_does_not_depend_on_the_environment(rbg):
    """With rbg a row's noise would depend on the rows beside it."""
    key = run_key(0)

    def noise(indices):
        keys = row_keys(key, jnp.array(indices), 2)
        return np.asarray(jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 3)))(keys))

    np.testing.assert_array_equal(noise([5]), noise([3, 5])[2:])
    assert jax.random.key_impl(key) != jax.random.key_impl(jax.random.key(0))


def test_moments_lie_as_parameters_and_the_state_is_as_promised():
    model, mesh, optimizer = tiny.decoder(), tiny.mesh_of(1, 2, 2), optax.adam(1e-3)
    host = tiny.host_params()
    with jax.set_mesh(mesh):
        params = tiny.on_mesh(host, model, mesh)
        state = create_state(params, optimizer, 3, mesh)
    promised = abstract_state(params, optimizer, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(promised)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(promised), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (expected.shape, expected.dtype, expected.sharding)
    moments = state.opt_state[0].mu
    jax.tree.map(lambda m, p: None if m.sharding == p.sharding else pytest.fail(str(m.sharding)), moments, params)
