"""The GRPO objective against golden numbers and finite differences; what is masked must not be felt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.algorithms import grpo
from grpo_jax.algorithms.algorithm import maximize
from grpo_jax.algorithms.objectives import BOUND, clipped, kl_k1, kl_k2, kl_k3, token_ratio
from grpo_jax.algorithms.weights import constant_length, sequence_mean, token_mean
from grpo_jax.types import Experience


def padded(rows, fill=0.0):
    width = max(map(len, rows))
    values = np.full((len(rows), width), fill, np.float32)
    mask = np.zeros((len(rows), width), bool)
    for b, row in enumerate(rows):
        values[b, : len(row)], mask[b, : len(row)] = row, True
    return jnp.array(values), jnp.array(mask)


def experience(mask, advantages, *, weights=sequence_mean, old=None, ref=None):
    return Experience(
        prompts=None,
        completions=None,
        completion_mask=mask,
        weights=weights(mask),
        advantages=advantages,
        old_logprobs=old,
        ref_logprobs=ref,
    )


def golden_experience(v, weights=sequence_mean):
    logprobs, mask = padded(v["logp_theta"])
    old, ref = padded(v["logp_old"])[0], padded(v["logp_ref"])[0]
    advantages = jnp.array(v["advantage"])[:, None] * mask
    return logprobs, experience(mask, advantages, weights=weights, old=old, ref=ref)


def test_kl_golden(vectors):
    v = vectors["kl_estimators"]
    logprobs, ref = jnp.array(v["inputs"]["logp_theta"]), jnp.array(v["inputs"]["logp_ref"])
    mask = jnp.ones_like(logprobs, bool)
    for name, kl in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)):
        np.testing.assert_allclose(kl(logprobs, ref, mask), v["expected"][name], atol=1e-5)
    slope = jax.grad(lambda x: kl_k3(x, ref, mask).sum())(logprobs)
    np.testing.assert_allclose(slope, v["expected"]["dk3_dlogp"], atol=1e-5)


def test_k3_is_unbiased_golden(vectors):
    v = vectors["kl_k3_unbiased"]
    policy, reference = jnp.array(v["inputs"]["pi_theta"]), jnp.array(v["inputs"]["pi_ref"])
    k3 = kl_k3(jnp.log(policy), jnp.log(reference), jnp.ones(3, bool))
    np.testing.assert_allclose(k3, v["expected"]["k3_per_token"], atol=1e-5)
    np.testing.assert_allclose((policy * k3).sum(), v["expected"]["kl"], rtol=1e-5)


def test_clip_cases_golden(vectors):
    v = vectors["clip_cases"]
    old = jnp.zeros((7, 1))
    logprobs = jnp.log(jnp.array(v["inputs"]["ratio"]))[:, None]
    e = experience(jnp.ones((7, 1), bool), jnp.array(v["inputs"]["advantage"])[:, None], old=old)

    def objective(x):
        return clipped(x, e)[0]

    np.testing.assert_allclose(objective(logprobs)[:, 0], v["expected"]["objective"], rtol=1e-5)
    slope = jax.grad(lambda x: objective(x).sum())(logprobs)[:, 0]
    flows = np.array(v["expected"]["gradient_flows"])[:5]  # the last two stand on the border
    np.testing.assert_array_equal(np.asarray(slope[:5]) != 0, flows != 0)


def test_ppo_objective_golden(vectors):
    v = vectors["ppo_objective"]
    e = experience(jnp.ones((1, 3), bool), jnp.array([v["inputs"]["advantage"]]), old=jnp.zeros((1, 3)))
    objective, _ = clipped(jnp.log(jnp.array([v["inputs"]["ratio"]])), e)
    np.testing.assert_allclose(objective[0], v["expected"]["per_token"], rtol=1e-5)
    np.testing.assert_allclose((e.weights * objective).sum(), v["expected"]["J"], rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (sequence_mean, "J"),
        (token_mean, "J_token_mean"),
        (lambda mask: constant_length(mask, 4), "J_seq_sum_over_maxlen4"),
    ],
)
def test_grpo_objective_golden(vectors, weights, expected):
    v = vectors["grpo_objective"]
    logprobs, e = golden_experience(v["inputs"], weights)
    objective, metrics = clipped(logprobs, e, beta=v["inputs"]["beta"])
    per_token, _ = padded(v["expected"]["per_token"])
    np.testing.assert_allclose(jnp.where(e.completion_mask, objective, 0), per_token, atol=1e-5)
    loss, _ = maximize(lambda x, e: clipped(x, e, beta=v["inputs"]["beta"]))(logprobs, e)
    np.testing.assert_allclose(-loss, v["expected"][expected], atol=1e-6)
    assert set(metrics) >= {"kl", "kl/k1", "ratio/mean"}


def test_grpo_gradient_coefficient_golden(vectors):
    """Eq. 21: on-policy the gradient of a token's log-probability is `A + beta (pi_ref / pi - 1)` over |o| and G."""
    v = vectors["grpo_gradient_coefficient"]
    i = v["inputs"]
    theta, reference = jnp.array(i["theta"]), jax.nn.log_softmax(jnp.array(i["ref_logits"]))
    states, mask = padded([[s for s, _ in row] for row in i["sequences"]])
    actions, _ = padded([[a for _, a in row] for row in i["sequences"]])
    states, actions = states.astype(int), actions.astype(int)
    advantages, _ = padded(i["advantages"])
    algorithm = grpo.build(grpo.Config(beta=i["beta"], epsilon=i["epsilon"]))
    e = experience(mask, advantages, ref=reference[states, actions])

    def loss(logits):
        return algorithm.loss(jax.nn.log_softmax(logits)[states, actions], e)[0]

    np.testing.assert_allclose(-loss(theta), v["expected"]["J"], rtol=1e-5)
    np.testing.assert_allclose(-jax.grad(loss)(theta), v["expected"]["gradient"], atol=1e-6)
    logprobs = jax.nn.log_softmax(theta)[states, actions]
    coefficient = -jax.grad(lambda x: algorithm.loss(x, e)[0])(logprobs) / jnp.where(mask, e.weights, 1)
    expected, _ = padded(v["expected"]["GC"])
    np.testing.assert_allclose(coefficient, expected, atol=1e-5)


def test_sft_and_rft_are_the_same_weights_golden(vectors):
    v = vectors["sft_rft"]
    logprobs, mask = padded(v["inputs"]["logp"])
    correct = jnp.array(v["inputs"]["correct"])[:, None]
    np.testing.assert_allclose((sequence_mean(mask) * logprobs).sum(), v["expected"]["J_sft"], rtol=1e-5)
    np.testing.assert_allclose((sequence_mean(mask) * correct * logprobs).sum(), v["expected"]["J_rft"], rtol=1e-5)
    kept = mask & (correct > 0)
    np.testing.assert_allclose((sequence_mean(kept) * logprobs).sum(), v["expected"]["J_rft_filtered_mean"], rtol=1e-5)


def test_on_policy_loss_is_zero_and_its_gradient_is_not(vectors):
    v = vectors["grpo_objective"]["inputs"]
    logprobs, e = golden_experience(v)
    e = e.replace(old_logprobs=None, ref_logprobs=logprobs)
    value, slope = jax.value_and_grad(lambda x: maximize(clipped)(x, e)[0])(logprobs)
    assert abs(float(value)) < 1e-6
    np.testing.assert_allclose(slope, -e.weights * e.advantages, atol=1e-7)


@pytest.mark.parametrize("rubbish", [np.inf, -np.inf, np.nan, 1e30])
def test_masked_tokens_are_not_felt(vectors, rubbish):
    v = vectors["grpo_objective"]["inputs"]
    logprobs, e = golden_experience(v)

    def run(x, e):
        (loss, metrics), slope = jax.value_and_grad(
            lambda x: maximize(lambda x, e: clipped(x, e, beta=0.04))(x, e), has_aux=True
        )(x)
        return loss, slope, jax.tree.map(lambda m: jnp.where(e.completion_mask, m, 0).sum(), metrics)

    def soil(x):
        return jnp.where(e.completion_mask, x, rubbish)

    dirty = e.replace(old_logprobs=soil(e.old_logprobs), ref_logprobs=soil(e.ref_logprobs))
    jax.tree.map(np.testing.assert_array_equal, run(logprobs, e), run(soil(logprobs), dirty))


@pytest.mark.parametrize("gap", [20.0, 200.0, 1e4])
def test_far_off_tokens_stay_finite(gap):
    mask = jnp.ones((1, 2), bool)
    e = experience(mask, jnp.ones((1, 2)), old=jnp.zeros((1, 2)), ref=jnp.array([[gap, -gap]]))
    value, slope = jax.value_and_grad(lambda x: maximize(lambda x, e: clipped(x, e, beta=0.04))(x, e)[0])(
        jnp.array([[0.0, 0.0]])
    )
    assert np.isfinite(value) and np.all(np.isfinite(slope))
    exact = jnp.linspace(-10.0, 10.0, 21)
    got = kl_k3(jnp.zeros(21), exact, jnp.ones(21, bool))
    np.testing.assert_allclose(got, np.expm1(np.float64(exact)) - np.float64(exact), rtol=1e-5)
    assert BOUND > 10


def test_ratio_off_the_mask_is_one():
    mask = jnp.array([[True, False]])
    np.testing.assert_allclose(token_ratio(jnp.array([[0.0, 5.0]]), jnp.zeros((1, 2)), mask), [[1.0, 1.0]])


def test_weights_of_an_empty_batch_are_zero():
    mask = jnp.zeros((4, 3), bool)
    for weights in (sequence_mean, token_mean, lambda m: constant_length(m, 8)):
        assert np.all(np.asarray(weights(mask)) == 0)


def test_rows_without_tokens_change_nothing():
    mask = jnp.array([[True, True], [True, False]])
    wider = jnp.concatenate([mask, jnp.zeros((3, 2), bool)])
    for weights in (sequence_mean, token_mean, lambda m: constant_length(m, 8)):
        np.testing.assert_array_equal(weights(wider)[:2], weights(mask))
