"""Rotary frequencies by their definitions in float64, and what is refused. Against torch: test_parity.py."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.families.llama import read_rope, write_rope
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.rope import Rope, frequencies, rotate, rotation

H = 64
LLAMA3 = Rope(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    original_max_position_embeddings=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 40.0, "original_max_position_embeddings": 4096}


def plain(theta):
    return theta ** (-np.arange(0, H, 2) / H)


def test_default_and_linear():
    np.testing.assert_allclose(frequencies(Rope(rope_theta=1e6), H), plain(1e6), rtol=1e-6)
    scaled = Rope(rope_type="linear", rope_theta=1e4, factor=4.0)
    np.testing.assert_allclose(frequencies(scaled, H), plain(1e4) / 4, rtol=1e-6)
    ours, theirs = rotation(jnp.array([[8]]), scaled, H), rotation(jnp.array([[2]]), Rope(rope_theta=1e4), H)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_llama3_divides_long_waves_and_leaves_short_ones():
    got, unscaled = frequencies(LLAMA3, H), plain(5e5)
    for frequency, before in zip(got, unscaled, strict=True):
        turns = 8192 * before / (2 * math.pi)  # in the original context
        share = min(max((turns - 1) / (4 - 1), 0), 1)
        assert frequency == pytest.approx(before * (share + (1 - share) / 8), rel=1e-5)
    assert got[0] == pytest.approx(1.0) and got[-1] == pytest.approx(unscaled[-1] / 8)
    assert ((got < unscaled * 0.999) & (got > unscaled / 7.9)).any(), "some lie between"


@pytest.mark.parametrize(
    ("more", "low", "high"),
    [
        ({}, 10, 23),  # DeepSeek-V2's numbers for 64 of a head
        ({"truncate": False}, 10.47, 22.51),
        ({"beta_fast": 8.0, "beta_slow": 2.0}, 15, 21),
        ({"rope_theta": 2.0, "original_max_position_embeddings": 512}, 31, 63),
        ({"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False}, 22.513, 22.513),
    ],
)
def test_yarn_mixes_by_turns(more, low, high):
    """Of H/2 pairs those before `low` keep their frequency, those after `high` are divided, with a ramp between."""
    rope = Rope(**YARN | more)
    unscaled = plain(rope.rope_theta)
    share = frequencies(rope, H) / unscaled  # 1: kept, 1/40: divided
    pairs = np.arange(H // 2)
    np.testing.assert_allclose(share[pairs <= low], 1.0, rtol=1e-5)
    np.testing.assert_allclose(share[pairs >= max(high, low + 0.001)], 1 / 40, rtol=1e-4)
    between = (pairs > low) & (pairs < high)
    expected = 1 + (pairs - low) / (high - low + 1e-9) * (1 / 40 - 1)
    np.testing.assert_allclose(share[between], expected[between], atol=2e-3)


def test_attention_scale():
    assert LLAMA3.attention_scale == Rope().attention_scale == 1.0
    assert Rope(**YARN).attention_scale == pytest.approx(0.1 * math.log(40) + 1)
    assert Rope(**YARN, attention_factor=0.8).attention_scale == 0.8
    assert Rope(**YARN, mscale=0.707, mscale_all_dim=0.707).attention_scale == 1.0
    both = Rope(**YARN, mscale=1.0, mscale_all_dim=0.5).attention_scale
    assert both == pytest.approx((0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1))
    assert Rope(**YARN, mscale=2.0).attention_scale == pytest.approx(0.1 * math.log(40) + 1), "only with both"
    assert Rope(**YARN | {"factor": 0.5}).attention_scale == 1.0
    cos, sin = rotation(jnp.array([[3]]), Rope(**YARN), H)
    np.testing.assert_allclose(cos**2 + sin**2, (0.1 * math.log(40) + 1) ** 2, rtol=1e-5)


def test_rotation_in_pairs_of_halves():
    """(x_i, x_{i + H/2}) turns by position times frequency, in float32 whatever the type of x."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 4)), jnp.bfloat16)
    angle = np.array([5.0, 5.0 * 100.0**-0.5])
    got = rotate(x, *rotation(jnp.array([[5]]), Rope(rope_theta=100.0), 4))
    pairs = np.asarray(x, np.float64).reshape(2, 2)
    expected = [
        pairs[0] * np.cos(angle) - pairs[1] * np.sin(angle),
        pairs[1] * np.cos(angle) + pairs[0] * np.sin(angle),
    ]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32).reshape(2, 2), expected, atol=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'; there are default, linear, llama3, yarn"),
        ({"rope_type": "linear"}, "'linear' needs factor, which is None"),
        ({"rope_type": "yarn", "factor": 2.0}, "'yarn' needs original_max_position_embeddings"),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 9}, "needs low_freq_factor"),
    ],
)
def test_what_is_incomplete_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Rope(**fields)


def test_keys_of_config_json():
    assert read_rope({"rope_theta": 7, "rope_type": "default", "type": "default", "factor": None}) == Rope(rope_theta=7)
    for rope in (Rope(), LLAMA3, Rope(**YARN, truncate=False, beta_fast=3.0)):
        assert read_rope(write_rope(rope)) == rope
    with pytest.raises(ModelFolderError, match=r"partial_rotary_factor is 0.25; only 1.0"):
        read_rope({"rope_theta": 1e4, "partial_rotary_factor": 0.25})
    with pytest.raises(ModelFolderError, match="unknown keys long_factor, short_factor"):
        read_rope({"rope_theta": 1e4, "short_factor": [1.0], "long_factor": [1.0]})
