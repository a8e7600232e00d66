"""Attention over blocks equals one dense softmax over all keys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.ops import KeyValues, attend, rms_norm, softcap
from grpo_jax.models.rope import Rope, rotate, rotation

B, T, N, H = 6, 4, 4, 8


def block(seed, rows, kv_heads, size, *, masked=0.3):
    rng = np.random.default_rng(seed)
    return KeyValues(
        k=jnp.asarray(rng.normal(size=(rows, kv_heads, size, H)), jnp.float32),
        v=jnp.asarray(rng.normal(size=(rows, kv_heads, size, H)), jnp.float32),
        positions=jnp.asarray(rng.integers(0, 9, (rows, size)), jnp.int32),
        segments=jnp.asarray(rng.choice([0, 1, 2], (rows, size), p=[masked, 0.5, 0.5 - masked]), jnp.int32),
    )


def queries(seed=1):
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.normal(size=(B, T, N, H)), jnp.float32)
    segments = rng.choice([0, 1], (B, T), p=[0.2, 0.8])  # 0: a query that is padding sees nothing
    return q, jnp.asarray(rng.integers(4, 9, (B, T)), jnp.int32), jnp.asarray(segments, jnp.int32)


def dense(q, positions, segments, blocks, scale=H**-0.5, cap=None, window=99):
    """The definition, row by row and head by head, in float64."""
    q, out = np.asarray(q, np.float64), np.zeros(q.shape)
    positions, segments, blocks = jax.tree.map(np.asarray, (positions, segments, blocks))
    for b in range(B):
        for t in range(T):
            for n in range(N):
                scores, values = [], []
                for x in blocks:
                    r, g = b // (B // x.k.shape[0]), n // (N // x.k.shape[1])
                    seen = (x.segments[r] == segments[b, t]) & (x.segments[r] > 0)
                    seen &= (x.positions[r] <= positions[b, t]) & (x.positions[r] > positions[b, t] - window)
                    score = x.k[r, g] @ q[b, t, n] * scale
                    scores.append((score if cap is None else cap * np.tanh(score / cap))[seen])
                    values.append(x.v[r, g][seen])
                s, v = np.concatenate(scores), np.concatenate(values)
                if len(s):
                    p = np.exp(s - s.max())
                    out[b, t, n] = p @ v / p.sum()
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_blocks_equal_one_dense_softmax(kv_heads):
    blocks = [block(2, 2, kv_heads, 5), block(3, 6, kv_heads, 3), block(4, 1, kv_heads, 2)]
    got = jax.jit(attend)(*queries(), blocks)
    np.testing.assert_allclose(got, dense(*queries(), blocks), atol=2e-6)


@pytest.mark.parametrize("more", [{"scale": 0.9}, {"cap": 0.4}, {"window": 3}, {"scale": 2.0, "cap": 1.0, "window": 1}])
def test_scale_cap_and_window(more):
    blocks = [block(2, 2, 2, 5), block(3, 6, 2, 3), block(4, 1, 2, 2)]
    got = jax.jit(partial(attend, **more))(*queries(), blocks)
    expected = dense(*queries(), blocks, **more)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert np.abs(expected - dense(*queries(), blocks)).max() > 0.05, "it matters"


def test_row_that_sees_nothing_gives_zeros_and_finite_gradients():
    q, positions, segments = queries()
    nothing = block(5, 6, 2, 3).replace(segments=jnp.zeros((6, 3), jnp.int32))

    def total(q, k, v):
        return jnp.sum(attend(q, positions, segments, [nothing.replace(k=k, v=v)]) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, nothing.k, nothing.v)
    assert value == 0.0
    for gradient in gradients:
        assert not gradient.any()


def test_large_scores_do_not_overflow():
    q, positions, segments = queries()
    some = block(6, 6, 2, 3, masked=0.0)
    got = jax.jit(attend)(1e4 * q, positions, segments, [some, some])
    assert np.isfinite(got).all()


def test_half_precision_is_close():
    blocks = [block(2, 2, 2, 5), block(3, 6, 2, 3)]
    q, positions, segments = queries()
    half = [x.replace(k=x.k.astype(jnp.bfloat16), v=x.v.astype(jnp.bfloat16)) for x in blocks]
    got = jax.jit(attend)(q.astype(jnp.bfloat16), positions, segments, half)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), dense(q, positions, segments, blocks), atol=0.05)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="6 query rows on 4 key rows"):
        attend(*queries(), [block(2, 4, 2, 5)])


def test_rotary_scores_depend_on_distance_only():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, H)), jnp.float32)

    def score(shift):
        a, b = rotate(x, *rotation(jnp.array([[3 + shift, 1 + shift]]), Rope(), H))[0]
        return jnp.sum(a * b)

    np.testing.assert_allclose([score(5), score(1000)], score(0), atol=1e-4)


def test_norm_by_hand():
    x = jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(rms_norm(x, jnp.array([1.0, 2.0]), 0.0), [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)
    gemma = rms_norm(x, jnp.array([0.0, 1.0]), 0.0, offset=1.0)
    np.testing.assert_allclose(gemma, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-6)
    wide = rms_norm(jnp.array([[[3.0], [4.0]]]), jnp.array([[1.0], [2.0]]), 0.0, axes=(1, 2))
    np.testing.assert_allclose(wide, [[[3 / 12.5**0.5], [8 / 12.5**0.5]]], rtol=1e-6)


def test_cap_by_hand():
    x = jnp.array([-1e4, -0.01, 0.0, 0.01, 3.0])
    np.testing.assert_allclose(softcap(x, 2.0), [-2, -0.01, 0, 0.01, 2 * np.tanh(1.5)], atol=1e-6)
    assert softcap(x, None) is x
