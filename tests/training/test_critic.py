"""The value model: golden numbers, what it sees, and that its gradient is one however the batch is cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.algorithms import ppo
from grpo_jax.algorithms.advantages import whitened
from grpo_jax.algorithms.algorithm import make_experience
from grpo_jax.algorithms.objectives import kl_k1
from grpo_jax.algorithms.values import clipped_value_loss, token_rewards
from grpo_jax.models.values import completion_values, value_model, value_params
from grpo_jax.sharding import host_to_global, named
from grpo_jax.training.critic import rollout_values, value_step, with_critic
from grpo_jax.training.state import create_state
from grpo_jax.types import Experience, Rewards, Sequences
from tests import tiny

P, G = 4, 4
ALGORITHM = ppo.build(ppo.Config(beta=0.1))


def test_token_rewards_golden(vectors):
    v = vectors["ppo_token_reward"]
    logprobs, ref = (jnp.array([v["inputs"][name] + [9.0]]) for name in ("logp_theta", "logp_ref"))
    mask = jnp.arange(5)[None] < 4  # one column of padding
    penalty = v["inputs"]["beta"] * kl_k1(logprobs, ref, mask)
    got = token_rewards(Rewards(jnp.array([[v["inputs"]["rm_score"]]])), mask, penalty)
    np.testing.assert_allclose(got[0, :4], v["expected"]["token_rewards"], atol=1e-6)
    assert got[0, 4] == 0


def test_step_rewards_stand_at_their_ends():
    mask = jnp.ones((1, 3), bool)
    steps, ends = jnp.array([[[0.5, 0.0, jnp.nan]]]), jnp.array([[[True, False, True]]])
    got = token_rewards(Rewards(jnp.array([[7.0]]), steps, ends), mask, jnp.zeros((1, 3)))
    np.testing.assert_array_equal(got, [[0.5, 0.0, 0.0]])


def test_whitened_golden(vectors):
    v = vectors["gae_whitened"]
    padded = jnp.array([v["inputs"]["advantages"] + [50.0]])
    got = whitened(padded, jnp.arange(5)[None] < 4)
    np.testing.assert_allclose(got[0, :4], v["expected"]["whitened"], atol=1e-5)
    assert got[0, 4] == 0


def value_experience(v, **changes) -> Experience:
    mask = jnp.array([[True, True, True, False]])
    rows = {name: jnp.array([v["inputs"][name] + [np.nan]]) for name in ("v_old", "returns")}
    arrays = {"values": rows["v_old"], "returns": rows["returns"], "weights": mask / 3.0}
    return Experience(None, None, mask, advantages=None, **arrays | changes)


def test_value_loss_golden(vectors):
    v = vectors["ppo_value_clip"]
    values = jnp.array([v["inputs"]["v_new"] + [3.0]])
    e = value_experience(v)
    (loss, metrics), slope = jax.value_and_grad(
        lambda x: clipped_value_loss(x, e, clip=v["inputs"]["cliprange"]), has_aux=True
    )(values)
    np.testing.assert_allclose(loss, v["expected"]["loss"], rtol=1e-5)
    np.testing.assert_array_equal(metrics["value/clip_ratio"][0, :3], [1, 1, 0])
    np.testing.assert_allclose(slope[0], [0, 0, 0.05 / 3, 0], atol=1e-6)  # those beyond the clip are held
    plain, _ = clipped_value_loss(values, e, clip=None)
    np.testing.assert_allclose(plain, 0.5 * np.mean(v["expected"]["unclipped"]), rtol=1e-5)


@pytest.fixture(scope="module")
def rollout():
    return jax.device_get(tiny.roll_out(tiny.decoder(), tiny.host_params(), tiny.prompts(P), G=G))


@pytest.fixture(scope="module")
def params():
    """A value model with opinions."""
    start = value_params(tiny.host_params(), value_model(tiny.decoder().config).config)
    rng = np.random.default_rng(5)
    return jax.tree.map(np.asarray, start | {"score": rng.normal(0, 0.3, start["score"].shape).astype(np.float32)})


def whole_rows(rollout):
    s, c = rollout.prompts.sequences, rollout.completions
    pairs = ((s.tokens, c.tokens), (s.positions, c.positions), (s.segments, c.segments))
    return Sequences(*(np.concatenate([np.repeat(a, G, 0), b], 1) for a, b in pairs)), s.tokens.shape[1]


def test_a_value_is_of_the_state_before_its_token(rollout, params):
    """Against whole rows without a shared prefix: the score after token t - 1 is the value at t."""
    model = value_model(tiny.decoder().config)
    got = jax.jit(partial(completion_values, model))(params, rollout.prompts, rollout.completions)
    rows, Tp = whole_rows(rollout)
    scores = jax.jit(lambda params: model.apply({"params": params}, rows)[0])(params)
    expected = np.where(rollout.completion_mask, scores[:, Tp - 1 : -1], 0.0)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1
    for M in (2, 8):
        in_parts = jax.jit(partial(rollout_values, model=model, microbatches=M))
        np.testing.assert_allclose(in_parts(params, rollout), expected, atol=1e-5)


def test_it_begins_with_zero_on_the_policys_trunk(rollout):
    model, mesh = value_model(tiny.decoder().config), tiny.mesh_of()
    with jax.set_mesh(mesh):
        policy = tiny.on_mesh(tiny.host_params(), tiny.decoder(), mesh)
        state = with_critic(create_state(policy, optax.adam(1e-3), 0, mesh), model, optax.adam(1e-3), 0, mesh)
        assert not np.any(jax.jit(partial(rollout_values, model=model))(state.critic.params, rollout))
        jax.tree.map(np.testing.assert_array_equal, state.critic.params["layers"], policy["layers"])
        jax.tree.map(lambda x: x.delete(), state.params)  # as an update does; the value model has its own memory
        assert np.isfinite(jax.device_get(state.critic.params["embed"])).all()


@pytest.fixture(scope="module")
def plainly(rollout, params):
    """Experience, and half the squared error of its values with the gradient, written plainly on whole rows."""
    model, rng = value_model(tiny.decoder().config), np.random.default_rng(0)
    ref = np.where(rollout.completion_mask, rollout.logprobs + rng.normal(0, 0.2, rollout.logprobs.shape), 0)
    rewards = Rewards(jnp.float32(rng.integers(0, 2, (P, G))))
    values = jax.jit(partial(completion_values, model))(params, rollout.prompts, rollout.completions)
    e = jax.device_get(make_experience(ALGORITHM, rollout, rewards, None, np.float32(ref), values))
    rows, Tp = whole_rows(rollout)

    def dense(params):
        scores, _ = model.apply({"params": params}, rows)
        return 0.5 * (e.weights * (scores[:, Tp - 1 : -1] - e.returns) ** 2).sum()

    return e, *jax.jit(jax.value_and_grad(dense))(params)


@pytest.mark.parametrize(("mesh", "microbatches"), [((1, 1, 1), 1), ((1, 1, 1), 4), ((1, 1, 1), 8), ((2, 2, 1), 1)])
def test_one_gradient(plainly, params, mesh, microbatches):
    """That of half the squared error written plainly on whole rows, in micro-batches and over devices."""
    model, mesh = value_model(tiny.decoder().config), tiny.mesh_of(*mesh)
    e, loss, expected = plainly
    with jax.set_mesh(mesh):
        state = create_state(tiny.on_mesh(params, model, mesh), optax.trace(decay=0.0), 0, mesh)
        step = partial(value_step, model=model, optimizer=optax.trace(decay=0.0), clip=0.2, microbatches=microbatches)
        new, metrics = jax.jit(step)(state, host_to_global(e, named(mesh, "batch")))
    for got, want in zip(jax.tree.leaves(new.opt_state.trace), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1, float(np.abs(want).max())))
    np.testing.assert_allclose(metrics["value/loss"], loss, rtol=1e-4)
