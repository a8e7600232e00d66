"""Updates of adapters: the base is shared, read and never copied, and the numbers are those of any layout."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grpo_jax.algorithms import grpo
from grpo_jax.algorithms.algorithm import make_experience
from grpo_jax.config import OptimizerConfig, RLConfig, SamplingConfig, SFTConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import Lora, abstract_adapters, attach, choose_targets, init_adapters, merge
from grpo_jax.models.parameters import abstract_params
from grpo_jax.sharding import host_to_global, named
from grpo_jax.stages.ahead import device_bytes
from grpo_jax.stages.programs import compiled, rl_programs, sft_program
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.state import abstract_state, create_state, state_shardings
from grpo_jax.training.step import rollout_logprobs, train_step
from grpo_jax.training.supervised import supervised_step
from grpo_jax.types import Rewards
from tests import tiny

ALGORITHM = grpo.build(grpo.Config(beta=0.04))
P, G = 4, 4
LORA = Lora(rank=3, alpha=6, targets=choose_targets(["*_proj"], experts=False))


def decoder(**changes):
    return tiny.decoder(lora=LORA, **changes)


@functools.cache
def host_adapters(seed=0):
    """Adapters that do something."""
    mesh = tiny.mesh_of()
    with jax.set_mesh(mesh):
        rng, new = np.random.default_rng(seed), init_adapters(decoder().config, jax.random.key(seed), mesh)
    return jax.tree.map(lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), new)


def place(model, mesh, adapters):
    """Base and adapters on a mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_adapters(model.config, mesh))
    return tiny.on_mesh(tiny.host_params(), model, mesh), jax.device_put(adapters, shardings)


@pytest.fixture(scope="module")
def policy():
    return attach(tiny.host_params(), host_adapters())


@pytest.fixture(scope="module")
def experience(policy):
    mesh, model = tiny.mesh_of(), decoder()
    with jax.set_mesh(mesh):
        rollout = tiny.program(model, tiny.sampling(G))(policy, tiny.prompts(P), jax.random.key(0))
    rollout, rng = jax.device_get(rollout), np.random.default_rng(0)
    noise = [rng.normal(0, 0.2, rollout.logprobs.shape).astype(np.float32) for _ in range(2)]
    old, ref = (np.where(rollout.completion_mask, rollout.logprobs + n, 0) for n in noise)
    rewards = rng.integers(0, 2, (P, G)).astype(np.float32)
    return jax.device_get(make_experience(ALGORITHM, rollout, Rewards(jnp.array(rewards)), old, ref))


def update(experience, *, sizes=(1, 1, 1), optimizer=None, microbatches=1, chunk=3, **changes):
    """(state, metrics) of one step under a mesh; without an optimizer the state of one is the gradient."""
    mesh, model = tiny.mesh_of(*sizes), decoder(**changes)
    optimizer = optimizer or optax.trace(decay=0.0)
    with jax.set_mesh(mesh):
        base, adapters = place(model, mesh, host_adapters())
        state = create_state(adapters, optimizer, 0, mesh)
        step = partial(train_step, model=model, algorithm=ALGORITHM, optimizer=optimizer)
        step = partial(step, chunk=chunk, microbatches=microbatches)
        shardings = state_shardings(abstract_state(adapters, optimizer, mesh))
        step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        new, metrics = step(state, host_to_global(experience, named(mesh, "batch")), frozen=base)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(adapters)), "the state is donated"
    jax.tree.map(np.testing.assert_array_equal, base, tiny.host_params())
    return jax.device_get(new.replace(key=None)), {name: float(value) for name, value in metrics.items()}


def assert_same(got, expected):
    gradients = [result[0].opt_state.trace for result in (got, expected)]
    for (path, a), b in zip(jax.tree.leaves_with_path(gradients[0]), jax.tree.leaves(gradients[1]), strict=True):
        size = max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a / size, b / size, atol=3e-5, err_msg=str(path))
    for name, value in expected[1].items():
        np.testing.assert_allclose(got[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def expected(experience):
    return update(experience)


@pytest.mark.parametrize(
    "settings",
    [
        {"microbatches": 2, "chunk": 8},
        {"microbatches": 8},  # groups cut in two
        {"sizes": (2, 2, 2)},
        {"remat": "full"},
        {"scan_layers": False, "remat": "dots"},
    ],
    ids=str,
)
def test_one_gradient(experience, expected, settings):
    assert_same(update(experience, **settings), expected)


def test_the_gradient_is_that_of_the_dense_model(experience, expected):
    """`db = s a dW` for the weights of the merged model, through the same step."""
    model = tiny.decoder()
    merged = merge(tiny.host_params(), host_adapters(), decoder().config)
    optimizer = optax.trace(decay=0.0)
    mesh = tiny.mesh_of()
    with jax.set_mesh(mesh):
        state = create_state(tiny.on_mesh(merged, model, mesh), optimizer, 0, mesh)
        step = jax.jit(partial(train_step, model=model, algorithm=ALGORITHM, optimizer=optimizer, chunk=3))
        new, metrics = step(state, experience)
    np.testing.assert_allclose(float(metrics["loss"]), expected[1]["loss"], atol=1e-5)
    dense = new.opt_state.trace["layers"]
    for target, pair in host_adapters().items():
        a, got = (x.reshape(*x.shape[:2], -1) for x in (pair["a"], expected[0].opt_state.trace[target]["b"]))
        dw = np.asarray(dense[target]).reshape(len(a), a.shape[2], -1)
        wanted = LORA.scale * np.einsum("lri,lio->lro", a, dw)
        np.testing.assert_allclose(got / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=3e-5, err_msg=target)


def test_one_gradient_in_supervised_steps(experience):
    rows, mask = experience.completions, experience.completion_mask

    def gradient(sizes, microbatches):
        mesh, model, optimizer = tiny.mesh_of(*sizes), decoder(), optax.trace(decay=0.0)
        with jax.set_mesh(mesh):
            base, adapters = place(model, mesh, host_adapters())
            state = create_state(adapters, optimizer, 0, mesh)
            step = partial(supervised_step, model=model, optimizer=optimizer, chunk=3, microbatches=microbatches)
            placed = host_to_global((rows, mask), named(mesh, "batch"))
            new, metrics = jax.jit(step)(state, *placed, frozen=base)
        metrics = {name: float(metrics[name]) for name in ("loss", "entropy", "grad_norm")}
        return jax.device_get(new.replace(key=None)), metrics

    plain = gradient((1, 1, 1), 1)
    assert plain[1]["grad_norm"] > 0
    for settings in (((2, 2, 2), 1), ((1, 1, 1), 4)):
        assert_same(gradient(*settings), plain)


def test_only_adapters_are_in_the_state_and_both_halves_decay(experience):
    """Decay alone (a rate without gradient to speak of) shrinks a and b by the same share."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5, adam_epsilon=1e9), 10)
    state, metrics = update(experience, optimizer=optimizer)
    adapters = host_adapters()
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters) and metrics["skipped_updates"] == 0
    numbers = sum(leaf.size for leaf in jax.tree.leaves(adapters))
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(state.opt_state)) == 2 * numbers + 2  # moments, counters
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.95 * b, atol=1e-6), state.params, adapters)


def test_a_poisoned_gradient_changes_nothing(experience):
    weights = experience.weights.copy()
    weights[2, 0] = np.nan
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1), 10)
    state, metrics = update(experience.replace(weights=weights), optimizer=optimizer)
    assert metrics["skipped_updates"] == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, host_adapters())


def test_small_updates_are_not_lost(experience):
    """Masters are float32, bfloat16 matrix products or not."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6), 10)
    state, _ = update(experience, optimizer=optimizer, dtype="bfloat16")
    for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(host_adapters()), strict=True):
        assert new.dtype == np.float32 and np.mean(new != old) > 0.9


# --- the programs of the stages ---

CONFIG = RLConfig(
    source=None,
    algorithm=None,
    rewards=(),
    prompts_per_step=P,
    num_generations=G,
    microbatches=1,
    head_chunk=4,
    sampling=SamplingConfig(max_completion_length=8),
)


def programs(model, mesh, num_generations=G):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 10)
    abstract = abstract_adapters(model.config, mesh)
    return optimizer, rl_programs(model, CONFIG, tiny.sampling(num_generations), ALGORITHM, optimizer, abstract)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_step_on_a_policy_whose_adapters_are_nothing_is_the_base_models(sizes):
    """Tokens, log-probabilities, reference and loss, bit for bit; then three steps compile nothing more."""
    mesh, model = tiny.mesh_of(*sizes), decoder()
    optimizer, call = programs(model, mesh)
    base, adapters = place(model, mesh, jax.device_get(init_adapters(model.config, jax.random.key(0), mesh)))
    with jax.set_mesh(mesh):
        state = create_state(adapters, optimizer, 0, mesh)
        prompts = host_to_global(tiny.prompts(P), named(mesh, "batch"))
        reference = call.freeze(state.params)
        of_base = call.sample(base, prompts, state.key, 0)
        scored = call.logprobs(base, of_base)
        counts = []
        for step in range(4):
            policy = attach(base, state.params)
            rollout = call.sample(policy, prompts, state.key, step)
            ref = call.logprobs(attach(base, reference), rollout)
            if step == 0:
                got, wanted = (jax.device_get(r.replace(prompts=None)) for r in (rollout, of_base))
                jax.tree.map(np.testing.assert_array_equal, got, wanted)
                np.testing.assert_array_equal(ref, scored)
                np.testing.assert_array_equal(call.logprobs(policy, rollout), scored)
            rewards = np.arange(P * G, dtype=np.float32).reshape(P, G) % 3
            experience = call.experience(rollout, Rewards(jnp.array(rewards)), None, ref)
            state, metrics = call.update(state, experience, frozen=base)
            assert metrics["skipped_updates"] == 0 and (step > 0) == (float(metrics["kl"]) > 0)
            counts.append(compiled(*call))
    assert counts[2] == counts[-1], "with several devices JAX makes a second entry for the first results"


def laid(tree, mesh):
    """Abstract batches as the stages place them."""
    split = named(mesh, "batch")
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), tree)


def exchanges(model, *params):
    """How often shards change places in the scoring program of these trees of parameters, attached, on 8 devices."""
    mesh = tiny.mesh_of(2, 2, 2)
    policy = attach(*(tree(model.config, mesh) if tree else None for tree in params))
    scoring = partial(rollout_logprobs, model=model, temperature=1.0, chunk=4)
    with jax.set_mesh(mesh):
        prompts, key = laid(tiny.prompts(P), mesh), jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
        rollout = laid(jax.eval_shape(tiny.program(model, tiny.sampling(G)), policy, prompts, key), mesh)
        text = jax.jit(scoring).lower(policy, rollout).compile().as_text()
    return text.count(" collective-permute(")


def test_shards_of_adapters_stay_where_they_are():
    """They are gathered as weights are: XLA's own choice made 14 exchanges of the shards of 7 adapters."""
    assert exchanges(decoder(), abstract_params, abstract_adapters) <= exchanges(tiny.decoder(), None, abstract_params)


def memory(layers):
    """Bytes of the base and of the state, and what the compiler says of the programs, at this depth."""
    mesh, P, G = tiny.mesh_of(), 1, 2
    sizes = {"hidden_size": 128, "mlp_size": 512, "num_heads": 4, "head_dim": 32, "remat": "full"}
    model = Decoder(dataclasses.replace(decoder().config, num_layers=layers, **sizes))
    optimizer, call = programs(model, mesh, G)
    base, adapters = abstract_params(model.config, mesh), abstract_adapters(model.config, mesh)
    state = abstract_state(adapters, optimizer, mesh)
    prompts, key = laid(tiny.prompts(P), mesh), state.key
    with jax.set_mesh(mesh):
        rollout = laid(jax.eval_shape(call.sample, attach(base, adapters), prompts, key, 0), mesh)
        rewards = laid(Rewards(np.zeros((P, G), np.float32)), mesh)
        experience = laid(jax.eval_shape(call.experience, rollout, rewards, None, rollout.logprobs), mesh)
        supervised = sft_program(model, SFTConfig(source=None, microbatches=1, head_chunk=4), optimizer, adapters)
        rows = (rollout.completions, rollout.completion_mask)
        lowered = {
            "sample": call.sample.lower(attach(base, adapters), prompts, key, 0),
            "update": call.update.lower(state, experience, frozen=base),
            "supervised": supervised.lower(state, *rows, frozen=base),
        }
    takes = {name: program.compile().memory_analysis() for name, program in lowered.items()}
    return device_bytes(base), device_bytes(state), takes


def test_no_program_copies_the_base():
    """What the compiler says, of 10 layers and of 30: weights are arguments, and nothing else grows as they do."""
    (base, _, takes), (more_base, more_state, more) = memory(10), memory(30)
    assert more_state < 0.2 * more_base
    for name, program in more.items():
        assert program.argument_size_in_bytes > more_base
        assert program.output_size_in_bytes < more_state + 10_000
        grown = program.temp_size_in_bytes - takes[name].temp_size_in_bytes
        assert grown < 0.1 * (more_base - base), f"{name}: {grown} bytes more for {more_base - base} of weights"
        if name != "sample":
            assert program.alias_size_in_bytes > 0.99 * more_state - 10_000, "the state is donated"
