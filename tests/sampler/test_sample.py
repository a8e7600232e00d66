"""The sampler: its log-probabilities are the trainer's, its noise belongs to the row, and greedy is greedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.logprobs import completion_logprobs, next_token_logits
from grpo_jax.types import Prompts, Sequences
from tests import tiny

MODEL = tiny.decoder()


@pytest.fixture(scope="module")
def params():
    return tiny.host_params()


@pytest.fixture(scope="module")
def rollout(params):
    return tiny.roll_out(MODEL, params, tiny.prompts())


def rows(prompts: Prompts, chosen) -> Prompts:
    return jax.tree.map(lambda x: x[chosen], prompts)


def test_logprobs_are_the_trainers(params, rollout):
    for temperature in (1.0, 0.6):
        r = tiny.roll_out(MODEL, params, tiny.prompts(), temperature=temperature)
        logprobs, _ = completion_logprobs(MODEL, params, r.prompts, r.completions, temperature=temperature, chunk=4)
        gap = jnp.where(r.completion_mask, logprobs - r.logprobs, 0)
        assert float(jnp.abs(gap).max()) < 1e-4
        assert np.all(np.asarray(r.logprobs)[~np.asarray(r.completion_mask)] == 0)


def test_masks_say_who_chose(rollout):
    tokens, mask = np.asarray(rollout.completions.tokens), np.asarray(rollout.completion_mask)
    for row, chosen, finished in zip(tokens, mask, np.asarray(rollout.finished), strict=True):
        length = chosen.sum()
        assert chosen[:length].all() and length >= 1
        assert np.all(row[length:] == tiny.PAD)
        assert np.all(row[: length - 1] != tiny.EOS)
        assert (row[length - 1] == tiny.EOS) == finished
        assert finished or length == len(row)
    assert 0 < rollout.finished.sum() < rollout.finished.size, "both ends should occur, or the test is empty"


def test_pad_may_be_eos(params):
    settings = tiny.sampling()._replace(pad_id=tiny.EOS)
    r = tiny.roll_out(MODEL, params, tiny.prompts(), settings=settings)
    expected = tiny.roll_out(MODEL, params, tiny.prompts())
    np.testing.assert_array_equal(r.completion_mask, expected.completion_mask)
    np.testing.assert_array_equal(
        np.where(r.completion_mask, r.completions.tokens, 0),
        np.where(expected.completion_mask, expected.completions.tokens, 0),
    )


@pytest.mark.parametrize("chosen", [[2], [3, 1], [0, 1, 2, 3, 0]])
def test_noise_belongs_to_the_row(params, rollout, chosen):
    """Any company, any order, any batch size: the same completions."""
    part = tiny.roll_out(MODEL, params, rows(tiny.prompts(), np.array(chosen)))
    whole = np.asarray(rollout.completions.tokens).reshape(4, 4, -1)
    np.testing.assert_array_equal(np.asarray(part.completions.tokens).reshape(len(chosen), 4, -1), whole[chosen])


def test_more_generations_keep_the_first(params, rollout):
    more = tiny.roll_out(MODEL, params, tiny.prompts(), G=6)
    np.testing.assert_array_equal(
        np.asarray(more.completions.tokens).reshape(4, 6, -1)[:, :4],
        np.asarray(rollout.completions.tokens).reshape(4, 4, -1),
    )


def test_steps_differ_and_groups_differ(params, rollout):
    other = tiny.roll_out(MODEL, params, tiny.prompts(), key=1)
    assert np.any(np.asarray(other.completions.tokens) != np.asarray(rollout.completions.tokens))
    same_prompt = jax.tree.map(lambda x: np.repeat(x[:1], 4, 0), tiny.prompts())
    same_prompt = same_prompt.replace(index=np.arange(4, dtype=np.int32))
    tokens = np.asarray(tiny.roll_out(MODEL, params, same_prompt).completions.tokens)
    assert len({tuple(row) for row in tokens}) > 8


@pytest.mark.parametrize("pad", [1, 5])
def test_padding_is_not_felt(params, rollout, pad):
    padded = tiny.prompts(pad=pad)
    dirty = padded.sequences.tokens.copy()
    dirty[padded.sequences.segments == 0] = 9
    padded = padded.replace(sequences=padded.sequences.replace(tokens=dirty))
    r = tiny.roll_out(MODEL, params, padded)
    np.testing.assert_array_equal(r.completions.tokens, rollout.completions.tokens)
    np.testing.assert_allclose(r.logprobs, rollout.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 2, 1), (1, 1, 4)])
def test_tokens_do_not_depend_on_the_mesh(params, rollout, shape):
    r = tiny.roll_out(MODEL, params, tiny.prompts(), mesh=tiny.mesh_of(*shape))
    np.testing.assert_array_equal(r.completions.tokens, rollout.completions.tokens)
    np.testing.assert_allclose(r.logprobs, rollout.logprobs, rtol=1e-5, atol=1e-5)


def test_greedy_is_the_likeliest_continuation(params):
    """Of each text without padding, whole; its one pass tells the likeliest token at every place."""
    r = tiny.roll_out(MODEL, params, tiny.prompts(), G=1, temperature=0.0)
    prompts, tokens, mask = (jax.device_get(x) for x in (r.prompts, r.completions.tokens, r.completion_mask))
    for p in range(4):
        prompt = prompts.sequences.tokens[p][prompts.sequences.segments[p] > 0]
        made = tokens[p][mask[p]]
        text = np.concatenate([prompt, made])[None]
        whole = Sequences(jnp.asarray(text), jnp.arange(text.size)[None], jnp.ones_like(text))
        hidden, _ = MODEL.apply({"params": params}, whole)
        likeliest = next_token_logits(MODEL, params, hidden)[0].argmax(-1)
        assert len(made) and np.asarray(likeliest)[len(prompt) - 1 : -1].tolist() == made.tolist()


def test_unrolled_and_scanned_decode_agree(params, rollout):
    r = tiny.roll_out(tiny.decoder(decode_layers="unroll"), params, tiny.prompts())
    np.testing.assert_array_equal(r.completions.tokens, rollout.completions.tokens)


def test_the_loop_ends_early(params):
    """A head that always says EOS: one token each, and the rest of the time is not spent."""
    settings = tiny.sampling()._replace(eos_ids=tuple(range(tiny.V)))
    mask = np.asarray(tiny.roll_out(MODEL, params, tiny.prompts(), settings=settings).completion_mask)
    assert mask[:, 0].all() and not mask[:, 1:].any()


def test_several_eos_ids(params, rollout):
    ends = (tiny.EOS, 5, 11)
    settings = tiny.sampling()._replace(eos_ids=ends)
    r = tiny.roll_out(MODEL, params, tiny.prompts(), settings=settings)
    last = {int(row[m.sum() - 1]) for row, m in zip(r.completions.tokens, r.completion_mask, strict=True)}
    assert len(last & set(ends)) > 1
    for row, chosen in zip(np.asarray(r.completions.tokens), np.asarray(r.completion_mask), strict=True):
        assert not np.isin(row[: chosen.sum() - 1], ends).any()
