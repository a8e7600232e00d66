"""Decoding with a cache, and completions on a shared prompt, equal the plain forward pass over whole rows."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY

from grpo_jax.models.cache import Cache, empty_cache, stack, unstack
from grpo_jax.models.decoder import Decoder


@partial(jax.jit, static_argnums=0)
def step(model, params, sequences, cache, prefix=None):
    return model.apply({"params": params}, sequences, cache=cache, prefix=prefix)


def time(sequences, *where):
    return jax.tree.map(lambda x: x[:, slice(*where)], sequences)


def check(got, expected, sequences):
    real = np.asarray(sequences.segments) > 0
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(expected)[real], atol=1e-5)


def test_one_token_at_a_time_equals_the_plain_pass(model, params, forward, group):
    _, _, whole = group
    rows, length = whole.tokens.shape
    cache, hidden = empty_cache(model.config, rows, length + 3), []
    for t in range(length):
        out, cache = step(model, params, time(whole, t, t + 1), cache)
        hidden.append(out)
    check(jnp.concatenate(hidden, axis=1), forward(model, params, whole), whole)
    assert int(cache.length) == length


def test_pieces_of_any_size_equal_the_plain_pass(model, params, forward, group):
    _, _, whole = group
    rows, length = whole.tokens.shape
    cache, hidden = empty_cache(model.config, rows, length), []
    for start, stop in ((0, 7), (7, 9), (9, length)):
        out, cache = step(model, params, time(whole, start, stop), cache)
        hidden.append(out)
    check(jnp.concatenate(hidden, axis=1), forward(model, params, whole), whole)


def test_completions_on_a_shared_prompt_equal_whole_rows(model, params, forward, group):
    prompts, completions, whole = group
    rows, length = prompts.sequences.tokens.shape
    expected = forward(model, params, whole)
    hidden, prefix = step(model, params, prompts.sequences, empty_cache(model.config, rows, length))
    check(jnp.repeat(hidden, 3, axis=0), expected[:, :length], time(whole, 0, length))
    for shared in (prefix, unstack(prefix), stack(prefix)):
        hidden, none = step(model, params, completions, None, shared)
        assert none is None
        check(hidden, expected[:, length:], completions)


def test_decoding_on_a_shared_prompt_equals_whole_rows(model, params, forward, group):
    prompts, completions, whole = group
    rows, length = prompts.sequences.tokens.shape
    _, prefix = step(model, params, prompts.sequences, empty_cache(model.config, rows, length))
    cache, hidden = empty_cache(model.config, *completions.tokens.shape), []
    for t in range(completions.tokens.shape[1]):
        out, cache = step(model, params, time(completions, t, t + 1), cache, prefix)
        hidden.append(out)
    check(jnp.concatenate(hidden, axis=1), forward(model, params, whole)[:, length:], completions)


def test_layouts_and_back(params, group):
    _, _, whole = group
    scan, loop = (Decoder(dataclasses.replace(TINY, scan_layers=s)) for s in (True, False))
    caches = [step(m, params, whole, empty_cache(m.config, *whole.tokens.shape))[1] for m in (scan, loop)]
    assert caches[0].k.shape == (2, 6, 2, 12, 6) and isinstance(caches[1].k, tuple)
    for a, b in zip(jax.tree.leaves(stack(caches[1])), jax.tree.leaves(caches[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert jax.tree.structure(unstack(caches[0])) == jax.tree.structure(caches[1])


def test_an_exactly_sized_cache_is_filled_without_writing_into_it(group):
    _, _, whole = group
    for scan in (True, False):
        model = Decoder(dataclasses.replace(TINY, scan_layers=scan))
        params = jax.eval_shape(model.init, jax.random.key(0), whole)["params"]

        def text(slots, model=model, params=params):
            cache = jax.eval_shape(lambda: empty_cache(model.config, 6, slots))
            return str(jax.make_jaxpr(partial(step, model))(params, whole, cache))

        assert "dynamic_update_slice" not in text(12) and "dynamic_update_slice" in text(13)


def test_a_cache_that_does_not_fit_is_refused(model, params, group):
    _, _, whole = group
    for rows, length in ((6, 11), (5, 12)):
        with pytest.raises(ValueError, match=f"6 rows of 12 tokens do not fit a cache of {rows} rows of {length}"):
            model.apply({"params": params}, whole, cache=empty_cache(model.config, rows, length))


def test_cache_has_the_computing_type():
    half = dataclasses.replace(TINY, dtype="bfloat16")
    cache = empty_cache(half, 2, 3)
    assert isinstance(cache, Cache) and cache.k.dtype == jnp.bfloat16 and cache.size == 3
