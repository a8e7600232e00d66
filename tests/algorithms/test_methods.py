"""Every method against the same by hand, finite differences, the paper's coefficients, and what must not be felt.

`python -m pytest tests/algorithms -s -k table` prints the table of methods by test.
"""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.algorithms import dapo, dr_grpo, grpo, gspo, ppo, reinforce_plus_plus, rft, rloo
from grpo_jax.algorithms.advantages import SCALES
from grpo_jax.algorithms.algorithm import make_experience, mixed_outcomes
from grpo_jax.algorithms.pairs import best_with_worst
from grpo_jax.algorithms.settings import AlgorithmError
from grpo_jax.config import SamplingConfig
from grpo_jax.configure import names
from grpo_jax.rewards import learned
from grpo_jax.sharding import host_to_global, named
from grpo_jax.stages.programs import old_pass
from grpo_jax.types import Prompts, Rewards, Rollout, Sequences
from tests import tiny
from tests.algorithms.variants import TC, VARIANTS, G, P, golden_batch, plain_loss, plain_pairs, slopes

BATCH = golden_batch()
TRL = json.loads((Path(__file__).parents[1] / "golden" / "trl_losses.json").read_text())


def rollout_of(batch, *, behaviour=None, finished=None) -> Rollout:
    """A rollout of these masks; its tokens are numbered, so that no two completions are equal."""
    B, time = batch.mask.shape
    zeros = np.zeros((B // G, 1), np.int32)
    tokens = np.arange(B * time, dtype=np.int32).reshape(B, time)
    return Rollout(
        prompts=Prompts(Sequences(zeros, zeros, zeros + 1), np.arange(B // G, dtype=np.int32)),
        completions=Sequences(tokens, np.zeros_like(tokens), batch.mask.astype(np.int32)),
        completion_mask=batch.mask,
        logprobs=np.float32(batch.old if behaviour is None else behaviour),
        finished=np.ones(B, bool) if finished is None else finished,
    )


def experience_of(algorithm, batch, *, old, rollout=None):
    rewards = Rewards(jnp.asarray(batch.rewards, jnp.float32))
    values = None if algorithm.critic is None else np.float32(batch.values)
    return make_experience(algorithm, rollout or rollout_of(batch), rewards, old, np.float32(batch.ref), values)


def loss_and_slope(algorithm, batch, *, old, x=None, **more):
    """The loss, and its gradient in the order of the batch's rows; `x`, `old` default to the batch's."""
    e = experience_of(algorithm, batch, old=old, **more)
    x = jnp.asarray(batch.logprobs if x is None else x, jnp.float32)

    def loss(x):
        rows = x if e.places is None else x[e.places]
        return algorithm.loss(rows, e)[0]

    return jax.value_and_grad(loss)(x)


# --- the checks of the table ---


def check_golden(name):
    """Loss and gradient off the policy are those of the formula by hand, in float64."""
    v = VARIANTS[name]
    loss, slope = loss_and_slope(v.algorithm, BATCH, old=np.float32(BATCH.old))
    x, old = BATCH.logprobs, BATCH.old
    np.testing.assert_allclose(loss, plain_loss(name, BATCH, x, at=x, old=old), rtol=2e-5, atol=1e-6)
    expected = slopes(lambda y: plain_loss(name, BATCH, y, at=x, old=old), x, BATCH.mask)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=2e-6)
    assert np.abs(expected).max() > 1e-3


def check_coefficient(name):
    """On-policy the gradient of a token is its weight times the paper's coefficient (eq. 5), by finite differences."""
    v, x = VARIANTS[name], BATCH.logprobs
    on_policy = BATCH._replace(old=x)
    _, slope = loss_and_slope(v.algorithm, on_policy, old=None, x=x)
    expected = -slopes(lambda y: plain_loss(name, on_policy, y, at=x, old=x), x, BATCH.mask)
    np.testing.assert_allclose(-slope, expected, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(expected, weighted_coefficients(name, on_policy), rtol=1e-4, atol=1e-7)


def weighted_coefficients(name, batch):
    """The coefficient of each token times the weight of its place in the mean."""
    from tests.algorithms.variants import plain_advantages

    x, out = batch.logprobs, np.zeros_like(batch.logprobs)
    if name == "dpo":  # beta sigma(h(o-) - h(o+)) over |o|, + on the better, - on the worse
        beta, pairs = VARIANTS[name].settings["beta"], plain_pairs(batch)
        h = [beta * (x[b] - batch.ref[b])[row].mean() for b, row in enumerate(batch.mask)]
        for a, b in pairs:
            coefficient = beta / (1 + np.exp(h[a] - h[b]))
            for row, sign in ((a, 1), (b, -1)):
                out[row] = sign * coefficient * batch.mask[row] / batch.mask[row].sum() / len(pairs)
        return out
    v = VARIANTS[name]
    A, mask = plain_advantages(v, batch, x)
    live = mask.any(1)
    out[live] = v.weights(mask[live]) * v.coefficient(x[live], batch.ref[live], A[live])
    return np.where(mask, out, 0.0)


def check_invariance(name):
    """Padding full of rubbish, the order of prompts and within groups, cuts into micro-batches, and the mesh."""
    algorithm, old = VARIANTS[name].algorithm, np.float32(BATCH.old)
    loss, slope = loss_and_slope(algorithm, BATCH, old=old)

    wide = [
        np.pad(np.float32(a), ((0, 0), (0, 3)), constant_values=fill)
        for a, fill in zip(BATCH[:3], RUBBISH, strict=True)
    ]
    padded = BATCH._replace(logprobs=wide[0], old=wide[1], ref=wide[2], mask=np.pad(BATCH.mask, ((0, 0), (0, 3))))
    padded = padded._replace(values=np.pad(BATCH.values, ((0, 0), (0, 3)), constant_values=np.nan))
    got = loss_and_slope(
        algorithm, padded, old=wide[1], rollout=rollout_of(padded, behaviour=np.where(padded.mask, wide[1], 0))
    )
    same((got[0], got[1][:, :TC]), (loss, slope))
    assert not np.any(got[1][:, TC:])

    prompts, within = np.array([2, 0, 3, 1]), np.array([3, 1, 0, 2])
    rows = (prompts[:, None] * G + within).reshape(-1)
    moved = BATCH._replace(
        **{field: getattr(BATCH, field)[rows] for field in ("logprobs", "old", "ref", "mask", "values")},
        rewards=BATCH.rewards[prompts][:, within],
    )
    got = loss_and_slope(algorithm, moved, old=np.float32(moved.old))
    if name != "dpo":  # which pairs the first of equal rewards, so that ties are paired otherwise
        same((got[0], got[1][np.argsort(rows)]), (loss, slope))

    e = experience_of(algorithm, BATCH, old=old)
    x = jnp.asarray(BATCH.logprobs, jnp.float32)
    x = x if e.places is None else x[e.places]
    whole = jax.value_and_grad(lambda x: algorithm.loss(x, e)[0])(x)
    for size in {algorithm.rows, 2, 6, 8}:
        cuts = [slice(i, i + size) for i in range(0, P * G, size)]
        parts = [
            jax.value_and_grad(lambda x, part=part: algorithm.loss(x, part)[0])(x[cut])
            for cut in cuts
            for part in [jax.tree.map(lambda a, cut=cut: a[cut], e.replace(prompts=None))]
        ]
        same((sum(part[0] for part in parts), jnp.concatenate([part[1] for part in parts])), whole)

    mesh = tiny.mesh_of(2, 2)
    with jax.set_mesh(mesh):
        given = (rollout_of(BATCH), *(np.float32(x) for x in (BATCH.rewards, BATCH.ref, BATCH.values, BATCH.logprobs)))
        rollout, rewards, ref, values, x = host_to_global(given, named(mesh, "batch"))

        @jax.jit
        def on_mesh(x):
            e = make_experience(algorithm, rollout, Rewards(rewards), old, ref, values)
            return jax.value_and_grad(lambda x: algorithm.loss(x if e.places is None else x[e.places], e)[0])(x)

        same(jax.device_get(on_mesh(x)), (loss, slope))


RUBBISH = (np.nan, np.inf, -np.inf)


def same(got, expected):
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-6)


def check_trl(name):
    """Loss and gradient on the same arrays are TRL's, as recorded by tests/parity_trl/make_golden.py."""
    for case in (case for case in TRL["cases"] if case["algorithm"] == name):
        module = VARIANTS[name].module
        algorithm = module.build(module.Config(**case["settings"]))
        loss, slope = loss_and_slope(algorithm, BATCH, old=np.float32(BATCH.old))
        e = experience_of(algorithm, BATCH, old=np.float32(BATCH.old))
        np.testing.assert_allclose(loss * case["scale"], case["loss"], rtol=1e-4, atol=1e-6, err_msg=case["what"])
        np.testing.assert_allclose(slope * case["scale"], case["gradient"], rtol=1e-3, atol=1e-5, err_msg=case["what"])
        assert e.weights.shape == BATCH.mask.shape


CHECKS = {"golden": check_golden, "finite difference": check_coefficient, "invariance": check_invariance}
COMPARED = sorted({case["algorithm"] for case in TRL["cases"]})


TRL_COLUMN = "TRL comparison"


@functools.cache
def checked(column, name):
    """Run a check once, for its own test and for the table."""
    CHECKS.get(column, check_trl)(name)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", VARIANTS)
def test_method(name, check):
    checked(check, name)


@pytest.mark.parametrize("name", COMPARED)
def test_method_against_trl(name):
    checked(TRL_COLUMN, name)


def test_table_of_methods():
    """All of the above as a table; a method without any of the first three is not finished."""
    columns = [*CHECKS, TRL_COLUMN]
    print(f"\n{'':22}" + "".join(f"{column:>20}" for column in columns))
    failed = []
    for name in VARIANTS:
        cells = []
        for column in columns:
            cells.append(verdict(column, name) if column in CHECKS or name in COMPARED else "-")
            failed += [f"{name}: {column}"] if cells[-1] == "FAILED" else []
        print(f"{name:22}" + "".join(f"{cell:>20}" for cell in cells))
    assert not failed


def verdict(column, name):
    try:
        checked(column, name)
    except AssertionError:
        return "FAILED"
    return "passed"


def test_every_kind_is_in_the_table():
    assert set(names("algorithms")) == set(VARIANTS)


def test_all_methods_differ_on_one_batch():
    seen = {}
    for name, v in VARIANTS.items():
        loss, slope = loss_and_slope(v.algorithm, BATCH, old=np.float32(BATCH.old))
        seen[name] = (v.algorithm.sampler, float(loss), np.asarray(slope))
    for i, (name, (sampler, loss, slope)) in enumerate(seen.items()):
        for other, (their_sampler, their_loss, their_slope) in list(seen.items())[:i]:
            differ = sampler != their_sampler or not np.allclose(slope, their_slope, rtol=1e-3, atol=1e-6)
            assert differ, f"{name} is {other} on this batch"
            assert abs(loss - their_loss) > 1e-6 or {name, other} == {"online_rft", "rft"}


# --- options that cross them ---


@pytest.mark.parametrize("module", [grpo, dr_grpo, dapo, gspo, reinforce_plus_plus, rloo])
def test_k1_in_the_loss_is_refused_with_its_reason(module):
    settings = {"beta": 0.1, "kl": "k1", "kl_in": "loss"}
    with pytest.raises(AlgorithmError, match="whose mean over the policy's own samples is 0") as refused:
        module.build(module.Config(**settings))
    assert refused.value.exit_code == 2
    assert module.build(module.Config(**settings, force_k1_loss=True)).reference


def test_k1_in_the_loss_pulls_nowhere():
    """The mean of its gradient over the policy's own tokens is 0, that of k2 and k3 is the divergence's."""
    from grpo_jax.algorithms.objectives import KL

    theta, ref = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    reference = jax.nn.log_softmax(ref)
    policy = jax.nn.softmax(theta)

    def mean_of(kl):  # each token as often as the policy draws it
        return jax.grad(lambda t: (policy * kl(jax.nn.log_softmax(t), reference, jnp.ones(5, bool))).sum())(theta)

    true = jax.grad(lambda t: (jax.nn.softmax(t) * (jax.nn.log_softmax(t) - reference)).sum())(theta)
    np.testing.assert_allclose(mean_of(KL["k1"]), 0.0, atol=1e-6)
    np.testing.assert_allclose(mean_of(KL["k2"]), true, atol=1e-6)
    assert np.abs(mean_of(KL["k3"])).max() > 1e-2  # the gradient of the divergence the other way round


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_kl_in_the_reward_by_hand(kl):
    algorithm = grpo.build(grpo.Config(beta=0.3, kl=kl, kl_in="reward"))
    d = np.where(BATCH.mask, BATCH.old - BATCH.ref, 0.0)
    total = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) + d - 1}[kl].sum(1).reshape(P, G)
    expected = SCALES["group"](jnp.asarray(BATCH.rewards - 0.3 * total, jnp.float32))
    for old in (None, np.float32(BATCH.old)):  # the sampler's are the old policy's
        got = experience_of(algorithm, BATCH, old=old).advantages[:, 0]
        np.testing.assert_allclose(got.reshape(P, G), expected, atol=1e-4)
    loss = algorithm.loss(jnp.float32(BATCH.logprobs), experience_of(algorithm, BATCH, old=None))[0]
    plain = grpo.build(grpo.Config(beta=0.0))
    same_rewards = experience_of(algorithm, BATCH, old=None).replace(ref_logprobs=None)
    np.testing.assert_allclose(loss, plain.loss(jnp.float32(BATCH.logprobs), same_rewards)[0], rtol=1e-6)


def test_scales_by_hand():
    r = BATCH.rewards
    got = {name: np.asarray(scale(jnp.float32(r))) for name, scale in SCALES.items()}
    np.testing.assert_allclose(got["none"], r - r.mean(1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(got["batch"], (r - r.mean(1, keepdims=True)) / r.std(), atol=1e-6)
    with_nan = SCALES["batch"](jnp.float32(np.where(r == 0.9, np.nan, r)))
    assert with_nan[2, 1] == 0 and np.isfinite(with_nan).all()


@pytest.mark.parametrize(
    ("ratio", "A", "expected"), [(5.0, -1.0, -3.0), (2.0, -1.0, -2.0), (5.0, 1.0, 1.2), (0.5, -1.0, -0.8)]
)
def test_dual_clip(ratio, A, expected):
    from grpo_jax.algorithms.objectives import clipped
    from grpo_jax.types import Experience

    one = jnp.ones((1, 1))
    e = Experience(None, None, one > 0, one, A * one, old_logprobs=0 * one)
    objective, metrics = clipped(jnp.log(ratio * one), e, delta=3.0)
    np.testing.assert_allclose(objective[0, 0], expected, rtol=1e-6)
    assert metrics["clip_ratio/delta_mean"][0, 0] == (ratio > 3 and A < 0)
    with pytest.raises(AlgorithmError, match=r"within the clip, which ends at 1\.5"):
        grpo.build(grpo.Config(epsilon_high=0.5, delta=1.4))


def test_truncated_completions_leave_the_loss_and_not_the_baseline():
    algorithm = grpo.build(grpo.Config(beta=0.0))
    finished = np.arange(P * G) % 3 != 0
    rollout = rollout_of(BATCH, finished=finished)
    all_rows = experience_of(algorithm, BATCH, old=None, rollout=rollout)
    some = experience_of(algorithm._replace(truncated=False), BATCH, old=None, rollout=rollout)
    np.testing.assert_array_equal(some.completion_mask, BATCH.mask & finished[:, None])
    np.testing.assert_array_equal(some.advantages, np.where(finished[:, None], all_rows.advantages, 0))
    np.testing.assert_allclose(some.weights.sum(), 1.0, rtol=1e-6)


def test_dead_groups_are_excluded_or_count():
    counted = experience_of(grpo.build(grpo.Config()), BATCH, old=None)
    excluded = experience_of(grpo.build(grpo.Config())._replace(keep=mixed_outcomes), BATCH, old=None)
    assert counted.completion_mask[G : 2 * G].any() and not excluded.completion_mask[G : 2 * G].any()
    np.testing.assert_allclose(excluded.weights[:G], counted.weights[:G] * P / (P - 1), rtol=1e-6)


def test_equal_completions_of_a_group_count_once():
    algorithm = rft.build(rft.Config(distinct=True))
    rollout = rollout_of(BATCH)
    tokens = rollout.completions.tokens.copy()
    twin = BATCH.mask.copy()
    tokens[13], twin[13] = tokens[12], twin[12]  # in one group
    tokens[8], twin[8] = tokens[12], twin[12]  # and in another
    tokens[15], twin[15] = tokens[12], twin[12]
    twin[15, twin[15].sum() - 1] = twin[12].sum() == 1  # one token shorter, where it has more than one
    rollout = rollout.replace(completions=rollout.completions.replace(tokens=tokens), completion_mask=twin)
    kept = experience_of(algorithm, BATCH._replace(mask=twin), old=None, rollout=rollout).completion_mask.any(1)
    assert list(np.nonzero(~kept)[0]) == [13] + ([15] if twin[12].sum() == 1 else [])


def test_pairs_by_hand():
    rewards = jnp.array(
        [[0.1, 0.9, 0.5, 0.7], [1.0, 1.0, 1.0, 1.0], [1.0, jnp.nan, 0.0, jnp.nan], [0.0, 0.0, 1.0, 0.0]]
    )
    order, counts = best_with_worst(rewards)
    assert order[0].tolist() == [1, 0, 3, 2] and counts[0].all()
    assert not counts[1].any()
    assert order[2, :2].tolist() == [0, 2] and counts[2].tolist() == [True, True, False, False]
    assert order[3, 0] == 2 and counts[3].tolist() == [True, True, False, False]
    assert (np.sort(order, 1) == np.arange(4)).all()
    assert best_with_worst(rewards, pairs=1)[1].sum() == 6


def test_a_pair_leaves_together():
    finished = np.ones(P * G, bool)
    finished[0] = False  # the only right one of its group
    algorithm = VARIANTS["dpo"].algorithm._replace(truncated=False)
    e = experience_of(algorithm, BATCH, old=None, rollout=rollout_of(BATCH, finished=finished))
    assert not e.completion_mask[:G].any() and e.completion_mask[2 * G :].any()


def test_trl_divides_by_the_deviation_of_a_sample():
    """Where we and TRL differ by design: G - 1 for G, and 1e-4 added, which makes noise of a group without spread."""
    ours = np.asarray(SCALES["group"](jnp.float32(BATCH.rewards)))
    expected = ours * np.sqrt((G - 1) / G)
    np.testing.assert_allclose(TRL["advantages"], expected, rtol=5e-4, atol=1e-6)
    assert TRL["made_by"].startswith("trl 1.")


# --- process supervision ---


def golden_steps():
    """Step ends at random places and at the last token; a group whose steps are all equal."""
    rng = np.random.default_rng(3)
    lengths = BATCH.mask.sum(1)
    ends = (rng.random(BATCH.mask.shape) < 0.4) & BATCH.mask
    ends[np.arange(P * G), lengths - 1] = True
    steps = np.where(ends, rng.integers(0, 2, ends.shape), 0).astype(float)
    steps[G : 2 * G] = ends[G : 2 * G]
    shape = (P, G, TC)
    return steps.reshape(shape), ends.reshape(shape)


def plain_process(steps, ends):
    """Section 4.1.3 in loops: one mean and deviation over the steps of the group, then the sum of those to come."""
    out = np.zeros_like(steps)
    for p in range(P):
        pooled = np.array([steps[p, g, t] for g in range(G) for t in range(TC) if ends[p, g, t]])
        for g in range(G):
            for t in range(TC):
                if pooled.std() > 0:
                    to_come = [(steps[p, g, u] - pooled.mean()) / pooled.std() for u in range(t, TC) if ends[p, g, u]]
                    out[p, g, t] = sum(to_come)
    return out.reshape(-1, TC)


def test_process_supervision_golden_and_by_finite_differences():
    steps, ends = golden_steps()
    rewards = Rewards(jnp.float32(BATCH.rewards), jnp.float32(steps), jnp.array(ends))
    algorithm = VARIANTS["grpo"].algorithm
    x, A = BATCH.logprobs, np.where(BATCH.mask, plain_process(steps, ends), 0.0)
    e = make_experience(algorithm, rollout_of(BATCH), rewards, None, np.float32(BATCH.ref))
    np.testing.assert_allclose(e.advantages, A, atol=1e-5)
    slope = jax.grad(lambda x: algorithm.loss(x, e)[0])(jnp.float32(x))
    weights = BATCH.mask / (P * G * BATCH.mask.sum(1, keepdims=True))

    def objective(y):
        d = BATCH.ref - y
        return (weights * (np.exp(y - x) * A - 0.04 * (np.exp(d) - d - 1)))[BATCH.mask].sum()

    np.testing.assert_allclose(-slope, slopes(objective, x, BATCH.mask), rtol=1e-3, atol=1e-6)
    dropped = make_experience(algorithm._replace(keep=mixed_outcomes), rollout_of(BATCH), rewards, None, None)
    assert list(dropped.completion_mask.any(1).reshape(P, G).any(1)) == [True, False, True, True]


def test_process_supervision_across_devices_and_parts():
    """The pooled mean and deviation are of the whole group, however the batch lies and is cut."""
    steps, ends = golden_steps()
    algorithm, x = VARIANTS["grpo"].algorithm, np.float32(BATCH.logprobs)
    given = (rollout_of(BATCH), np.float32(BATCH.rewards), np.float32(steps), ends, np.float32(BATCH.ref), x)

    def run(rollout, outcome, steps, ends, ref, x):
        e = make_experience(algorithm, rollout, Rewards(outcome, steps, ends), None, ref)
        return e, jax.value_and_grad(lambda x: algorithm.loss(x, e)[0])(x)

    e, whole = run(*given)
    mesh = tiny.mesh_of(2, 2)
    with jax.set_mesh(mesh):
        same(jax.device_get(jax.jit(run)(*host_to_global(given, named(mesh, "batch"))))[1], whole)
    parts = [jax.tree.map(lambda a, i=i: a[i : i + 2], e.replace(prompts=None)) for i in range(0, P * G, 2)]
    cut = [
        jax.grad(lambda y, part=part: algorithm.loss(y, part)[0])(x[2 * i : 2 * i + 2]) for i, part in enumerate(parts)
    ]
    np.testing.assert_allclose(jnp.concatenate(cut), whole[1], atol=1e-7)


# --- what is trained on, and what it is measured by ---


def test_what_is_not_trained_on_is_in_no_statistic_of_the_batch():
    """Whitened advantages have mean 0 and deviation 1 over the tokens trained on; what is left out counts nowhere."""
    batch = BATCH._replace(rewards=np.where(np.arange(P)[:, None] == 0, np.nan, BATCH.rewards))
    e = experience_of(ppo.build(ppo.Config(whiten=True)), batch, old=np.float32(batch.old))
    trained = np.asarray(e.advantages)[np.asarray(e.completion_mask)]
    assert 0 < trained.size < batch.mask.sum()
    np.testing.assert_allclose((trained.mean(), trained.std()), (0, 1), atol=1e-5)

    rewards = np.array(BATCH.rewards)
    rewards[0] = 9.0  # dead, and far from the others
    config = reinforce_plus_plus.Config(beta=0.0, kl_in="loss")
    method = reinforce_plus_plus.build(config)._replace(keep=mixed_outcomes)
    with_dead = experience_of(method, BATCH._replace(rewards=rewards), old=None)
    rewards[0] = np.nan
    without = experience_of(method, BATCH._replace(rewards=rewards), old=None)
    np.testing.assert_array_equal(with_dead.advantages, without.advantages)
    assert np.abs(without.advantages).max() > 0


def test_a_penalty_in_the_reward_is_of_the_whole_distribution():
    """Under top_p the sampler's log-probabilities are of what is left, the reference's are not: a pass is spent."""

    def passes(sampling, **changes):
        c = SimpleNamespace(
            num_iterations=1, steps_off_policy=0, rollout_weights="same", sampling=SamplingConfig(**sampling), **changes
        )
        return old_pass(c, rloo.build(rloo.Config()))

    assert passes({"top_p": 0.9}) and passes({"top_k": 5}) and passes({"min_p": 0.1})
    assert not passes({}) and not passes({"temperature": 0.7})


def test_the_last_token_behind_what_a_tool_said():
    mask = np.array([[1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0]], bool)
    values = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(learned._last(values, mask, None), [4, 8])
