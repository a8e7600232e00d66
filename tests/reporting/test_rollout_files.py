"""Rollouts on disk: one group a line, NaN as null, masks kept, texts of tokens that join to the whole."""

import json

import numpy as np
import pytest

from grpo_jax.reporting.rollouts import (
    drop_rollouts_after,
    read_rollouts,
    rollout_files,
    rollout_groups,
    token_texts,
    write_rollouts,
)


def arguments() -> dict:
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    return {
        "step": 7,
        "problem_index": np.array([3, 5]),
        "questions": ["1+1", "2+2"],
        "prompts": ["Q: 1+1", "Q: 2+2"],
        "answers": ["2", "4"],
        "texts": ["2.", "x", "四", ""],
        "tokens": [["a", "b", "c", "pad"]] * 4,
        "completion_mask": mask,
        "logprobs": np.where(mask, -0.123456789, 0.0),
        "parts": {"accuracy": np.array([[1, 0], [np.nan, 0]])},
        "rewards": np.array([[1, 0], [np.nan, 0.0]]),
        "advantages": np.array([[1, -1], [0, 0.5]]),
        "finished": np.array([True, False, True, True]),
    }


def test_groups_hold_what_the_arrays_said(tmp_path):
    path = write_rollouts(tmp_path / "rl", 7, rollout_groups(**arguments()))
    assert path.name == "step_000007.jsonl"
    first, second = read_rollouts(path)
    assert [group["problem_index"] for group in (first, second)] == [3, 5]
    assert second["question"] == "2+2" and second["prompt"] == "Q: 2+2" and second["answer"] == "4"
    a, b = first["completions"]
    assert a["tokens"] == ["a", "b", "c"] and a["logprobs"] == [-0.12346] * 3
    assert b["logprobs"] == [-0.12346, None, -0.12346]  # the middle token is context, not chosen
    assert a["finished"] and not b["finished"] and (a["advantage"], b["advantage"]) == (1, -1)
    c, d = second["completions"]
    assert c["reward"] is None and c["rewards"] == {"accuracy": None} and c["text"] == "四"
    assert d["tokens"] == [] and "ref_logprobs" not in d and "extracted" not in d


def test_every_line_is_strict_json(tmp_path):
    given = arguments() | {"ref_logprobs": np.full((4, 4), -np.inf), "texts": ["\ud800", "\x00", "</script>", "\u2028"]}
    path = write_rollouts(tmp_path, 1, rollout_groups(**given))
    for line in path.read_text("utf-8").split("\n")[:-1]:
        json.loads(line, parse_constant=pytest.fail)
    texts = [item["text"] for group in read_rollouts(path) for item in group["completions"]]
    assert texts == given["texts"]


def test_token_advantages_are_given_by_their_first_chosen_token():
    per_token = np.arange(16.0).reshape(4, 4)
    groups = rollout_groups(**(arguments() | {"advantages": per_token}))
    assert [item["advantage"] for group in groups for item in group["completions"]] == [0, 4, 8, 12]


@pytest.mark.parametrize("name", ["questions", "texts", "finished"])
def test_a_wrong_length_is_named(name):
    with pytest.raises(ValueError, match=name):
        rollout_groups(**(arguments() | {name: arguments()[name][:1]}))


def test_a_row_with_too_few_token_strings_is_named():
    with pytest.raises(ValueError, match="tokens of row 2 has 3 entries, expected 4"):
        rollout_groups(**(arguments() | {"tokens": [["a", "b", "c"]] * 4}))


def test_later_steps_are_dropped_on_resume(tmp_path):
    for step in (10, 20, 30):
        write_rollouts(tmp_path, step, [])
    drop_rollouts_after(tmp_path, 20)
    assert list(rollout_files(tmp_path)) == [10, 20]
    assert rollout_files(tmp_path / "nothing") == {}


def test_halves_are_dropped_on_resume(tmp_path):
    """A process that is killed between writing and renaming leaves its own file, which no later one has the name of."""
    half = write_rollouts(tmp_path, 10, []).with_name(".step_000020.jsonl.4711.tmp")
    half.write_text('{"step": 20, "probl')
    drop_rollouts_after(tmp_path, 10)
    assert [path.name for path in half.parent.iterdir()] == ["step_000010.jsonl"]


def test_token_texts_join_to_the_whole_with_characters_of_several_tokens():
    pieces = [b"H", b"\xe4\xbd", b"\xa0", b" \xf0\x9f", b"\x98\x80", b"!", b"<eos>"]

    def decode(ids):
        return b"".join(pieces[i] for i in ids).decode("utf-8", "replace")

    texts = token_texts(range(len(pieces)), decode)
    assert texts == ["H", "", "你", "", " 😀", "!", "<eos>"]
    assert "".join(token_texts([0, 3], decode)) == decode([0, 3])  # ends within a character
