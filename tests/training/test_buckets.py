"""Rows sorted by length and cut to buckets give what the batch in its own order gives."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.algorithms import grpo
from grpo_jax.algorithms.algorithm import make_experience, maximize
from grpo_jax.algorithms.objectives import clipped
from grpo_jax.benchmark.workloads import V
from grpo_jax.models.lora import Lora, init_adapters
from grpo_jax.sharding import host_to_global, named
from grpo_jax.training.buckets import ladder, over_buckets, row_lengths, sort_rows, sorted_parts, unsorted
from grpo_jax.training.state import abstract_state, create_state, state_shardings
from grpo_jax.training.step import MicrobatchError, rollout_logprobs, train_step
from grpo_jax.types import Rewards, Rollout, Sequences
from tests import tiny

P, G, TC = 4, 4, 16
LENGTHS = np.array([16, 1, 0, 5, 3, 3, 2, 9, 0, 1, 7, 4, 2, 11, 6, 1])  # full, empty and ragged rows
ALGORITHM = grpo.build(grpo.Config(beta=0.04))
LORA = Lora(rank=2, alpha=4.0, targets=("q", "v", "down"))
SLOW = pytest.mark.slow
MOE = {"num_experts": 4, "experts_per_token": 2, "experts_kernel": "dense"}


def sequence_ratio(logprobs, old, mask):
    """One ratio a row, from the mean over its tokens."""
    difference = jnp.where(mask, logprobs - old, 0.0).sum(-1, keepdims=True)
    return jnp.exp(difference / jnp.maximum(mask.sum(-1, keepdims=True), 1)) * jnp.ones(mask.shape)


def rollout_of(lengths=LENGTHS) -> Rollout:
    """Completions of given lengths; what is after their ends is rubbish in segment 0."""
    rng = np.random.default_rng(0)
    mask = np.arange(TC) < lengths[:, None]  # [B, Tc]
    prompts = tiny.prompts(P)
    start = np.repeat(prompts.sequences.positions[:, -1:] + 1, G, 0)
    completions = Sequences(
        rng.integers(0, tiny.V, mask.shape).astype(np.int32),
        (start + np.arange(TC)).astype(np.int32),
        mask.astype(np.int32),
    )
    logprobs = np.where(mask, -3.0, 0.0).astype(np.float32)
    return Rollout(prompts, completions, mask, logprobs, np.ones(P * G, bool))


@pytest.mark.parametrize(("microbatches", "buckets", "most"), [(8, 8, 0.30), (16, 16, 0.15), (32, 16, 0.10)])
def test_padding_of_long_tailed_lengths(microbatches, buckets, most):
    """What is computed beyond the ends of the benchmark's workload V, whose cuts README names."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(20):
        means = np.where(rng.random(V.rows) < 0.5, *V.lengths)
        lengths = np.minimum(rng.geometric(1 / means), V.completion_length)
        mask = np.arange(V.completion_length) < lengths[:, None]
        with jax.set_mesh(tiny.mesh_of()):
            sorting = sort_rows(jnp.array(mask), prompts=V.prompts, microbatches=microbatches, buckets=buckets)
            _, _, padding = over_buckets(
                lambda time, part: part[0].sum(), lambda carry, given: (carry, given), None, (sorting.lengths,), sorting
            )
        shares.append(float(padding))
    assert most - 0.1 < np.mean(shares) < most


def experience_of(rollout: Rollout, algorithm=ALGORITHM, rewards=None):
    rng = np.random.default_rng(1)
    old, ref = (np.where(rollout.completion_mask, rng.normal(-3, 0.2, (P * G, TC)), 0).astype("f4") for _ in range(2))
    rewards = rng.integers(0, 2, (P, G)).astype(np.float32) if rewards is None else rewards
    return jax.device_get(make_experience(algorithm, rollout, Rewards(jnp.array(rewards)), old, ref))


def update(experience, *, sizes=(1, 1, 1), algorithm=ALGORITHM, options=None, lora=False, **settings):
    """(gradient, metrics) of one step; the gradient is what the optimizer is given."""
    options = options or {}
    model, mesh = tiny.decoder(**options | ({"lora": LORA} if lora else {})), tiny.mesh_of(*sizes)
    shape = {name: value for name, value in options.items() if name in MOE}
    optimizer = optax.trace(decay=0.0)  # its state is the gradient
    with jax.set_mesh(mesh):
        params = tiny.on_mesh(tiny.host_params(**shape), tiny.decoder(**options), mesh)
        frozen, trained = None, params
        if lora:
            adapters = init_adapters(model.config, jax.random.key(3), mesh)
            frozen, trained = params, jax.tree.map(lambda x: x + 0.05, adapters)
        state = create_state(trained, optimizer, 0, mesh)
        shardings = state_shardings(abstract_state(trained, optimizer, mesh))
        step = partial(train_step, model=model, algorithm=algorithm, optimizer=optimizer, chunk=3, **settings)
        step = jax.jit(step, out_shardings=(shardings, None))
        new, metrics = step(state, host_to_global(experience, named(mesh, "batch")), frozen=frozen)
    return jax.device_get(new.opt_state.trace), {name: float(value) for name, value in metrics.items()}


def assert_same(got, expected, tolerance=3e-5):
    for (path, a), b in zip(jax.tree.leaves_with_path(got[0]), jax.tree.leaves(expected[0]), strict=True):
        size = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a / size, b / size, atol=tolerance, err_msg=str(path))
    for name in expected[1].keys() - {"padding"}:
        np.testing.assert_allclose(got[1][name], expected[1][name], rtol=3 * tolerance, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def expected():
    return update(experience_of(rollout_of()))


@pytest.mark.parametrize(
    ("sizes", "settings", "options"),
    [
        ((1, 1, 1), {"microbatches": 16, "buckets": 4}, {"remat": "full"}),  # a completion at a time
        ((1, 2, 2), {"microbatches": 2, "buckets": 2}, {}),
        pytest.param((1, 1, 1), {"microbatches": 1, "buckets": 2}, {}, marks=SLOW),
        pytest.param((1, 1, 1), {"microbatches": 4, "buckets": 16}, {"scan_layers": False}, marks=SLOW),
        pytest.param((2, 2, 1), {"microbatches": 2, "buckets": 4}, {"remat": "dots", "scan_layers": False}, marks=SLOW),
    ],
)
def test_one_gradient(expected, sizes, settings, options):
    assert_same(update(experience_of(rollout_of()), sizes=sizes, options=options, **settings), expected)


@pytest.mark.parametrize(
    "case",
    [
        {"lora": True},
        pytest.param({"options": MOE}, marks=SLOW),
        pytest.param({"options": {"windows": (0, 4), "scan_layers": False}}, marks=SLOW),
        pytest.param(
            {"algorithm": ALGORITHM._replace(loss=maximize(partial(clipped, ratio=sequence_ratio)))}, marks=SLOW
        ),
    ],
    ids=["lora", "experts", "windows", "sequence ratio"],
)
def test_one_gradient_for_every_model(case):
    experience = experience_of(rollout_of(), case.get("algorithm", ALGORITHM))
    assert_same(update(experience, microbatches=4, buckets=2, **case), update(experience, **case))


@SLOW
def test_bfloat16_differs_by_its_rounding():
    experience, options = experience_of(rollout_of()), {"dtype": "bfloat16"}
    assert_same(
        update(experience, microbatches=4, buckets=4, options=options),
        update(experience, microbatches=4, options=options),
        tolerance=0.05,
    )


@SLOW
def test_rows_that_belong_together_stay_so():
    """A loss over pairs of rows, as of preferences: cut anywhere else, it would be another number."""

    def pairs(logprobs, experience):
        total = (logprobs * experience.weights).sum(-1).reshape(-1, 2)
        return jnp.sum(jax.nn.softplus(total[:, 1] - total[:, 0])), {}

    algorithm = ALGORITHM._replace(loss=pairs, rows=2)
    experience = experience_of(rollout_of())
    whole = update(experience, algorithm=algorithm)
    assert_same(update(experience, algorithm=algorithm, microbatches=4, buckets=4), whole)
    with pytest.raises(MicrobatchError, match="16 equal parts; choose a divisor of 8"):
        update(experience, algorithm=algorithm, microbatches=16, buckets=4)


@pytest.mark.parametrize(
    ("sizes", "microbatches"),
    [((4, 1, 1), 2), pytest.param((1, 1, 1), 8, marks=SLOW), pytest.param((1, 2, 2), 2, marks=SLOW)],
)
def test_logprobs_are_those_of_the_plain_pass(sizes, microbatches):
    """And where each device has all weights, the devices tell each other the longest rows, and nothing else."""
    rollout, model = rollout_of(), tiny.decoder()
    options = {"model": model, "temperature": 0.7, "chunk": 8}
    plain = jax.jit(partial(rollout_logprobs, **options))(tiny.host_params(), rollout)
    with jax.set_mesh(mesh := tiny.mesh_of(*sizes)):
        arguments = tiny.on_mesh(tiny.host_params(), model, mesh), host_to_global(rollout, named(mesh, "batch"))
        scored = jax.jit(partial(rollout_logprobs, **options, microbatches=microbatches, buckets=2))
        scored = scored.lower(*arguments).compile()
        got = scored(*arguments)
    np.testing.assert_allclose(got, plain, atol=1e-5)
    assert np.abs(plain).max() > 1 and not np.asarray(got)[~rollout.completion_mask].any()
    if sizes == (4, 1, 1):
        said = re.findall(r"= (\w+)\S* (?:all-|collective-|reduce-scatter)", scored.as_text())
        assert said == ["s32"]


def test_sorting_is_undone_and_stays_within_shards():
    with jax.set_mesh(tiny.mesh_of(2, 1, 1)):

        @jax.jit
        def there_and_back(numbers):
            sorting = sort_rows(rollout_of().completion_mask, prompts=P, microbatches=2, buckets=4)
            parts = sorted_parts(numbers, sorting)
            return parts, unsorted(parts, sorting), sorting.lengths, sorting.prompts

        parts, back, lengths, prompts = map(np.asarray, there_and_back(jnp.arange(P * G)))
    np.testing.assert_array_equal(back, np.arange(P * G))
    np.testing.assert_array_equal(lengths, LENGTHS[parts])
    np.testing.assert_array_equal(parts // 8, [[0] * 4 + [1] * 4] * 2)  # the first half of each part is of shard 0
    np.testing.assert_array_equal(prompts, parts % 8 // G)
    assert (np.diff(lengths.reshape(2, 2, 4)[:, 0].reshape(-1)) <= 0).all()


def test_padding_is_counted(expected):
    """16 rows of 16 tokens by hand: sorted, in 4 micro-batches, at steps of 4."""
    sorting = sort_rows(rollout_of().completion_mask, prompts=P, microbatches=4, buckets=4)

    def add(total, time):
        return total + time, None

    done, _, share = over_buckets(lambda time, part: part * time, add, jnp.float32(0), jnp.ones(4), sorting)
    computed = sum(4 * (-(-n // 4) * 4) for n in np.sort(LENGTHS)[::-1].reshape(4, 4)[:, 0])
    assert done * 4 == computed
    assert share == pytest.approx(1 - LENGTHS.sum() / computed)
    assert expected[1]["padding"] == pytest.approx(1 - LENGTHS.sum() / LENGTHS.size / TC)


@SLOW
def test_what_is_off_the_mask_is_not_computed():
    """Dropped groups leave the computation: all their tokens are off the mask."""
    rewards = np.full((P, G), np.nan, np.float32)
    gradient, metrics = update(experience_of(rollout_of(), rewards=rewards), microbatches=4, buckets=4)
    assert all(np.all(g == 0) for g in jax.tree.leaves(gradient))
    assert metrics["padding"] == 1.0 and metrics["skipped_updates"] == 0


def test_a_longer_batch_compiles_nothing_new():
    step = jax.jit(partial(rollout_logprobs, model=tiny.decoder(), temperature=1.0, chunk=3, microbatches=4, buckets=4))
    for lengths in (LENGTHS, LENGTHS[::-1], np.full(P * G, TC)):
        step(tiny.host_params(), rollout_of(lengths))
    assert step._cache_size() == 1


def test_ladder_and_lengths():
    assert ladder(128, 4) == (0, 32, 64, 96, 128)
    assert ladder(3, 8) == (0, 1, 2, 3)
    mask = np.array([[True, False, True, False], [False] * 4])  # a tool's output within a completion
    np.testing.assert_array_equal(row_lengths(jnp.array(mask)), [3, 0])
