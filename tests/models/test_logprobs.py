"""Log-probabilities by chunks equal the dense log-softmax, gradients too; the dense array never exists."""

import dataclasses
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, randomized

from grpo_jax.config import MeshConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logprobs import completion_logprobs, next_token_logits, sequence_logprobs
from grpo_jax.models.parameters import abstract_params
from grpo_jax.sharding import make_mesh, named
from grpo_jax.types import Prompts, Sequences

SCAN = Decoder(TINY)


def dense(model, params, whole, temperature=1.0):
    """Log-probabilities of tokens 1.. of whole rows, and entropies, by the definition."""
    hidden, _ = model.apply({"params": params}, whole)
    logp = jax.nn.log_softmax(next_token_logits(model, params, hidden) / temperature)[:, :-1]
    chosen = jnp.take_along_axis(logp, whole.tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logp) * logp, axis=-1)


@pytest.fixture(scope="module")
def dense_completions(params, group):
    prompts, completions, whole = group
    run = jax.jit(partial(dense, SCAN), static_argnums=2)

    def by(temperature):
        first = prompts.sequences.tokens.shape[1] - 1
        mask = completions.segments > 0
        return [jnp.where(mask, x[:, first:], 0.0) for x in run(params, whole, temperature)]

    return by


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_chunks_equal_dense(params, group, dense_completions, chunk):
    prompts, completions, _ = group
    got = jax.jit(partial(completion_logprobs, SCAN, chunk=chunk))(params, prompts, completions)
    for a, b in zip(got, dense_completions(1.0), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("temperature", "scored"), [(0.6, 0.6), (0.0, 1.0)])
def test_temperature(params, group, dense_completions, temperature, scored):
    prompts, completions, _ = group
    run = jax.jit(partial(completion_logprobs, SCAN, temperature=temperature, chunk=2))
    for a, b in zip(run(params, prompts, completions), dense_completions(scored), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_gradient_equals_dense(mesh, group):
    """Through the shared prompt, the chunks and the tied head."""
    prompts, completions, whole = group
    config = dataclasses.replace(TINY, tie_word_embeddings=True)
    model, params = Decoder(config), randomized(config, mesh)
    first = prompts.sequences.tokens.shape[1] - 1
    weights = jax.random.normal(jax.random.key(5), completions.tokens.shape) * (completions.segments > 0)

    def by_chunks(params):
        return jnp.sum(weights * completion_logprobs(model, params, prompts, completions, chunk=2)[0])

    def by_definition(params):
        return jnp.sum(weights * dense(model, params, whole)[0][:, first:])

    (a, got), (b, expected) = (jax.jit(jax.value_and_grad(f))(params) for f in (by_chunks, by_definition))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4), got, expected)


def test_entropy_has_no_gradient(params, group):
    prompts, completions, _ = group

    def entropy(params):
        return jnp.sum(completion_logprobs(SCAN, params, prompts, completions, chunk=4)[1])

    assert not any(x.any() for x in jax.tree.leaves(jax.jit(jax.grad(entropy))(params)))


def shapes(jaxpr, only=""):
    """The shapes of all intermediate arrays, or of those that one kind of operation gives; inner programs included."""
    for equation in jaxpr.eqns:
        if only in equation.primitive.name:
            yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from shapes(inner, only)


def test_no_array_over_rows_time_and_vocabulary(mesh, group):
    prompts, completions, _ = group
    config = dataclasses.replace(TINY, vocab_size=997)
    model = Decoder(config)
    params = abstract_params(config, mesh)

    def loss(params):
        return jnp.sum(completion_logprobs(model, params, prompts, completions, chunk=2)[0])

    found = set(shapes(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert (6 * 2, 997) in found, "rows x chunk by vocabulary"
    assert not any(997 in s and len(s) > 2 for s in found), "and nothing larger"
    assert all(np.prod(s) <= 6 * 2 * 997 for s in found if 997 in s and 16 not in s)


def test_logits_that_exist_at_once_are_computed_once(params, group):
    """By chunks they are computed again in the backward pass, which saves nothing where there is one chunk."""
    prompts, completions, _ = group

    def products(chunk):
        def loss(params):
            return jnp.sum(completion_logprobs(SCAN, params, prompts, completions, chunk=chunk)[0])

        made = shapes(jax.make_jaxpr(jax.grad(loss))(params).jaxpr, only="dot_general")
        return list(made).count((6 * chunk, TINY.vocab_size))

    assert products(5) == 1 and products(2) == 2


def test_packed_text(model, params):
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, 34, (2, 9)), jnp.int32)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 3, 3, 3]], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 0, 1, 2, 3, 0, 0], [0, 0, 1, 2, 3, 4, 0, 1, 2]], jnp.int32)
    packed = Sequences(tokens, positions, segments)
    got = jax.jit(partial(sequence_logprobs, model, chunk=4))(params, packed)
    expected = jax.jit(partial(dense, model))(params, packed)
    scored = np.asarray((positions > 0) & (segments > 0))
    for a, b in zip(got, expected, strict=True):
        assert a.shape == (2, 9) and not np.asarray(a)[~scored].any()
        np.testing.assert_allclose(np.asarray(a)[scored], np.asarray(b)[scored[:, 1:]], atol=1e-5)


def test_padding_with_the_end_token_counts_by_segment_only(params, group):
    """A chosen end of sequence that has the padding's id is scored; padding of the same id is not."""
    prompts, completions, _ = group
    same = completions.replace(tokens=jnp.full_like(completions.tokens, 9))
    logprobs, _ = jax.jit(partial(completion_logprobs, SCAN, chunk=2))(params, prompts, same)
    assert np.array_equal(np.asarray(logprobs) != 0, np.asarray(completions.segments) > 0)


def test_split_vocabulary_and_batch_change_nothing(params, group):
    prompts, completions, _ = group
    expected = jax.jit(partial(completion_logprobs, SCAN, chunk=2))(params, prompts, completions)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    shardings = jax.tree.map(lambda x: x.sharding, abstract_params(TINY, mesh))
    placed = Prompts(
        jax.device_put(prompts.sequences, named(mesh, "batch", None)),
        jax.device_put(prompts.index, named(mesh, "batch")),
    )
    with jax.set_mesh(mesh):
        got = jax.jit(partial(completion_logprobs, SCAN, chunk=2))(
            jax.device_put(params, shardings), placed, jax.device_put(completions, named(mesh, "batch", None))
        )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
