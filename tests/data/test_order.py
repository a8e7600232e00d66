"""The order of the data is a pure function of (seed, step)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.order import OrderError, batch_indices, distinct_indices


@given(n=st.integers(1, 40), batch=st.integers(1, 90), seed=st.integers(0, 2**63))
@settings(max_examples=40)
def test_every_epoch_has_every_problem_once(n, batch, seed):
    steps = -(-3 * n // batch)
    row = np.concatenate([batch_indices(n, batch, seed=seed, step=step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(row[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_no_state_between_calls():
    forward = [batch_indices(100, 7, seed=3, step=step) for step in range(60)]
    backward = [batch_indices(100, 7, seed=3, step=step) for step in reversed(range(60))][::-1]
    np.testing.assert_array_equal(forward, backward)


def test_epochs_and_seeds_differ():
    epochs = [batch_indices(50, 50, seed=0, step=step).tolist() for step in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert batch_indices(50, 50, seed=1, step=0).tolist() not in epochs


def test_batch_size_cuts_the_same_row():
    small = np.concatenate([batch_indices(30, 5, seed=0, step=step) for step in range(12)])
    large = np.concatenate([batch_indices(30, 20, seed=0, step=step) for step in range(3)])
    np.testing.assert_array_equal(small, large)


def test_order_is_fixed_for_ever():
    assert batch_indices(10, 10, seed=0, step=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert batch_indices(10, 3, seed=7, step=100).tolist() == [0, 8, 3]


def test_nothing_to_draw_from():
    with pytest.raises(OrderError, match="no problems"):
        batch_indices(0, 4, seed=0, step=0)


@given(n=st.integers(1, 40), batch=st.integers(1, 40), seed=st.integers(0, 5))
@settings(max_examples=50)
def test_distinct_batches_repeat_nothing_within_a_batch_or_an_epoch(n, batch, seed):
    if n < batch:
        with pytest.raises(OrderError, match=f"{n} problems do not fill a batch of {batch}"):
            distinct_indices(n, batch, seed=seed, step=0)
        return
    per_epoch = n // batch
    epochs = [
        np.concatenate([distinct_indices(n, batch, seed=seed, step=e * per_epoch + i) for i in range(per_epoch)])
        for e in range(3)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == per_epoch * batch
    np.testing.assert_array_equal(epochs[1][:batch], distinct_indices(n, batch, seed=seed, step=per_epoch))
