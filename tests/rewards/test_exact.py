"""The reward `exact`: by hand, and its two forms against each other on completions that often match."""

import jax
import numpy as np
import pytest

from grpo_jax.configure import kind_class
from grpo_jax.rewards.reward import Batch, Encoding, RewardError, load_reward
from grpo_jax.types import Problem, Prompts, Rollout, Sequences

WIDTH = 6
ENDS = (0, 9)
ENCODING = Encoding(lambda text: [int(character) for character in text], ENDS, WIDTH)


def exact(**settings):
    return load_reward(kind_class("rewards", "exact")(kind="exact", **settings))


def problem(answer: str) -> Problem:
    return Problem(question="?", answer=answer)


def by_host(reward, problems, rows) -> list[float]:
    """rows [P][G] of tokens."""
    flat = [row for group in rows for row in group]
    repeated = [one for one, group in zip(problems, rows, strict=True) for _ in group]
    batch = Batch(repeated, [""] * len(flat), [""] * len(flat), flat, encoding=ENCODING)
    return reward.host(batch, None).values


def by_array(reward, problems, rows) -> list[float]:
    flat = [row for group in rows for row in group]
    tokens = np.full((len(flat), WIDTH), 5, np.int32)  # what stands off the mask must not matter
    for line, row in zip(tokens, flat, strict=True):
        line[: len(row)] = row
    mask = np.arange(WIDTH) < np.array([len(row) for row in flat])[:, None]
    nothing = np.zeros((len(problems), 3), np.int32)
    prompts = Prompts(Sequences(nothing, nothing, nothing), np.arange(len(problems)))
    rollout = Rollout(
        prompts, Sequences(tokens, tokens, tokens), mask, np.zeros(tokens.shape), np.ones(len(flat), bool)
    )
    columns = reward.columns(problems, ENCODING)
    assert all(array.shape[0] == len(problems) for array in columns.values())
    values = jax.jit(reward.array)(rollout, columns)
    assert values.shape == (len(problems), len(rows[0])) and values.dtype == np.float32
    return np.asarray(values).reshape(-1).tolist()


def test_the_whole_completion():
    """4 and 6 then an end of either kind, or cut by the limit; not what is longer, shorter, or other tokens."""
    rows = [
        [[4, 6, 0], [4, 6, 9], [4, 6], [1, 4, 6, 0], [4, 0], [4, 6, 0, 0], [], [0], [4, 5, 0]],
        [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 0], [], [0], [9], [1, 2, 3, 4, 5], [6], [6, 0], [7]],
    ]
    problems, wanted = [problem("46"), problem("123456")], [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    for form in (by_host, by_array):
        assert form(exact(), problems, rows) == wanted
        assert form(exact(correct=2.0, wrong=-1.0), problems, rows) == [2.0 if right else -1.0 for right in wanted]


def test_the_end_of_a_completion():
    """Alone or after a 5 or a 7, which stand for a line break and an equals sign; not after a 1, and nothing behind."""
    rows = [[[3, 5, 4, 6, 0], [5, 4, 6], [4, 6, 0], [7, 7, 4, 6, 9], [1, 4, 6, 0], [5, 4, 6, 0, 0], [5, 4, 6, 5, 0]]]
    for form in (by_host, by_array):
        assert form(exact(after=("5", "7")), [problem("46")], rows) == [1, 1, 1, 1, 0, 0, 0]


def test_an_answer_longer_than_a_completion_can_be():
    rows = [[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 0]]]
    for form in (by_host, by_array):
        assert form(exact(), [problem("1234567")], rows) == [0, 0]


@pytest.mark.parametrize("settings", [{}, {"form": "1{answer}", "after": ("2",)}])
def test_both_forms_give_the_same_numbers(settings):
    """Completions of three tokens, one of which ends them, for answers of one or two."""
    rng = np.random.default_rng(0)
    rows = [[rng.choice([0, 1, 2, 9], rng.integers(0, WIDTH + 1)).tolist() for _ in range(200)] for _ in range(12)]
    problems = [problem("".join(rng.choice(["1", "2"], rng.integers(1, 3)))) for _ in rows]
    reward = exact(**settings)
    values = by_host(reward, problems, rows)
    assert values == by_array(reward, problems, rows) and 30 < sum(values) < 1500


def test_refused():
    with pytest.raises(RewardError, match="has 0 times"):
        exact(form="the answer")
    with pytest.raises(RewardError, match="after '12' is 2 tokens"):
        exact(after=("1", "12")).columns([problem("1")], ENCODING)
    with pytest.raises(RewardError, match="compares tokens, and here is text only"):
        exact().host(Batch([problem("1")], ["1"], [""]), None)
