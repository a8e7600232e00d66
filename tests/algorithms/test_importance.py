"""Truncated importance weights: golden numbers, the gradient by finite differences, and that they remove the bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.algorithms import grpo
from grpo_jax.algorithms.importance import importance, importance_corrected
from grpo_jax.algorithms.weights import sequence_mean
from grpo_jax.types import Experience

CAP = 2.0
MASK = jnp.array([[True, True, True], [True, True, False]])
OLD = jnp.log(jnp.array([[0.5, 0.25, 0.9], [0.1, 0.4, 1.0]]))
BEHAVIOUR = jnp.log(jnp.array([[0.5, 0.5, 0.3], [0.04, 0.4, 1.0]]))
RATIO = np.array([[1.0, 0.5, 3.0], [2.5, 1.0, 1.0]])


def experience(**changes) -> Experience:
    arrays = {
        "advantages": jnp.where(MASK, jnp.array([[1.0], [-0.5]]), 0.0),
        "weights": sequence_mean(MASK),
        "behaviour_logprobs": BEHAVIOUR,
    }
    return Experience(prompts=None, completions=None, completion_mask=MASK, **arrays | changes)


def test_golden_numbers():
    weights = importance(OLD, BEHAVIOUR, MASK, cap=CAP)
    np.testing.assert_allclose(weights, [[1.0, 0.5, 2.0], [2.0, 1.0, 1.0]], rtol=1e-6)
    slope = jax.grad(lambda old: importance(old, BEHAVIOUR, MASK, cap=CAP).sum())(OLD)
    assert not np.any(slope)


def test_what_is_off_the_mask_is_not_felt():
    dirty = jnp.where(MASK, BEHAVIOUR, -jnp.inf)
    clean = importance(OLD, BEHAVIOUR, MASK, cap=CAP)
    np.testing.assert_array_equal(importance(OLD, dirty, MASK, cap=CAP), clean)


def test_loss_and_metrics_by_hand():
    """One update: the ratio of the method is 1, so the loss is minus the sum of weight, importance and advantage."""
    algorithm = importance_corrected(grpo.build(grpo.Config(beta=0.0)), cap=CAP)
    loss, metrics = algorithm.loss(OLD, experience())
    np.testing.assert_allclose(loss, -((1.0 + 0.5 + 2.0) / 6 - 0.5 * (2.0 + 1.0) / 4), rtol=1e-5)
    np.testing.assert_allclose(jnp.where(MASK, metrics["importance/mean"], 1.0), RATIO, rtol=1e-5)
    np.testing.assert_allclose(jnp.where(MASK, metrics["importance/max"], 1.0), RATIO, rtol=1e-5)
    np.testing.assert_array_equal(metrics["importance/truncated"], [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_allclose(metrics["ratio/mean"], 1.0)


def test_the_kl_term_is_corrected_too():
    plain = grpo.build(grpo.Config(beta=0.3))
    corrected = importance_corrected(plain, cap=CAP)
    e = experience(advantages=jnp.zeros((2, 3)), ref_logprobs=OLD + jnp.where(MASK, 0.7, 0.0))
    by_token = np.where(MASK, 0.3 * (np.exp(0.7) - 1.7), 0.0) * np.asarray(e.weights)
    np.testing.assert_allclose(plain.loss(OLD, e)[0], by_token.sum(), rtol=1e-5)
    np.testing.assert_allclose(corrected.loss(OLD, e)[0], (by_token * np.minimum(RATIO, CAP)).sum(), rtol=1e-5)


@pytest.mark.parametrize("updates", [1, 2])
def test_gradient_by_finite_differences(updates):
    """With a second update `old` is an array, and the policy has moved off it; within the clip, where it is smooth.

    With one, the loss that is differentiated holds `old` and the importance at the policy's own value, so the function
    for the differences is written out with both as constants.
    """
    cap = 2.2  # no token stands on the border
    moved = OLD + jnp.array([[0.05, -0.1, 0.08], [0.03, -0.04, 0.0]])
    at = OLD if updates == 1 else moved
    e = experience(old_logprobs=None if updates == 1 else OLD, ref_logprobs=OLD + jnp.where(MASK, 0.2, 0.0))
    algorithm = importance_corrected(grpo.build(grpo.Config(beta=0.1)), cap=cap)
    got = jax.grad(lambda x: algorithm.loss(x, e)[0])(at)
    factor = np.minimum(RATIO, cap) * np.asarray(e.weights, np.float64)
    advantages, ref, old = (np.asarray(x, np.float64) for x in (e.advantages, e.ref_logprobs, OLD))

    def objective(x):
        d = ref - x
        return -(factor * (np.exp(x - old) * advantages - 0.1 * (np.exp(d) - d - 1))).sum()

    x, h = np.asarray(at, np.float64), 1e-5
    for b, t in np.argwhere(np.asarray(MASK)):
        step = np.zeros_like(x)
        step[b, t] = h
        slope = (objective(x + step) - objective(x - step)) / (2 * h)
        np.testing.assert_allclose(got[b, t], slope, rtol=1e-4, atol=1e-6)
    assert got[1, 2] == 0


def test_on_policy_nothing_changes():
    plain = grpo.build(grpo.Config(beta=0.04))
    e = experience(behaviour_logprobs=OLD, ref_logprobs=OLD - 0.1)
    for function in (lambda a: a.loss(OLD, e)[0], lambda a: jax.grad(lambda x: a.loss(x, e)[0])(OLD)):
        np.testing.assert_array_equal(function(plain), function(importance_corrected(plain, cap=CAP)))


def test_the_mean_over_the_sampler_is_the_mean_over_the_policy():
    """Over all tokens of a small vocabulary, each as often as the sampler draws it: the policy's own gradient."""
    rng = np.random.default_rng(0)
    theta, advantages = rng.normal(size=(2, 5))
    sampler = jax.nn.log_softmax(jnp.asarray(theta + 0.4 * rng.normal(size=5)))
    mask = jnp.ones((5, 1), bool)

    def gradient(drawn_from, algorithm):
        e = Experience(
            prompts=None,
            completions=None,
            completion_mask=mask,
            weights=jnp.exp(drawn_from)[:, None],
            advantages=jnp.asarray(advantages)[:, None],
            behaviour_logprobs=drawn_from[:, None],
        )
        return jax.grad(lambda x: algorithm.loss(jax.nn.log_softmax(x)[:, None], e)[0])(jnp.asarray(theta))

    plain = grpo.build(grpo.Config(beta=0.0))
    right = gradient(jax.nn.log_softmax(jnp.asarray(theta)), plain)
    corrected = gradient(sampler, importance_corrected(plain, cap=100.0))
    np.testing.assert_allclose(corrected, right, atol=1e-6)
    assert np.abs(gradient(sampler, plain) - right).max() > 0.05


def test_without_the_samplers_log_probabilities():
    algorithm = importance_corrected(grpo.build(grpo.Config(beta=0.0)), cap=CAP)
    with pytest.raises(ValueError, match="behaviour_logprobs is None"):
        algorithm.loss(OLD, experience(behaviour_logprobs=None))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token_truncate", [[1.0, 0.5, 2.0], [2.0, 1.0, 1.0]]),
        ("token_mask", [[1.0, 0.5, 0.0], [0.0, 1.0, 1.0]]),
        ("sequence_truncate", [[1.5, 1.5, 1.5], [2.0, 2.0, 1.0]]),
        ("sequence_mask", [[1.5, 1.5, 1.5], [0.0, 0.0, 1.0]]),
    ],
)
def test_modes_by_hand(mode, expected):
    """The ratios of the tokens are those of `RATIO`; of the completions, their products 1.5 and 2.5."""
    got = importance(OLD, BEHAVIOUR, MASK, cap=CAP, mode=mode)
    np.testing.assert_allclose(jnp.where(MASK, got, 1.0), expected, rtol=1e-5)
    corrected = importance_corrected(grpo.build(grpo.Config(beta=0.0)), cap=CAP, mode=mode)
    loss, _ = corrected.loss(OLD, experience())
    e = experience()
    np.testing.assert_allclose(loss, -(np.asarray(expected) * e.weights * e.advantages).sum(), rtol=1e-5)
