"""Rows that pause at fences: the same tokens in any company, and masks that say who chose them."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.logprobs import completion_logprobs
from grpo_jax.sampler import pauses
from grpo_jax.sampler.pauses import END, GO_ON, Given, advance_rows, close_rows, fences, nothing_given, open_rows
from grpo_jax.sharding import host_to_global, named
from tests import tiny

MODEL, FED = tiny.decoder(), 5
NO_FENCES = fences([""], tiny.V)
TICK = 7
TICKS = fences(["```" if i == TICK else "x" for i in range(tiny.V)], tiny.V)  # every second TICK pauses a row
STEPS = 3
SETTINGS = tiny.sampling(Tc=24)


@functools.cache
def programs(settings, model=MODEL):
    return (
        jax.jit(partial(open_rows, model, sampling=settings)),
        jax.jit(partial(advance_rows, model, sampling=settings), donate_argnums=1),
        jax.jit(partial(close_rows, sampling=settings)),
    )


def play(settings, answer, *, table=TICKS, mesh=None, model=MODEL, delay=lambda row, call: 0):
    """Decode with pauses; `answer(row, tokens) -> ids, or None to go on, or END` says what a row hears, when `delay`
    calls have passed."""
    mesh = mesh or tiny.mesh_of()
    host = tiny.host_params()
    begin, advance, close = programs(settings, model)
    with jax.set_mesh(mesh):
        placed = host_to_global(tiny.prompts(), named(mesh, "batch"))
        params = tiny.on_mesh(host, model, mesh)
        opened, state = begin(params, placed, jax.random.key(0))
        given, since, calls, before = nothing_given(state, FED), {}, 0, advance._cache_size()
        while True:
            state, seen = advance(opened, state, given, table, STEPS)
            seen = jax.device_get(seen)
            if not seen.active.any():
                break
            given, calls = nothing_given(state, FED), calls + 1
            for r, m in zip(*np.nonzero(seen.waiting), strict=True):
                row = r * state.tokens.shape[1] + seen.job[r, m]
                place = (row, int(seen.t[r, m]))
                if calls - since.setdefault(place, calls) < delay(row, calls):
                    continue
                said = answer(row, seen.tokens[r, m, : seen.t[r, m]])
                given.action[r, m] = END if said is END else GO_ON
                if said is not None and said is not END:
                    given.count[r, m] = len(said)
                    given.tokens[r, m, : len(said)] = said
        return jax.device_get(close(placed, state)), advance._cache_size() - before


def some_words(row, tokens):
    """What is said to a row depends on what it wrote, and on nothing else."""
    words = [2 + int(tokens.sum() + i) % (tiny.V - 2) for i in range(1 + int(tokens[-2]) % FED)]
    return [9 if w == TICK else w for w in words]


@pytest.mark.parametrize("decode_rows", [0, 2])
def test_without_fences_it_is_the_sampler(decode_rows):
    got, _ = play(SETTINGS._replace(decode_rows=decode_rows), None, table=NO_FENCES)
    wanted = tiny.roll_out(MODEL, tiny.host_params(), tiny.prompts(), settings=SETTINGS)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.completions.tokens, wanted.completions.tokens)


@pytest.fixture(scope="module")
def played():
    return play(SETTINGS, some_words)


def test_given_tokens_are_context(played):
    """Positions run on, the segment is the row's, and the policy did not choose them; the trainer sees what it saw."""
    rollout, _ = played
    tokens, mask, written = rollout.completions.tokens, rollout.completion_mask, rollout.completions.segments > 0
    assert not (mask & ~written).any() and (written & ~mask).any(), "some row must hear something"
    np.testing.assert_array_equal(np.sort(written, 1)[:, ::-1], written)  # a prefix of the row
    np.testing.assert_array_equal(np.diff(rollout.completions.positions), 1)
    assert np.all(rollout.logprobs[~mask] == 0) and np.all(tokens[~written] == tiny.PAD)
    heard = 0
    for row, own, there in zip(tokens, mask, written, strict=True):
        t, fences_seen = 0, 0
        while t < there.sum():
            assert own[t]
            fences_seen += row[t] == TICK
            t += 1
            if row[t - 1] == TICK and fences_seen > 1 and t < there.sum():
                words = some_words(None, row[:t])
                words = words[: len(row) - t]
                np.testing.assert_array_equal(row[t : t + len(words)], words)
                assert not own[t : t + len(words)].any()
                t, fences_seen, heard = t + len(words), 0, heard + 1
    assert heard > 3
    logprobs, _ = completion_logprobs(MODEL, tiny.host_params(), rollout.prompts, rollout.completions, chunk=8)
    assert float(jnp.abs(jnp.where(mask, logprobs - rollout.logprobs, 0)).max()) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": SETTINGS._replace(decode_rows=2)},
        {"delay": lambda row, call: row % 3},
        {"mesh": (2, 2, 1)},
        {"model": tiny.decoder(decode_layers="unroll", decode_weights="joined")},
    ],
    ids=["refilled", "late answers", "mesh", "unrolled"],
)
def test_tokens_do_not_depend_on_company(played, changes):
    changes = dict(changes)
    settings = changes.pop("settings", SETTINGS)
    if "mesh" in changes:
        changes["mesh"] = tiny.mesh_of(*changes["mesh"])
    got, compiled = play(settings, some_words, **changes)
    for name in ("completion_mask", "finished"):
        np.testing.assert_array_equal(getattr(got, name), getattr(played[0], name))
    np.testing.assert_array_equal(got.completions.tokens, played[0].completions.tokens)
    np.testing.assert_allclose(got.logprobs, played[0].logprobs, rtol=1e-4, atol=1e-4)
    again = [play(settings, some_words, **changes)[1] for _ in range(2)]
    assert compiled + again[0] <= 2 and again[1] == 0, "shapes and layouts do not change from step to step"


def test_going_on_without_words(played):
    """A false alarm costs nothing: the row goes on as if it had not paused."""
    without = tiny.roll_out(MODEL, tiny.host_params(), tiny.prompts(), settings=SETTINGS)
    got, _ = play(SETTINGS, lambda row, tokens: None)
    np.testing.assert_array_equal(got.completions.tokens, without.completions.tokens)
    np.testing.assert_array_equal(got.completion_mask, without.completion_mask)


@pytest.mark.parametrize("decode_rows", [0, 2])
def test_an_end(played, decode_rows):
    """Rows that the host ends are not finished, and others take their place."""
    settings = SETTINGS._replace(decode_rows=decode_rows)
    got, _ = play(settings, lambda row, tokens: END)
    whole = played[0]
    paused = (whole.completions.segments > 0).sum(1) > whole.completion_mask.sum(1)
    assert paused.any() and not got.finished[paused].any()
    for b in np.flatnonzero(paused):
        length = got.completion_mask[b].sum()
        first = np.argmin(whole.completion_mask[b])
        assert length == first and got.completions.tokens[b, length - 1] == TICK
    np.testing.assert_array_equal(got.completions.tokens[~paused], whole.completions.tokens[~paused])


def test_words_up_to_the_end_of_the_row():
    got, _ = play(SETTINGS, lambda row, tokens: [3] * FED)
    written, mask = got.completions.segments.sum(1), got.completion_mask
    cut = (written == 24) & ~mask[:, -1]
    assert cut.any() and not got.finished[cut].any()


@pytest.mark.parametrize(
    ("pieces", "closes"),
    [
        (["```", "a", "```"], [2]),
        (["`", "`", "`", "a", "`", "`", "`"], [6]),
        (["``", "`a", "`", "``"], [3]),
        (["x```", "a", "x``", "`"], [3]),
        (["```", "```\n"], [1]),
        (["``", "a`", "`", "a", "``"], []),
        (["```", "a``", "a`", "``b"], [3]),
        (["`", "a", "`", "a", "`"], []),
    ],
)
def test_fences_over_tokens(pieces, closes):
    """A row pauses with the token that holds a fence's third backtick, if a fence came before."""
    table = fences(pieces, len(pieces) + 2)
    backticks, opened, found = jnp.int32(0), False, []
    for i in range(len(pieces)):
        fence, backticks = pauses._watch(backticks, jnp.int32(i), table)
        if bool(fence) and opened:
            found.append(i)
        opened |= bool(fence)
    assert found == closes


def test_given_is_of_one_shape():
    given = nothing_given(type("State", (), {"waiting": np.zeros((2, 3), bool)}), 4)
    assert [x.shape for x in given] == [(2, 3), (2, 3), (2, 3, 4)] and isinstance(given, Given)
