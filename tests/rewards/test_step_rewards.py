"""Steps: where they end, what a rule says of them, on the host and on the devices alike, and what rewards come to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data import steps as data_steps
from grpo_jax.rewards import step_match
from grpo_jax.rewards.combine import combine_all
from grpo_jax.rewards.reward import Batch, Encoding, RewardError, StepRewards
from grpo_jax.rewards.score import score
from grpo_jax.rewards.splitting import Splitting, step_ends, steps_of, text_steps, token_steps
from grpo_jax.types import Problem, Prompts, Rollout, Sequences

# One token a character but for "12", a newline with the digit before it, and the end, whose text is empty.
TEXTS = [*"0123456789+=. abcAB", "\n", "12", "3\n", "<end>"]
END = len(TEXTS) - 1
WIDTH = 12


def encode(text: str) -> list[int]:
    return [TEXTS.index(character) for character in text]


def decode(ids) -> str:
    return "".join(TEXTS[i] for i in ids if i != END)


ENCODING = Encoding(encode, (END,), WIDTH, decode)
NEWLINE = encode("\n")


def tokens(*parts: str) -> list[int]:
    return [TEXTS.index(part) for part in parts]


@pytest.mark.parametrize(
    ("text", "split", "pattern", "expected"),
    [
        ("55\n46", "newline", None, [("55", 3), ("46", 5)]),
        ("55\n\n46\n", "newline", None, [("55", 4), ("46", 7)]),
        ("\n55", "newline", None, [("55", 3)]),
        ("", "newline", None, []),
        ("\n", "newline", None, []),
        ("One is 1.5. Two is 2. x", "sentence", None, [("One is 1.5.", 12), ("Two is 2. x", 23)]),
        ("a = 1; b = 2; c", "regex", ";", [("a = 1;", 6), ("b = 2;", 13), ("c", 15)]),
    ],
)
def test_steps_of_a_text(text, split, pattern, expected):
    assert text_steps(text, Splitting(split=split, pattern=pattern)) == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([*encode("55\n46"), END], [("55", 2), ("46", 5)]),  # the last step ends at the end of sequence
        (encode("55\n46"), [("55", 2), ("46", 4)]),  # cut by the length limit
        ([*encode("55\n46\n"), END], [("55", 2), ("46", 6)]),  # no step of the end alone
        (encode("55\n\n46"), [("55", 3), ("46", 5)]),
        (encode("55\n"), [("55", 2)]),
        ([END], [("", 0)]),
    ],
)
@pytest.mark.parametrize("split", ["newline", "tokens"])
def test_steps_of_tokens(ids, expected, split):
    got = steps_of(decode(ids), ids, Splitting(split=split), ENCODING, NEWLINE)
    assert [(s.content if split == "newline" else decode(s.content), s.end) for s in got] == expected


def test_a_step_that_ends_within_a_token_takes_it_whole():
    ids = tokens("12", "3\n", "4", "<end>")
    assert [(s.content, s.end) for s in steps_of(decode(ids), ids, Splitting(), ENCODING)] == [("123", 1), ("4", 3)]
    both = tokens("1", "3\n", "<end>")
    one = steps_of(
        "1;3\n",
        both,
        Splitting(split="regex", pattern=";"),
        ENCODING._replace(decode=lambda ids: "1;3\n"[: 4 * len(ids)]),
    )
    assert [(s.content, s.end) for s in one] == [("1;", 0), ("3", 2)]


rows = st.lists(st.sampled_from([*encode("12\n\n\n3"), END]), min_size=1, max_size=WIDTH)


@settings(max_examples=60)
@given(rows)
def test_devices_end_steps_where_the_host_does(ids):
    padded, mask = np.full(WIDTH, END, np.int32), np.arange(WIDTH) < len(ids)
    padded[: len(ids)] = ids
    ends, _ = step_ends(jnp.array(padded), jnp.array(mask), jnp.array(NEWLINE), jnp.array([END]))
    assert list(np.nonzero(ends)[0]) == [step.end for step in token_steps(ids, NEWLINE, [END])]


lines = st.lists(st.sampled_from(encode("12\n\n\n3")), min_size=1, max_size=WIDTH - 1)


@settings(max_examples=60)
@given(lines)
def test_labels_tokens_and_text_have_the_same_steps(ids):
    """Of lines, whatever stands before the first or behind the last: three ways to say it, one place that knows."""
    ids = [*ids, END]
    newline = np.isin(np.arange(max(*NEWLINE, END, *ids) + 1), NEWLINE)
    labelled = data_steps.step_ends(np.array([ids]), np.ones((1, len(ids)), bool), newline, (END,))
    by_tokens = token_steps(ids, NEWLINE, [END])
    by_text = steps_of(decode(ids), ids, Splitting(), ENCODING)
    assert np.flatnonzero(labelled[0]).tolist() == [step.end for step in by_tokens] == [step.end for step in by_text]
    assert [decode(step.content) for step in by_tokens] == [step.content for step in by_text]


# --- the rule ---

PROBLEMS = [Problem("47+8-9=", "46", solution="55\n46"), Problem("1+1=", "2", solution="2"), Problem("2=", "2")]
COMPLETIONS = [
    *([*encode("55\n46"), END], [*encode("55\n47"), END], [*encode("54\n46"), END], [*encode("46"), END]),
    *([*encode("2"), END], [*encode("2\n2"), END], encode("\n2"), [END]),
    *([*encode("2"), END], [*encode("3\n"), END], encode("2"), encode("4\n4")),
]
SAID = [
    *([(2, 1.0), (5, 1.0)], [(2, 1.0), (5, 0.0)], [(2, 0.0), (5, 1.0)], [(2, 0.0)]),
    *([(1, 1.0)], [(1, 1.0), (3, 0.0)], [(1, 1.0)], [(0, 0.0)]),
]


def rollout_of(completions, P) -> Rollout:
    B = len(completions)
    ids, mask = np.full((B, WIDTH), END, np.int32), np.zeros((B, WIDTH), bool)
    for row, said in enumerate(completions):
        ids[row, : len(said)], mask[row, : len(said)] = said, True
    zeros = np.zeros((P, 1), np.int32)
    return Rollout(
        Prompts(Sequences(zeros, zeros, zeros), np.arange(P)),
        Sequences(ids, np.zeros_like(ids), mask.astype(np.int32)),
        mask,
        np.zeros((B, WIDTH), np.float32),
        np.ones(B, bool),
    )


def by_host(reward, problems, completions):
    scored = score(
        problems,
        [decode(ids) for ids in completions],
        [reward],
        None,
        num_generations=len(completions) // len(problems),
        completion_ids=completions,
        encoding=ENCODING,
    )
    return scored.parts[0], *scored.steps["step_match"]


def test_the_rule_by_hand():
    """A newline in front belongs to the step, of tokens as of text."""
    reward = step_match.build(step_match.Config(split="tokens"))
    outcome, steps, mask = by_host(reward, PROBLEMS, COMPLETIONS)
    said = [
        [(t, r) for t, r in enumerate(row) if m[t]]
        for row, m in zip(steps.reshape(-1, WIDTH), mask.reshape(-1, WIDTH), strict=True)
    ]
    assert said[:8] == SAID
    assert outcome[0].tolist() == [1.0, 0.5, 0.5, 0.0] and np.isnan(outcome[2]).all()
    assert all(np.isnan(r) for row in said[8:] for _, r in row) and all(said[8:])
    in_text = by_host(step_match.build(step_match.Config()), PROBLEMS, COMPLETIONS)
    assert in_text[1][1, 2].tolist() == [0, 1.0] + [0] * (WIDTH - 2)


def assert_equal_forms(problems, completions):
    reward = step_match.build(step_match.Config(split="tokens", right=2.0, wrong=-1.0))
    host = by_host(reward, problems, completions)
    device = jax.jit(reward.array)(rollout_of(completions, len(problems)), reward.columns(problems, ENCODING))
    np.testing.assert_array_equal(device.step_mask, host[2])
    np.testing.assert_array_equal(device.steps, host[1])
    np.testing.assert_allclose(device.outcome, host[0], rtol=1e-6)


def test_both_forms_give_the_same_numbers():
    assert_equal_forms(PROBLEMS, COMPLETIONS)


solutions = st.one_of(st.none(), st.text("12\n", max_size=WIDTH + 4))


@settings(max_examples=60)
@given(st.lists(solutions, min_size=2, max_size=2), st.lists(rows, min_size=4, max_size=4))
def test_both_forms_give_the_same_numbers_of_anything(said, completions):
    assert_equal_forms([Problem("", "", solution=text) for text in said], completions)


def test_a_solution_longer_than_any_completion_has_steps_that_nothing_matches():
    """Found by the test above: its second step begins where the arrays end."""
    said = [Problem("", "", solution="1" * WIDTH + "\n2"), Problem("", "", solution="1\n2")]
    completions = [encode("\n2"), encode("\n1"), encode("1\n2"), encode("2")]
    assert_equal_forms(said, completions)
    reward = step_match.build(step_match.Config(split="tokens"))
    assert by_host(reward, said, completions)[0].tolist() == [[0.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "regex"}, "give regex its pattern"),
        ({"pattern": ";"}, "split is newline and pattern is ';'"),
        ({"split": "regex", "pattern": "("}, "is no regular expression"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(RewardError, match=words):
        step_match.build(step_match.Config(**settings))


def test_a_delimiter_of_two_tokens_is_refused():
    reward = step_match.build(step_match.Config(split="tokens", delimiters=("ab",)))
    with pytest.raises(RewardError, match="delimiter 'ab' is 2 tokens"):
        reward.host(Batch(PROBLEMS[:1], ["2"], [""], [[2]], encoding=ENCODING), None)


# --- what rewards come to ---


def test_combined_by_hand():
    """Steps are weighed and added up; what is known at the end of a completion is added to its last step."""
    steps = StepRewards(
        jnp.array([[0.5, 1.0, jnp.nan]]),
        jnp.array([[[1.0, 0, 0.0, 0], [0, 1.0, 0, 0], [0, 0, jnp.nan, 0]]]),
        jnp.array([[[True, False, True, False], [False, True, False, False], [False, False, True, False]]]),
    )
    accuracy = jnp.array([[0.0, 1.0, 1.0]])
    values, total = combine_all([accuracy, steps], jnp.array([0.25, 2.0]))
    np.testing.assert_array_equal(values, [accuracy, steps.outcome])
    np.testing.assert_allclose(total.outcome, [[1.0, 2.25, jnp.nan]])
    np.testing.assert_allclose(total.steps, [[[2.0, 0, 0, 0], [0, 2.25, 0, 0], [0, 0, jnp.nan, 0]]])
    np.testing.assert_array_equal(total.step_mask, steps.step_mask)
    _, plain = combine_all([accuracy], jnp.array([0.25]))
    assert plain.steps is None and plain.step_mask is None
