"""Drawing: the distribution is the one asked for, and the log-probability is that of what was drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.sampler.draw import Distribution, draw, inverse_cdf, row_keys
from grpo_jax.sampler.filters import min_p, top_k, top_p

# The 0.999 quantile of chi-square is about dof + 3.1 sqrt(2 dof) + 6 for the sizes used here.
ROWS = 20_000


def chi_square(tokens, probabilities):
    expected = probabilities * len(tokens)
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    kept = expected > 5
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    dof = kept.sum() - 1
    assert statistic < dof + 3.1 * np.sqrt(2 * dof) + 6, (statistic, dof)


def reference(logits, d):
    """The distribution by sorting in float64, written independently of the filters."""
    z = np.asarray(logits, np.float64) / d.temperature
    order = np.argsort(-z)
    if d.top_k:
        z[order[d.top_k :]] = -np.inf
    p = np.exp(z - z.max())
    p /= p.sum()
    if d.top_p < 1:
        total = 0.0
        for i in order:
            if total >= d.top_p:
                p[i] = 0
            else:
                total += p[i]
        p /= p.sum()
    if d.min_p > 0:
        p[p < d.min_p * p.max()] = 0
        p /= p.sum()
    return p


@pytest.mark.parametrize(
    "d",
    [
        Distribution(),
        Distribution(temperature=0.5),
        Distribution(temperature=2.0),
        Distribution(top_k=5),
        Distribution(top_p=0.7),
        Distribution(min_p=0.1),
        Distribution(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02),
    ],
    ids=str,
)
@pytest.mark.parametrize("V", [37, 700])
def test_frequencies_and_logprobs(d, V):
    logits = jax.random.normal(jax.random.key(V), (V,)) * 2
    keys = row_keys(jax.random.key(1), jnp.arange(ROWS // 4), 4)
    tokens, logprobs = jax.jit(draw, static_argnums=3)(jnp.tile(logits, (ROWS, 1)), keys, jnp.full(ROWS, 3), d)
    p = reference(logits, d)
    chi_square(np.asarray(tokens), p)
    np.testing.assert_allclose(logprobs, np.log(p[np.asarray(tokens)]), atol=2e-4)


def test_greedy_takes_the_first_of_the_likeliest():
    tokens, logprobs = draw(
        jnp.array([[0.0, 3.0, 3.0]]), row_keys(jax.random.key(0), jnp.array([0]), 1), 0, Distribution(0.0)
    )
    assert int(tokens[0]) == 1 and float(logprobs[0]) == 0.0


@pytest.mark.parametrize("V", [3, 256, 257, 5000])
def test_inverse_cdf_is_the_definition(V):
    rng = np.random.default_rng(V)
    p = rng.random((64, V)) * (rng.random((64, V)) < 0.5)
    p[:, 0] += 1e-3
    u = rng.random(64)
    cumulative = np.cumsum(p, -1)
    exact = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(-1)
    got = np.asarray(inverse_cdf(jnp.array(p, jnp.float32), jnp.array(u * 2**32, jnp.uint32)))
    assert np.mean(got == exact) > 0.98  # float32 may move a border by one token
    assert np.all(p[np.arange(64), got] > 0)


def test_numbers_are_those_of_the_uniform_of_the_same_key():
    """Its bits are the upper 23 of 32, so that where tokens are likely the draw is what it was with them alone."""
    keys = jax.random.split(jax.random.key(2), ROWS)
    bits = jax.jit(jax.vmap(lambda k: jax.random.bits(k, dtype=jnp.uint32)))(keys)
    uniform = jax.jit(jax.vmap(jax.random.uniform))(keys)
    np.testing.assert_array_equal(np.asarray(bits >> 9) * 2.0**-23, uniform)
    p = np.random.default_rng(2).dirichlet(np.full(600, 0.1)).astype(np.float32)
    cumulative = np.cumsum(p, dtype=np.float64)
    before = np.searchsorted(cumulative, np.asarray(uniform, np.float64) * cumulative[-1], side="right")
    assert np.sum(of_each(jnp.array(p), bits) != before) <= 3  # a border may move by 2^-23


@jax.jit
def of_each(p, bits):
    """The tokens of these random numbers in one distribution: [V], [N] -> [N]."""
    return jax.lax.map(lambda bit: inverse_cdf(p[None], bit[None])[0], bits, batch_size=8192)


@pytest.mark.parametrize(("peak", "where"), [(0, "behind"), (0, "last"), (100_000, "before"), (100_000, "behind")])
def test_every_token_of_a_flat_tail_is_drawn_as_often_as_its_probability_says(peak, where):
    """1e-3 over all but one of 151,936 tokens, 6.6e-9 each, is a tenth of a step of 2^-23: all numbers of a stretch."""
    V, stretch, whole = 151_936, 2**15, 2**31
    p = np.full(V, 1e-3 / (V - 1), np.float32)
    p[peak] = 0.999
    cumulative = np.cumsum(p, dtype=np.float64) / p.sum(dtype=np.float64) * whole
    begin = {"before": cumulative[peak] - p[peak] * whole - stretch, "behind": cumulative[peak], "last": whole}[where]
    begin = int(np.clip(begin, 0, whole - stretch))
    tokens = np.asarray(of_each(jnp.array(p), jnp.array(2 * (begin + np.arange(stretch)), jnp.uint32)))
    assert np.all(np.diff(tokens) >= 0)
    counts = np.bincount(tokens, minlength=V)
    inner = np.setdiff1d(np.arange(tokens[0] + 1, tokens[-1]), peak)  # at the ends of a stretch are parts of intervals
    expected = 1e-3 / (V - 1) * whole  # 14.13
    assert len(inner) > 0.9 * (stretch / expected) - 10
    assert counts[inner].min() >= expected - 2 and counts[inner].max() <= expected + 2
    assert np.mean(counts[inner]) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("tail", [1e-3, 1e-5, 1e-6])
def test_a_tail_has_its_whole_mass(tail):
    """Of 593 uneven blocks beside one that has nearly all, with few numbers each: where they begin, by bisection."""
    V = 151_936
    p = np.repeat(np.random.default_rng(0).random(-(-V // 256)), 256)[:V]
    p = (tail * p / p.sum()).astype(np.float32)
    p[0] = 1 - tail
    first, behind = 0, 2**32 - 1  # a number of the first block, and one behind it
    while behind - first > 1:
        middle = (first + behind) // 2
        in_first = int(of_each(jnp.array(p), jnp.array([middle], jnp.uint32))[0]) < 256
        first, behind = (middle, behind) if in_first else (first, middle)
    assert (2**32 - behind) / 2**32 == pytest.approx(p[256:].sum(dtype=np.float64), rel=0.01)


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-32, 0.5])
@pytest.mark.parametrize("where", [0, 255, 256, 599])
def test_impossible_tokens_are_never_drawn(u, where):
    p = jnp.zeros((1, 600)).at[0, where].set(1e-30)
    assert int(inverse_cdf(p, jnp.array([u * 2**32], jnp.uint32))[0]) == where


def test_filters_keep_the_likeliest():
    logits = jnp.array([[1.0, 5.0, 2.0, 4.999]])
    assert np.isfinite(np.asarray(top_k(logits, 1))).tolist() == [[False, True, False, False]]
    assert np.isfinite(np.asarray(top_p(logits, 1e-6))).tolist() == [[False, True, False, False]]
    assert np.isfinite(np.asarray(min_p(logits, 1.0))).tolist() == [[False, True, False, False]]
    for f, off in ((top_k, 0), (top_k, 9), (top_p, 1.0), (min_p, 0.0)):
        np.testing.assert_array_equal(f(logits, off), logits)


def test_full_support():
    assert Distribution().full_support and Distribution(temperature=0.7).full_support
    for d in (Distribution(0.0), Distribution(top_k=3), Distribution(top_p=0.9), Distribution(min_p=0.1)):
        assert not d.full_support
