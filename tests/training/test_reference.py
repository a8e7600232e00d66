"""A reference that follows the policy."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.training.reference import mixed


def test_mixed_by_hand():
    """0.25 of the policy and 0.75 of the reference; in float32, whatever the reference is kept in."""
    reference = {"a": np.array([1.0, -2.0, 0.0], np.float32), "b": jnp.array([256.0], jnp.bfloat16)}
    policy = {"a": np.array([3.0, 2.0, 4.0], np.float32), "b": np.array([260.0], np.float32)}
    got = jax.jit(lambda r, p: mixed(r, p, alpha=0.25))(reference, policy)
    np.testing.assert_array_equal(got["a"], [1.5, -1.0, 1.0])
    assert got["a"].dtype == jnp.float32 and got["b"].dtype == jnp.bfloat16
    assert float(mixed(reference, policy, alpha=0.5)["b"][0]) == 258.0


def test_all_of_the_policy_is_the_policy():
    policy = {"a": np.array([0.1, 1e-30, 3e38], np.float32)}
    got = mixed({"a": np.array([7.0, 5.0, -2.0], np.float32)}, policy, alpha=1.0)
    np.testing.assert_array_equal(got["a"], policy["a"])


def test_so_many_times_it_comes_so_near():
    """(1 - alpha)^n of the distance is left."""
    policy, reference = {"a": np.float32([1.0])}, {"a": np.float32([0.0])}
    for _ in range(5):
        reference = mixed(reference, policy, alpha=0.6)
    np.testing.assert_allclose(reference["a"], 1 - 0.4**5, rtol=1e-6)
