"""The rewards on arrays, and the weighted sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.configure import kind_class
from grpo_jax.rewards.combine import combine
from grpo_jax.rewards.reward import RewardError, load_reward
from grpo_jax.types import Prompts, Rollout, Sequences

nan = np.nan


def test_combine_leaves_out_what_cannot_be_judged():
    parts = np.array([[[1.0, nan, nan], [0.0, 1.0, 0.5]], [[0.5, 2.0, nan], [nan, -1.0, 1.0]]], np.float32)
    weights = np.array([1.0, 0.5])
    combined = jax.jit(combine)(parts, weights)
    assert combined.shape == (2, 3)
    assert combined.dtype == jnp.float32
    np.testing.assert_allclose(combined, [[1.25, nan, nan], [nan, 0.5, 1.0]])
    # TRL's None, "does not apply here", is for the other functions to make up.
    np.testing.assert_allclose(combine(parts, weights, np.ones(2, bool)), [[1.25, 1.0, nan], [0.0, 0.5, 1.0]])
    np.testing.assert_allclose(combine(parts, weights, np.array([False, True])), [[1.25, nan, nan], [0.0, 0.5, 1.0]])


def test_combine_is_exact_for_one_part():
    parts = np.random.default_rng(0).normal(size=(1, 4, 8)).astype(np.float32)
    assert (np.asarray(combine(parts, np.ones(1))) == parts[0]).all()


def rollout_of_lengths(lengths, width):
    """A rollout of two groups whose completions have these lengths."""
    rows = len(lengths)
    zeros = jnp.zeros((rows, width), jnp.int32)
    prompts = Sequences(*(jnp.zeros((2, 3), jnp.int32) for _ in range(3)))
    mask = jnp.arange(width) < jnp.array(lengths)[:, None]
    return Rollout(
        Prompts(prompts, jnp.arange(2)),
        Sequences(zeros, zeros, zeros),
        mask,
        jnp.zeros((rows, width)),
        jnp.ones(rows, bool),
    )


def length_reward(**settings):
    return load_reward(kind_class("rewards", "length")(kind="length", **settings))


def test_soft_overlong_punishment():
    """DAPO's eq. 13 with L_max 10 and L_cache 4, worked by hand."""
    rollout = rollout_of_lengths([0, 5, 6, 7, 8, 9, 10, 12], width=12)
    values = jax.jit(length_reward(max_length=10, buffer=4).array)(rollout)
    assert values.shape == (2, 4)
    np.testing.assert_allclose(values.reshape(-1), [0, 0, 0, -0.25, -0.5, -0.75, -1, -1])


def test_the_longest_completion_is_the_default():
    rollout = rollout_of_lengths([8, 10, 11, 12], width=12)
    np.testing.assert_allclose(length_reward(buffer=4).array(rollout).reshape(-1), [0, -0.5, -0.75, -1])


def test_a_buffer_longer_than_the_completion_is_refused():
    with pytest.raises(RewardError, match="buffer 20 is longer than max_length 10"):
        length_reward(max_length=10, buffer=20)
