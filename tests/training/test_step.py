"""One property: the same tokens give the same gradient, however the batch is cut, padded, ordered or laid out."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.algorithms import grpo
from grpo_jax.algorithms.algorithm import make_experience
from grpo_jax.algorithms.importance import importance_corrected
from grpo_jax.config import OptimizerConfig
from grpo_jax.models.parameters import abstract_params
from grpo_jax.sharding import host_to_global, named
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.state import abstract_state, create_state, state_shardings
from grpo_jax.training.step import MicrobatchError, group_cuts, join_rows, rollout_logprobs, split_rows, train_step
from grpo_jax.types import Rewards, Sequences
from tests import tiny

ALGORITHM = grpo.build(grpo.Config(beta=0.04))
P, G = 4, 4


@pytest.fixture(scope="module")
def rollout():
    return jax.device_get(tiny.roll_out(tiny.decoder(), tiny.host_params(), tiny.prompts(P), G=G))


def batch_of(rollout, rewards=None, seed=0):
    """Host experience with a reference and an old policy that differ from the policy."""
    rng = np.random.default_rng(seed)
    noise = [rng.normal(0, 0.2, rollout.logprobs.shape).astype(np.float32) for _ in range(2)]
    old, ref = (np.where(rollout.completion_mask, rollout.logprobs + n, 0) for n in noise)
    if rewards is None:
        rewards = rng.integers(0, 2, (P, G)).astype(np.float32)
    return jax.device_get(make_experience(ALGORITHM, rollout, Rewards(jnp.array(rewards)), old, ref))


OPTIMIZER = optax.trace(decay=0.0)  # its state is the gradient


@functools.cache
def program(mesh, model, algorithm, microbatches, chunk):
    """The compiled step; kept, so that many batches go through one."""
    step = partial(train_step, model=model, algorithm=algorithm, optimizer=OPTIMIZER)
    shardings = state_shardings(abstract_state(abstract_params(model.config, mesh), OPTIMIZER, mesh))
    return jax.jit(partial(step, chunk=chunk, microbatches=microbatches), out_shardings=(shardings, None))


def update(experience, *, mesh=None, model=None, microbatches=1, chunk=3, algorithm=ALGORITHM):
    """(gradient, metrics) of one step under a mesh; the gradient is what the optimizer is given."""
    mesh, model = mesh or tiny.mesh_of(), model or tiny.decoder()
    with jax.set_mesh(mesh):
        state = create_state(tiny.on_mesh(tiny.host_params(), model, mesh), OPTIMIZER, 0, mesh)
        placed = host_to_global(experience, named(mesh, "batch"))
        new, metrics = program(mesh, model, algorithm, microbatches, chunk)(state, placed)
    return jax.device_get(new.opt_state.trace), {name: float(value) for name, value in metrics.items()}


def assert_same(got, expected):
    for (path, a), b in zip(jax.tree.leaves_with_path(got[0]), jax.tree.leaves(expected[0]), strict=True):
        size = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a / size, b / size, atol=3e-5, err_msg=str(path))
    for name in expected[1].keys() - {"padding"}:  # which says how it was computed
        np.testing.assert_allclose(got[1][name], expected[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def expected(rollout):
    return update(batch_of(rollout))


@pytest.mark.parametrize(
    ("mesh", "microbatches", "chunk"),
    [
        ((1, 1, 1), 2, 8),
        ((1, 1, 1), 4, 1),
        ((1, 1, 1), 8, 5),  # groups cut in two
        ((1, 1, 1), 16, 3),  # a completion at a time
        ((1, 2, 2), 1, 3),
        ((2, 2, 1), 1, 8),
        ((1, 1, 4), 4, 2),
        ((2, 1, 2), 2, 3),
        ((2, 2, 1), 4, 3),  # a completion of each device's one group at a time
    ],
)
def test_one_gradient(rollout, expected, mesh, microbatches, chunk):
    got = update(batch_of(rollout), mesh=tiny.mesh_of(*mesh), microbatches=microbatches, chunk=chunk)
    assert_same(got, expected)


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_one_gradient_for_every_way_to_compute_it(rollout, expected, remat, scan_layers):
    assert_same(update(batch_of(rollout), model=tiny.decoder(remat=remat, scan_layers=scan_layers)), expected)


def test_padding_is_not_felt(rollout, expected):
    """More padding on either side, filled with rubbish."""

    def pad(x, before, after, fill):
        return np.pad(x, ((0, 0), (before, after)), constant_values=fill)

    e = batch_of(rollout)
    s = e.prompts.sequences
    c = e.completions
    tail = c.positions[:, -1:] + np.arange(1, 6)
    wider = e.replace(
        prompts=e.prompts.replace(
            sequences=Sequences(pad(s.tokens, 3, 0, 9), pad(s.positions, 3, 0, 0), pad(s.segments, 3, 0, 0))
        ),
        completions=Sequences(
            pad(c.tokens, 0, 5, 7),
            np.concatenate([c.positions, tail], 1).astype(np.int32),
            pad(c.segments, 0, 5, 0),
        ),
        completion_mask=pad(e.completion_mask, 0, 5, False),
        weights=pad(e.weights, 0, 5, 0),
        advantages=pad(e.advantages, 0, 5, 0),
        behaviour_logprobs=pad(e.behaviour_logprobs, 0, 5, 0),
        old_logprobs=pad(e.old_logprobs, 0, 5, np.nan),
        ref_logprobs=pad(e.ref_logprobs, 0, 5, np.inf),
    )
    assert_same(update(wider), expected)


def test_order_of_prompts_and_within_groups_is_not_felt(rollout, expected):
    e = batch_of(rollout)
    prompt_order = np.array([2, 0, 3, 1])
    within = np.array([3, 1, 0, 2])
    row_order = (prompt_order[:, None] * G + within).reshape(-1)
    prompts = jax.tree.map(lambda x: x[prompt_order], e.prompts)
    rest = jax.tree.map(lambda x: x[row_order], e.replace(prompts=None))
    assert_same(update(rest.replace(prompts=prompts)), expected)


def test_truncating_padding_rows_is_not_felt(rollout, expected):
    """An unjudged completion changes neither the others' weights nor the gradient of what is left."""
    rewards = np.random.default_rng(0).integers(0, 2, (P, G)).astype(np.float32)
    rewards[1] = np.nan
    got = update(batch_of(rollout, rewards))
    keep = np.array([0, 2, 3])
    rows = (keep[:, None] * G + np.arange(G)).reshape(-1)
    fewer = jax.tree.map(lambda x: x[rows], rollout.replace(prompts=None))
    fewer = fewer.replace(prompts=jax.tree.map(lambda x: x[keep], rollout.prompts))
    rng = np.random.default_rng(0)
    rng.integers(0, 2, (P, G))
    e = batch_of(rollout, rewards)
    e2 = jax.device_get(
        make_experience(ALGORITHM, fewer, Rewards(jnp.array(rewards[keep])), e.old_logprobs[rows], e.ref_logprobs[rows])
    )
    assert_same(got, update(e2))


def test_gradient_is_that_of_a_dense_loss(rollout, expected):
    """The same objective written plainly: whole rows, full logits, one mean after the other (eq. 3)."""
    model, e = tiny.decoder(), batch_of(rollout)

    def dense(params):
        s, c = e.prompts.sequences, e.completions
        both = [
            jnp.concatenate([jnp.repeat(a, G, 0), b], 1)
            for a, b in ((s.tokens, c.tokens), (s.positions, c.positions), (s.segments, c.segments))
        ]
        hidden, _ = model.apply({"params": params}, Sequences(*both))
        logits = hidden @ params["head"]
        before = jax.nn.log_softmax(logits[:, s.tokens.shape[1] - 1 : -1])
        logp = jnp.take_along_axis(before, c.tokens[..., None], -1)[..., 0]
        total = 0.0
        for b in range(P * G):
            n = int(e.completion_mask[b].sum())
            ratio = jnp.exp(logp[b, :n] - e.old_logprobs[b, :n])
            a = e.advantages[b, :n]
            d = e.ref_logprobs[b, :n] - logp[b, :n]
            objective = jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.2) * a) - 0.04 * (jnp.exp(d) - d - 1)
            total += objective.mean() / (P * G)
        return -total

    loss, gradient = jax.jit(jax.value_and_grad(dense))(tiny.host_params())
    np.testing.assert_allclose(expected[1]["loss"], loss, rtol=1e-4, atol=1e-6)
    assert_same((expected[0], {}), (jax.tree.map(np.asarray, gradient), {}))


@pytest.mark.parametrize("microbatches", [1, 4])
def test_gradient_of_an_entropy_bonus_is_that_of_the_entropy(rollout, expected, microbatches):
    """The bonus is the weighted mean of the entropy of whole distributions, written plainly."""
    model, e = tiny.decoder(), batch_of(rollout)
    got = update(e, algorithm=ALGORITHM._replace(entropy_bonus=0.3), microbatches=microbatches)

    def bonus(params):
        s, c = e.prompts.sequences, e.completions
        both = [
            jnp.concatenate([jnp.repeat(a, G, 0), b], 1)
            for a, b in ((s.tokens, c.tokens), (s.positions, c.positions), (s.segments, c.segments))
        ]
        hidden, _ = model.apply({"params": params}, Sequences(*both))
        logp = jax.nn.log_softmax((hidden @ params["head"])[:, s.tokens.shape[1] - 1 : -1])
        return 0.3 * (e.weights * -(jnp.exp(logp) * logp).sum(-1)).sum()

    value, slope = jax.jit(jax.value_and_grad(bonus))(tiny.host_params())
    np.testing.assert_allclose(got[1]["loss"], expected[1]["loss"] - value, rtol=1e-4, atol=1e-6)
    combined = jax.tree.map(lambda a, b: a - np.asarray(b), expected[0], slope)
    assert_same((got[0], {}), (combined, {}))


def test_split_and_join_are_inverse(rollout):
    for M in (1, 2, 4, 8, 16):
        parts = split_rows(rollout, M)
        np.testing.assert_array_equal(join_rows(parts.logprobs, P, G), rollout.logprobs)
        rows = parts.completion_mask.shape[1] // parts.prompts.index.shape[1]
        start = np.repeat(parts.prompts.sequences.positions[..., -1] + 1, rows, axis=1)
        np.testing.assert_array_equal(parts.completions.positions[..., 0], start)


@pytest.mark.parametrize("M", [1, 2, 4])
def test_each_shard_cuts_its_own_rows(rollout, M):
    """Over four batch shards of one group each, micro-batches cut groups, and no row leaves its shard."""
    rows = np.arange(P * G, dtype=np.float32)
    numbered = rollout.replace(logprobs=np.broadcast_to(rows[:, None], rollout.logprobs.shape))
    with jax.set_mesh(tiny.mesh_of(2, 2, 1)):
        split = jax.jit(lambda x: (parts := split_rows(x, M), join_rows(parts.logprobs, P, G)))
        parts, joined = split(numbered)
    np.testing.assert_array_equal(joined[:, 0], rows)
    of_shards = np.asarray(parts.logprobs[..., 0]).reshape(M, 4, -1)  # [M, shards, rows]
    assert (of_shards // G == np.arange(4)[:, None]).all()
    assert group_cuts(P, G, M, shards=4) == M
    with pytest.raises(MicrobatchError, match="8 equal parts over 4 batch shards; choose a divisor of 4"):
        group_cuts(P, G, 8, shards=4)


def test_parts_are_as_few_as_do():
    """Six prompts in four micro-batches: halves of groups, three to each; pairs are never cut."""
    assert [group_cuts(6, 4, M) for M in (1, 2, 3, 4, 6, 8, 12, 24)] == [1, 1, 1, 2, 1, 4, 2, 4]
    assert group_cuts(6, 4, 12, rows=2) == 2
    with pytest.raises(MicrobatchError, match="choose a divisor of 12"):
        group_cuts(6, 4, 24, rows=2)


@pytest.mark.parametrize("M", [3, 5, 12, 32])
def test_uneven_microbatches_are_refused(rollout, M):
    with pytest.raises(MicrobatchError, match=f"into {M} equal parts; choose a divisor of 16"):
        split_rows(rollout, M)


def test_rollout_logprobs_in_parts(rollout):
    model, params = tiny.decoder(), tiny.host_params()
    score = jax.jit(partial(rollout_logprobs, model=model, temperature=1.0), static_argnames=("chunk", "microbatches"))
    whole = score(params, rollout, chunk=8)
    for M in (2, 8):
        part = score(params, rollout, chunk=3, microbatches=M)
        np.testing.assert_allclose(part, whole, atol=1e-5)
    np.testing.assert_allclose(whole, rollout.logprobs, atol=1e-4)


def test_a_poisoned_gradient_changes_nothing(rollout):
    e = batch_of(rollout)
    poisoned = e.replace(weights=e.weights.copy())
    poisoned.weights[2, 0] = np.nan
    mesh, model, optimizer = (
        tiny.mesh_of(),
        tiny.decoder(),
        make_optimizer(OptimizerConfig(learning_rate=0.1), 10),
    )
    with jax.set_mesh(mesh):
        state = create_state(tiny.on_mesh(tiny.host_params(), model, mesh), optimizer, 0, mesh)
        step = jax.jit(partial(train_step, model=model, algorithm=ALGORITHM, optimizer=optimizer))
        state, metrics = step(state, e)
        assert metrics["skipped_updates"] == 0
        after, metrics = step(state, poisoned)
    assert metrics["skipped_updates"] == 1 and int(after.step) == int(state.step) + 1
    for a, b in ((after.params, state.params), (after.opt_state, state.opt_state)):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_dead_groups_and_no_penalty_change_no_bit(rollout):
    algorithm = grpo.build(grpo.Config(beta=0.0))
    assert not algorithm.reference
    e = batch_of(rollout, np.full((P, G), 0.1 + 0.2, np.float32)).replace(ref_logprobs=None)
    gradient, metrics = update(e, algorithm=algorithm)
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradient))
    assert metrics["grad_norm"] == 0


def test_everything_unjudged_is_a_step_of_zero(rollout):
    gradient, metrics = update(batch_of(rollout, np.full((P, G), np.nan, np.float32)))
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradient))
    assert metrics["loss"] == 0 and metrics["skipped_updates"] == 0


def test_the_gap_metric_sees_stale_weights(rollout, expected):
    assert expected[1]["logprob_gap/max"] < 1e-4
    e = batch_of(rollout)
    stale = e.replace(behaviour_logprobs=np.where(e.completion_mask, e.behaviour_logprobs - 0.3, 0))
    assert update(stale)[1]["logprob_gap/mean"] == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_the_largest_of_a_metric_is_of_the_whole_batch(rollout, microbatches):
    e, corrected = batch_of(rollout), importance_corrected(ALGORITHM, cap=2.0)
    gap = np.zeros_like(e.behaviour_logprobs)
    gap[np.nonzero(e.completion_mask[:, 0])[0][-1], 0] = np.log(3.0)
    e = e.replace(old_logprobs=None, behaviour_logprobs=e.behaviour_logprobs - gap)
    _, metrics = update(e, algorithm=corrected, microbatches=microbatches)
    tokens = e.completion_mask.sum()
    assert metrics["importance/max"] == pytest.approx(3.0, rel=1e-3)
    assert metrics["importance/mean"] == pytest.approx(1 + 2 / tokens, rel=1e-3)
    assert metrics["importance/truncated"] == pytest.approx(1 / tokens)


def test_small_updates_are_not_lost(rollout):
    """Master weights are float32: at a rate of 1e-6 nearly all parameters move, bfloat16 matrix products or not."""
    model = tiny.decoder(dtype="bfloat16")
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6), 10)
    mesh = tiny.mesh_of()
    with jax.set_mesh(mesh):
        state = create_state(tiny.on_mesh(tiny.host_params(), model, mesh), optimizer, 0, mesh)
        step = jax.jit(partial(train_step, model=model, algorithm=ALGORITHM, optimizer=optimizer))
        for _ in range(3):
            state, _ = step(state, batch_of(rollout))
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(state.params))
    before = tiny.host_params()["layers"]["q"]
    assert np.mean(np.asarray(state.params["layers"]["q"]) != before) > 0.9
