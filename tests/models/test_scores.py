"""One number a token: the same whatever shares the prompt, and from two tokens of a vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.logprobs import next_token_logits
from grpo_jax.models.parameters import parameter_table
from grpo_jax.models.scores import candidate_margin, completion_scores, sequence_scores, with_score_head
from grpo_jax.types import Sequences
from tests import tiny

FORMS = {
    "scalar": ({"head": "scalar"}, None),
    "two tokens": ({}, (3, 7)),
    "two tokens, tied": ({"tie_word_embeddings": True, "logit_softcap": 2.0}, (3, 7)),
}


def by_row(prompts, completions):
    """Each completion behind its own copy of the prompt, right-padded, as one row of plain text."""
    groups = completions.tokens.shape[0] // prompts.index.shape[0]
    before = jax.tree.map(lambda x: np.repeat(x, groups, axis=0), prompts.sequences)
    return jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), before, completions)


@pytest.mark.parametrize("form", FORMS)
def test_a_shared_prompt_scores_as_the_whole_text_does(form):
    changes, candidates = FORMS[form]
    model, params, prompts = tiny.decoder(**changes), tiny.host_params(**changes), tiny.prompts()
    rng = np.random.default_rng(1)
    B, Tc, Tp = 12, 5, prompts.sequences.tokens.shape[1]
    segments = (np.arange(Tc) < rng.integers(1, Tc + 1, (B, 1))).astype(np.int32)
    begin = np.repeat(prompts.sequences.positions[:, -1:] + 1, 3, axis=0)
    completions = Sequences(
        rng.integers(2, tiny.V, (B, Tc)).astype(np.int32), begin + np.arange(Tc, dtype=np.int32), segments
    )
    shared = completion_scores(model, params, prompts, completions, candidates=candidates)
    whole = sequence_scores(model, params, by_row(prompts, completions), candidates=candidates)[:, Tp:]
    assert shared.dtype == jnp.float32 and float(jnp.abs(whole).max()) > 0.1
    np.testing.assert_allclose(np.where(segments, shared, 0), np.where(segments, whole, 0), atol=2e-5)


def test_a_score_does_not_depend_on_what_follows():
    model, params = tiny.decoder(head="scalar"), tiny.host_params(head="scalar")
    tokens = np.arange(2, 10, dtype=np.int32)[None]
    rows = Sequences(tokens, np.arange(8, dtype=np.int32)[None], np.ones((1, 8), np.int32))
    other = rows.replace(tokens=np.where(np.arange(8) > 4, 11, tokens).astype(np.int32))
    a, b = (np.asarray(sequence_scores(model, params, r)) for r in (rows, other))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] != b[:, 5:]).all()


@pytest.mark.parametrize("form", ["two tokens", "two tokens, tied"])
def test_two_tokens_are_a_softmax_over_these_alone(form, vectors):
    changes, (good, bad) = FORMS[form]
    model, params = tiny.decoder(**changes), tiny.host_params(**changes)
    hidden = jax.random.normal(jax.random.key(0), (5, 16))
    logits = next_token_logits(model, params, hidden)[:, jnp.array([good, bad])]
    margin = candidate_margin(model.config, params, hidden, (good, bad))
    np.testing.assert_allclose(jax.nn.sigmoid(margin), jax.nn.softmax(logits, -1)[:, 0], atol=1e-6)
    known = vectors["prm_two_token"]
    plus, minus = known["inputs"]["logit_plus"], known["inputs"]["logit_minus"]
    assert float(jax.nn.sigmoid(plus - minus)) == pytest.approx(known["expected"]["p_good"], rel=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_a_score_head_on_the_trunk_of_a_language_model(tied):
    mesh, lm = tiny.mesh_of(fsdp=2), tiny.decoder(tie_word_embeddings=tied)
    config = dataclasses.replace(lm.config, head="scalar")
    params = tiny.on_mesh(tiny.host_params(tie_word_embeddings=tied), lm, mesh)
    made = with_score_head(params, config, jax.random.key(3), mesh)
    assert made.keys() == parameter_table(config).keys() and "head" not in made
    for name in ("embed", "layers", "final_norm"):
        assert all(map(np.array_equal, jax.tree.leaves(made[name]), jax.tree.leaves(params[name])))
    jax.block_until_ready(jax.jit(lambda p: p, donate_argnums=0)(made))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))  # copies: training donates them
