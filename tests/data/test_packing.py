"""Packing: the golden vector, the plan as a pure function, and rows that keep examples apart."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.demonstrations import Example, fit
from grpo_jax.data.packing import PackingError, PackingPlan, pack, packed_batch

LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=30)


def made(lengths):
    """Examples whose tokens tell the example and the place."""
    return [
        Example(np.arange(n, dtype=np.int32) + 100 * i, np.arange(n) >= n // 2, f"e{i}")
        for i, n in enumerate(lengths, start=1)
    ]


def plan(lengths, **changes):
    settings = {"max_length": 16, "batch_size": 3, "seed": 0, **changes}
    return PackingPlan(lengths, **settings)


def test_golden_sft_packing(vectors):
    vector = vectors["sft_packing"]
    context, expected = vector["inputs"]["context"], vector["expected"]
    kept = fit(made(vector["inputs"]["lengths"]), context, "truncate", lambda _: None)
    lengths = [len(example.tokens) for example in kept]
    packs = [lengths[start:stop] for start, stop in pack(lengths, context)]
    assert packs == expected["packs"]
    assert [sum(row) / context for row in packs] == expected["fill"]


@given(LENGTHS)
def test_every_example_is_packed_once_in_order_and_no_row_overflows(lengths):
    rows = pack(lengths, 16)
    assert [i for start, stop in rows for i in range(start, stop)] == list(range(len(lengths)))
    assert all(sum(lengths[start:stop]) <= 16 for start, stop in rows)
    assert all(sum(lengths[a:c]) + lengths[c] > 16 for (a, _), (c, _) in itertools.pairwise(rows))


@given(lengths=LENGTHS, seed=st.integers(0, 9), packing=st.booleans())
@settings(max_examples=40)
def test_every_epoch_has_every_example_once(lengths, seed, packing):
    p = plan(lengths, seed=seed, packing=packing)
    row = np.concatenate([x for step in range(2 * len(lengths)) for x in p.rows(step)])
    for epoch in range(2):
        part = row[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(part) == list(range(len(lengths)))
    assert all(len(p.rows(step)) == 3 for step in range(3))


@pytest.mark.parametrize("packing", [True, False])
def test_the_plan_is_a_pure_function_of_seed_and_step(packing):
    lengths = np.random.default_rng(0).integers(1, 17, 40)
    forward = plan(lengths, packing=packing)
    rows = [[x.tolist() for x in forward.rows(step)] for step in range(30)]
    for step in (29, 0, 13):  # a resumed run begins in the middle
        assert [x.tolist() for x in plan(lengths, packing=packing).rows(step)] == rows[step]
        assert [x.tolist() for x in forward.rows(step)] == rows[step]
    assert [x.tolist() for x in plan(lengths, packing=packing, seed=1).rows(0)] != rows[0]


@given(lengths=LENGTHS, packing=st.booleans(), step=st.integers(0, 3))
@settings(max_examples=40)
def test_rows_keep_examples_apart(lengths, packing, step):
    examples, p = made(lengths), plan(lengths, packing=packing)
    sequences, loss_mask = packed_batch(examples, p, step, 7)
    tokens, positions, segments = sequences.tokens, sequences.positions, sequences.segments
    assert tokens.shape == loss_mask.shape == (3, 16) and loss_mask.dtype == bool
    for r, row in enumerate(p.rows(step)):
        assert segments[r].max() == len(row)
        for segment, number in enumerate(row, start=1):
            here, example = segments[r] == segment, examples[number]
            np.testing.assert_array_equal(tokens[r, here], example.tokens)
            np.testing.assert_array_equal(positions[r, here], np.arange(len(example.tokens)))
            first_is_never_learnt = example.loss_mask & (np.arange(len(example.tokens)) > 0)
            np.testing.assert_array_equal(loss_mask[r, here], first_is_never_learnt)
        padding = segments[r] == 0
        assert (tokens[r, padding] == 7).all() and not loss_mask[r, padding].any()
        assert not (padding[:-1] & ~padding[1:]).any()  # all at the end


def test_packed_and_unpacked_rows_teach_the_same_tokens():
    lengths = [3, 5, 7, 16, 2, 9]
    taught = []
    for packing in (True, False):
        p = plan(lengths, packing=packing, batch_size=1)
        held = np.cumsum([len(p.rows(step)[0]) for step in range(6)])
        epoch = int(np.searchsorted(held, 6)) + 1  # rows that hold all six examples
        batches = [packed_batch(made(lengths), p, step, 0) for step in range(epoch)]
        taught.append(sorted(t for s, mask in batches for t in s.tokens[mask].tolist()))
    assert taught[0] == taught[1]


def test_fill_is_the_share_that_is_no_padding():
    p = plan([16, 8], batch_size=2)
    assert p.fill(0) == 0.75
    sequences, _ = packed_batch(made([16, 8]), p, 0, 0)
    assert (sequences.segments > 0).mean() == 0.75


def test_what_does_not_fit_and_what_is_not_there():
    with pytest.raises(PackingError, match="example 1: 17 tokens do not fit a row of 16"):
        plan([3, 17])
    with pytest.raises(PackingError, match="no examples"):
        plan([])
