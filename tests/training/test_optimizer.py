"""Schedules against golden numbers; AdamW against a few lines of NumPy; what decays; where the state lies."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.config import OptimizerConfig
from grpo_jax.training.optimizer import (
    decayed,
    learning_rate_at,
    make_optimizer,
    schedule,
)


def stacked_params(key=0):
    """A tree in the form of the decoder's: norms [L, D], biases [L, N, H]."""
    shapes = {
        "embed": (8, 4),
        "layers": {
            "attention_norm": (2, 4),
            "q": (2, 4, 2, 2),
            "q_bias": (2, 2, 2),
            "mlp_norm": (2, 4),
            "down": (2, 8, 4),
        },
        "final_norm": (4,),
        "score": (4, 1),
    }
    rng = np.random.default_rng(key)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def test_multistep_golden(vectors):
    vector = vectors["lr_multistep"]
    inputs = vector["inputs"]
    config = OptimizerConfig(learning_rate=inputs["peak"], lr_scheduler_type="multistep", warmup_steps=inputs["warmup"])
    rate = jax.jit(schedule(config, inputs["total_steps"]))
    for row in vector["expected"]["rows"]:
        np.testing.assert_allclose(rate(row["step"]), row["lr"], rtol=1e-6)
        np.testing.assert_allclose(learning_rate_at(config, inputs["total_steps"], row["step"]), row["lr"], rtol=1e-6)


def test_token_budgets_give_the_steps_of_the_schedules(vectors):
    budget = vectors["token_budget"]["expected"]
    assert round(500e9 / 10e6) == budget["base7b_steps"]
    assert round(150e9 / 4e6) == budget["exp13b_steps"] == vectors["lr_multistep"]["inputs"]["total_steps"]
    sft = 500 * 256 * 4096
    assert sft == budget["sft_tokens"]
    np.testing.assert_allclose(sft / 776e3, budget["sft_tokens_per_example_if_one_epoch"])
    prompts = 1024 // 64
    assert prompts == budget["rl_prompts_per_step_if_batch_counts_outputs"]
    assert 144e3 / prompts == budget["rl_steps_for_one_epoch_of_144k"]


@pytest.mark.parametrize("total", [1, 7, 10, 333, 1000])
def test_multistep_borders_for_any_length(total):
    config = OptimizerConfig(learning_rate=1.0, lr_scheduler_type="multistep")
    for step in range(total):
        exact = 0.1 if 10 * step >= 9 * total else 0.316 if 10 * step >= 8 * total else 1.0
        np.testing.assert_allclose(learning_rate_at(config, total, step), exact, rtol=1e-6)


def test_cosine_and_linear_start_at_the_peak_and_end_at_the_minimum():
    for name in ("cosine", "linear"):
        config = OptimizerConfig(learning_rate=2.0, lr_scheduler_type=name, warmup_steps=4, min_lr_ratio=0.05)
        rates = [learning_rate_at(config, 24, s) for s in range(25)]
        np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
        np.testing.assert_allclose(rates[14], 2.0 * (0.05 + 0.95 * 0.5), rtol=1e-6)  # half way
        np.testing.assert_allclose(rates[24], 0.1, rtol=1e-6)
        assert all(a > b for a, b in itertools.pairwise(rates[4:]))


def test_constant_after_warm_up_longer_than_the_run_never_passes_the_peak():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    np.testing.assert_allclose([learning_rate_at(config, 5, s) for s in range(5)], np.arange(1, 6) / 10)
    assert learning_rate_at(dataclasses.replace(config, warmup_steps=0), 5, 0) == 1.0


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="total_steps is 0"):
        schedule(OptimizerConfig(), 0)
    with pytest.raises(ValueError, match="'wsd'; there are constant, linear, cosine, multistep"):
        schedule(dataclasses.replace(OptimizerConfig(), lr_scheduler_type="wsd"), 5)


def test_what_decays_is_said_by_name_since_layers_are_stacked():
    assert decayed(stacked_params()) == {
        "embed": True,
        "layers": {"attention_norm": False, "q": True, "q_bias": False, "mlp_norm": False, "down": True},
        "final_norm": False,
        "score": True,
    }


def test_one_update_is_clipped_adamw():
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, weight_decay=0.1, max_grad_norm=0.5, adam_beta2=0.99)
    params, optimizer = stacked_params(), make_optimizer(config, 10)
    mask, state = decayed(params), optimizer.init(params)
    update = jax.jit(optimizer.update)
    first = second = jax.tree.map(np.zeros_like, params)
    ours, theirs = params, jax.tree.map(np.asarray, params)
    for step in range(4):
        gradient = stacked_params(step + 1)
        updates, state = update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)

        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
        gradient = jax.tree.map(lambda g, n=norm: np.asarray(g) * min(1.0, 0.5 / n), gradient)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, gradient)
        rate, n = 1e-2 * min(1.0, (step + 1) / 2), step + 1
        theirs = jax.tree.map(
            lambda p, m, v, d, n=n, rate=rate: (
                p - rate * (m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.99**n)) + 1e-8) + 0.1 * d * p)
            ),
            theirs,
            first,
            second,
            mask,
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, theirs)


def test_zero_max_grad_norm_does_not_clip():
    params = {"w": jnp.ones((2, 2))}
    free, wide = (
        make_optimizer(OptimizerConfig(learning_rate=1.0, max_grad_norm=norm, adam_beta2=0.5), 3) for norm in (0.0, 1e9)
    )
    gradient = {"w": jnp.full((2, 2), 1e3)}
    np.testing.assert_array_equal(
        free.update(gradient, free.init(params), params)[0]["w"],
        wide.update(gradient, wide.init(params), params)[0]["w"],
    )


def test_the_state_has_one_structure_whatever_the_settings():
    params = stacked_params()
    plain = make_optimizer(OptimizerConfig(max_grad_norm=0.0), 5).init(params)
    other = OptimizerConfig(lr_scheduler_type="cosine", weight_decay=0.1, warmup_steps=3)
    assert jax.tree.structure(plain) == jax.tree.structure(make_optimizer(other, 9).init(params))


def test_small_updates_are_not_lost_and_other_types_are_refused():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6), 100)
    params = {"w": jnp.ones((4, 4))}
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update({"w": jnp.ones((4, 4))}, state, params)
        params = optax.apply_updates(params, updates)
    assert (params["w"] < 1.0).all()
    with pytest.raises(ValueError, match=r"\['w'\] is bfloat16"):
        optimizer.init({"w": jnp.ones((4, 4), jnp.bfloat16)})
