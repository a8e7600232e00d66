"""Advantages against golden numbers, identities, and the ways in which peers got them wrong."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.algorithms.advantages import (
    dead_groups,
    gae,
    group_centered,
    group_normalized,
    leave_one_out,
    process_normalized,
)

GROUPS = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=8)


@pytest.mark.parametrize("name", ["adv_outcome_deck", "adv_outcome_model", "adv_outcome_degenerate"])
def test_group_normalized_golden(vectors, name):
    v = vectors[name]
    got = group_normalized(jnp.array([v["inputs"]["rewards"]]))[0]
    np.testing.assert_allclose(got, v["expected"]["advantage"], atol=1e-5)


def test_group_normalized_is_not_the_sample_deviation(vectors):
    v = vectors["adv_outcome_deck_ddof1"]
    got = group_normalized(jnp.array([v["inputs"]["rewards"]]))[0]
    ratio = np.sqrt(3 / 4)  # sqrt((G - 1) / G)
    np.testing.assert_allclose(got * ratio, v["expected"]["advantage"], atol=1e-5)


def test_one_right_of_64_golden(vectors):
    v = vectors["adv_outcome_rare"]
    rewards = jnp.zeros((1, 64)).at[0, 5].set(1.0)
    got = group_normalized(rewards)[0]
    np.testing.assert_allclose(got[5], v["expected"]["correct"], rtol=1e-5)
    np.testing.assert_allclose(got[0], v["expected"]["wrong"], rtol=1e-5)


def test_real_groups_golden(vectors, shared):
    v = vectors["real_gsm8k_groups"]
    rows = [json.loads(line) for line in (shared / "data" / v["inputs"]["file"]).open()]
    rewards = jnp.array([[r[m]["is_correct"] for m in v["inputs"]["group_order"]] for r in rows], jnp.float32)
    advantages = group_normalized(rewards)
    assert int(dead_groups(rewards).sum()) == v["expected"]["degenerate_groups"]
    np.testing.assert_allclose(jnp.abs(advantages).sum(), v["expected"]["sum_abs_advantage"], rtol=1e-5)
    first = v["expected"]["first_nonzero_group"]
    np.testing.assert_allclose(advantages[first], v["expected"]["its_advantage"], atol=1e-5)


def steps_of(inputs):
    lengths, G = inputs["lengths"], len(inputs["lengths"])
    steps, mask = np.zeros((1, G, max(lengths))), np.zeros((1, G, max(lengths)), bool)
    for g, (rewards, ends) in enumerate(zip(inputs["step_rewards"], inputs["step_end_0based"], strict=True)):
        steps[0, g, ends], mask[0, g, ends] = rewards, True
    return jnp.array(steps), jnp.array(mask)


@pytest.mark.parametrize("name", ["adv_process_basic", "adv_process_stepcount", "adv_process_reduces_to_outcome"])
def test_process_normalized_golden(vectors, name):
    v = vectors[name]
    got = process_normalized(*steps_of(v["inputs"]))[0]
    for row, expected in zip(got, v["expected"]["advantage"], strict=True):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-5)


def test_one_step_at_the_end_is_outcome_supervision():
    rewards = jnp.array([[0.3, 0.9, 0.1], [1.0, 1.0, 1.0]])
    steps = jnp.zeros((2, 3, 4)).at[:, :, -1].set(rewards)
    mask = jnp.zeros((2, 3, 4), bool).at[:, :, -1].set(True)
    expected = jnp.broadcast_to(group_normalized(rewards)[..., None], (2, 3, 4))
    np.testing.assert_allclose(process_normalized(steps, mask), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["gae_g1.0_l0.95", "gae_g1.0_l1.0", "gae_g0.99_l0.0"])
def test_gae_golden(vectors, name):
    v = vectors[name]
    rewards, values = (jnp.array([v["inputs"][k] + [9.0]]) for k in ("token_rewards", "values"))
    mask = jnp.arange(rewards.shape[1])[None] < rewards.shape[1] - 1  # one column of padding
    advantages, returns = gae(rewards, values, mask, gamma=v["inputs"]["gamma"], lam=v["inputs"]["lam"])
    np.testing.assert_allclose(advantages[0, :-1], v["expected"]["advantages"], atol=1e-5)
    np.testing.assert_allclose(returns[0, :-1], v["expected"]["returns"], atol=1e-5)
    assert advantages[0, -1] == 0


@settings(max_examples=50)
@given(GROUPS)
def test_bounded_and_centred(rewards):
    advantages = np.asarray(group_normalized(jnp.array([rewards])))
    G = len(rewards)
    assert np.all(np.abs(advantages) <= (G - 1) / np.sqrt(G) * np.sqrt(G / (G - 1)) + 1e-3)
    assert abs(advantages.sum()) < 1e-2


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1 + 0.2, 1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("G", [2, 7, 8, 64])
def test_equal_rewards_give_exactly_zero(value, G):
    rewards = jnp.full((3, G), value)
    assert np.all(np.asarray(group_normalized(rewards)) == 0.0)
    assert bool(dead_groups(rewards).all())


def test_rounding_is_not_spread():
    value = np.float32(0.1)
    ulps = np.array([value, np.nextafter(value, np.float32(1)), np.nextafter(value, np.float32(0))] * 3)
    assert np.all(np.asarray(group_normalized(jnp.array([ulps]))) == 0.0)


def test_reward_of_the_prompt_alone_gives_zero():
    rewards = jnp.broadcast_to(jnp.arange(5.0)[:, None], (5, 4))
    assert np.all(np.asarray(group_normalized(rewards)) == 0.0)


def test_permuting_prompts_permutes_advantages():
    rewards = jnp.array(np.random.default_rng(0).normal(size=(6, 4)))
    order = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(group_normalized(rewards)[order], group_normalized(rewards[order]))


def test_unjudged_leaves_the_baseline():
    rewards = jnp.array([[1.0, jnp.nan, 0.0, 0.0]])
    got = np.asarray(group_normalized(rewards))[0]
    np.testing.assert_allclose(got[[0, 2, 3]], group_normalized(jnp.array([[1.0, 0.0, 0.0]]))[0], atol=1e-6)
    assert got[1] == 0.0
    for f in (group_centered, leave_one_out, group_normalized):
        assert np.all(np.asarray(f(jnp.array([[jnp.nan, 1.0, jnp.nan, jnp.nan]]))) == 0.0)
        assert np.all(np.asarray(f(jnp.full((2, 4), jnp.nan))) == 0.0)


def test_leave_one_out_is_centred_times_g_over_g_minus_1():
    rewards = jnp.array(np.random.default_rng(1).normal(size=(3, 5)), jnp.float32)
    np.testing.assert_allclose(leave_one_out(rewards), group_centered(rewards) * 5 / 4, rtol=1e-5)
    others = (rewards.sum(-1, keepdims=True) - rewards) / 4
    np.testing.assert_allclose(leave_one_out(rewards), rewards - others, atol=1e-5)


def test_gae_over_what_a_tool_said():
    """Tokens that the policy did not choose are no steps: as if they were not there."""
    rng = np.random.default_rng(3)
    rewards, values = (rng.normal(size=(2, 8)).astype(np.float32) for _ in range(2))
    mask = np.array([[1, 1, 0, 0, 1, 1, 0, 1], [1, 0, 1, 1, 1, 0, 0, 0]], bool)
    for row, chosen in enumerate(mask):
        got = gae(rewards[row : row + 1], values[row : row + 1], mask[row : row + 1], gamma=0.9, lam=0.8)
        short = [x[row : row + 1, chosen] for x in (rewards, values)]
        wanted = gae(*short, np.ones((1, chosen.sum()), bool), gamma=0.9, lam=0.8)
        for whole, part in zip(got, wanted, strict=True):
            np.testing.assert_allclose(np.asarray(whole)[0, chosen], np.asarray(part)[0], rtol=1e-5)
            assert not np.asarray(whole)[0, ~chosen].any()
