"""Stop strings end a completion at the token that completes them, wherever tokens happen to be cut."""

import numpy as np

from grpo_jax.sampler.stop import cut_at_stop, stop_length
from grpo_jax.types import Rollout, Sequences

TOKENS = ["<pad>", "a", "b", "STO", "P", "\nQ", ":", "x\nQ:y"]


def decode(ids):
    return "".join(TOKENS[i] for i in ids)


def test_stop_length():
    assert stop_length([1, 2, 3, 4, 1], decode, ["STOP"]) == 4
    assert stop_length([1, 3, 2], decode, ["STOP"]) is None
    assert stop_length([1, 7, 2], decode, ["\nQ:"]) == 2
    assert stop_length([5, 6, 1, 3, 4], decode, ["STOP", "\nQ:"]) == 2
    assert stop_length([3, 4], decode, ["STOP"]) == 2
    assert stop_length([], decode, ["STOP"]) is None


def test_cut_rows_are_finished_and_clean():
    tokens = np.array([[1, 3, 4, 2], [1, 2, 1, 2], [1, 2, 3, 4]], np.int32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    positions = np.tile(np.arange(4, dtype=np.int32), (3, 1))
    rollout = Rollout(
        prompts=None,
        completions=Sequences(tokens, positions, mask.astype(np.int32)),
        completion_mask=mask,
        logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        finished=np.array([False, True, False]),
    )
    cut = cut_at_stop(rollout, decode, ["STOP"], pad_id=0)
    assert cut.completion_mask.sum(-1).tolist() == [3, 2, 4]
    assert cut.finished.tolist() == [True, True, True]
    assert cut.completions.tokens[0].tolist() == [1, 3, 4, 0]
    assert cut.logprobs[0].tolist() == [-1, -1, -1, 0]
    np.testing.assert_array_equal(cut.completions.segments, cut.completion_mask)
    assert rollout.finished.tolist() == [False, True, False], "the rollout given is not written to"
    assert cut_at_stop(rollout, decode, [], pad_id=0) is rollout


def test_a_stop_behind_what_a_tool_wrote():
    """Rows are as long as what stands in them, not as what the policy chose of it."""
    tokens = np.array([[1, 2, 2, 3, 4, 1]], np.int32)
    mask = np.array([[1, 0, 0, 1, 1, 1]], bool)
    positions = np.arange(6, dtype=np.int32)[None]
    segments, logprobs = np.ones((1, 6), np.int32), np.where(mask, -1.0, 0.0).astype(np.float32)
    rollout = Rollout(None, Sequences(tokens, positions, segments), mask, logprobs, np.array([False]))
    cut = cut_at_stop(rollout, decode, ["STOP"], pad_id=0)
    assert cut.completions.tokens[0].tolist() == [1, 2, 2, 3, 4, 0]
    assert cut.completion_mask[0].tolist() == [True, False, False, True, True, False]
    assert cut.completions.segments[0].tolist() == [1, 1, 1, 1, 1, 0] and cut.finished[0]
