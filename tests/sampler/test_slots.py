"""Slots: the same completions whatever the number of rows decoded at once, and no row idle while work waits."""

import re
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.sampler.pauses import advance_rows, fences, nothing_given, open_rows
from grpo_jax.sampler.sample import sample
from grpo_jax.sampler.slots import (
    DecodeError,
    advance_slots,
    by_completion,
    lanes_and_rows,
    most_steps,
    open_slots,
    refill,
    unfinished,
)
from tests import tiny

MODEL = tiny.decoder()


@pytest.fixture(scope="module")
def params():
    return tiny.host_params()


@pytest.fixture(scope="module")
def rollout(params):
    return tiny.roll_out(MODEL, params, tiny.prompts())


def same(a, b):
    np.testing.assert_array_equal(a.completions.tokens, b.completions.tokens)
    np.testing.assert_array_equal(a.completion_mask, b.completion_mask)
    np.testing.assert_array_equal(a.completions.positions, b.completions.positions)
    np.testing.assert_array_equal(a.finished, b.finished)
    np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decode_rows", [1, 2, 4, 8, 12, 16, 4000])
def test_tokens_do_not_depend_on_the_rows(params, rollout, decode_rows):
    settings = tiny.sampling()._replace(decode_rows=decode_rows)
    same(tiny.roll_out(MODEL, params, tiny.prompts(), settings=settings), rollout)


@pytest.mark.parametrize("decode_rows", [2, 8])
def test_unrolled_layers(params, rollout, decode_rows):
    settings = tiny.sampling()._replace(decode_rows=decode_rows)
    same(tiny.roll_out(tiny.decoder(decode_layers="unroll"), params, tiny.prompts(), settings=settings), rollout)


@pytest.mark.parametrize(("shape", "decode_rows"), [((2, 2, 1), 4), ((1, 2, 2), 2), ((2, 1, 2), 8)])
def test_on_a_mesh(params, rollout, shape, decode_rows):
    settings = tiny.sampling()._replace(decode_rows=decode_rows)
    same(tiny.roll_out(MODEL, params, tiny.prompts(), mesh=tiny.mesh_of(*shape), settings=settings), rollout)


def token_loops(jaxpr):
    """Shapes that each `while` without another in it carries from turn to turn."""
    for equation in jaxpr.eqns:
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        loops = [shapes for x in inner for shapes in token_loops(getattr(x, "jaxpr", x))]
        if equation.primitive.name == "while" and not loops:
            loops = [[x.aval.shape for x in equation.outvars]]
        yield from loops


@pytest.mark.parametrize("pauses", [False, True])
def test_prompts_are_not_copied_at_every_token(params, pauses):
    """A loop over tokens only reads the keys and values of prompts, though lanes go on to other prompts."""
    settings, batch = tiny.sampling()._replace(decode_rows=2), tiny.prompts(pad=11)
    if pauses:
        opened, state = jax.eval_shape(partial(open_rows, MODEL, sampling=settings), params, batch, jax.random.key(0))
        given = (state, nothing_given(state, 3), fences([""] * tiny.V, tiny.V), 5)
        program, given = partial(advance_rows, MODEL, sampling=settings), (opened, *given)
    else:
        program, given = partial(sample, MODEL, sampling=settings), (params, batch, jax.random.key(0))
    (carried,) = token_loops(jax.make_jaxpr(program)(*given).jaxpr)
    assert any(8 in shape for shape in carried), "of completions"
    assert not any(17 in shape for shape in carried)


def simulate(lengths, rows, turns, G):
    """Run the bookkeeping alone on completions of known lengths [R, J]; tokens are their numbers and times."""
    lanes, jobs = lengths.shape
    limit = lengths.max()
    slots, _ = refill(open_slots(lanes, rows, jobs), jnp.int32(0), num_generations=G)
    steps, log, busy = 0, [], 0
    while bool(unfinished(slots)):
        own = jnp.take_along_axis(jnp.asarray(lengths), slots.job, 1)
        log.append(slots.job * 100 + slots.t)
        busy += int(slots.active.sum())
        slots = advance_slots(slots, slots.t + 1 == own, limit=limit)
        steps += 1
        slots, _ = refill(slots, jnp.int32(steps), num_generations=G)
    assert steps <= most_steps(turns, G, rows, limit)
    return slots, by_completion(jnp.stack(log), slots, limit=limit), steps, busy


@pytest.mark.parametrize(("rows", "turns", "G"), [(1, 1, 5), (2, 1, 5), (3, 2, 4), (1, 3, 2), (4, 2, 4)])
def test_every_completion_is_decoded_once(rows, turns, G):
    lengths = np.random.default_rng(0).integers(1, 7, (3, turns * G))
    slots, tokens, _, busy = simulate(lengths, rows, turns, G)
    np.testing.assert_array_equal(slots.length, lengths)
    assert busy == lengths.sum(), "no completion is decoded twice or after its end"
    for b, length in enumerate(lengths.reshape(-1)):
        expected = (b % (turns * G)) * 100 + np.arange(length)
        np.testing.assert_array_equal(tokens[b, :length], expected)
        assert not np.asarray(tokens[b, length:]).any()


def test_a_long_completion_does_not_hold_the_others():
    """One of 8 takes 40 steps, the rest 5: with 2 rows all is done when the long one is, and not after 4 x 40."""
    lengths = np.full((1, 8), 5)
    lengths[0, 0] = 40
    *_, steps, _ = simulate(lengths, 2, 1, 8)
    assert steps == 40


@pytest.mark.parametrize(
    ("prompts", "rows", "shards", "expected"),
    [
        (8, 0, 1, (8, 4)),
        (8, 16, 1, (8, 2)),
        (8, 12, 1, (4, 3)),
        (8, 8, 4, (8, 1)),
        (8, 4, 2, (4, 1)),
        (8, 3, 1, (1, 3)),
        (8, 800, 1, (8, 4)),
        (6, 0, 4, (6, 4)),
    ],
)
def test_lanes(prompts, rows, shards, expected):
    assert lanes_and_rows(prompts, 4, rows, shards=shards) == expected


@pytest.mark.parametrize(("rows", "shards"), [(11, 1), (30, 1), (2, 4), (20, 4)])
def test_rows_that_cannot_be_shared_out_are_refused(rows, shards):
    with pytest.raises(DecodeError, match=rf"{rows} rows .* 8 prompts of 4 .* {shards} batch shard") as error:
        lanes_and_rows(8, 4, rows, shards=shards)
    for near in re.findall(r"\d+", str(error.value).partition("nearest that can are")[2])[:-1]:
        assert lanes_and_rows(8, 4, int(near), shards=shards)
