"""Adapters beside their base: nothing while b is 0, the merged model's numbers and gradients when it is not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, ragged, randomized

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logprobs import completion_logprobs, sequence_logprobs
from grpo_jax.models.lora import (
    INPUTS,
    Lora,
    LoraError,
    adapter_table,
    attach,
    choose_targets,
    count_adapters,
    init_adapters,
    merge,
)
from grpo_jax.models.parameters import parameter_table
from grpo_jax.sharding import host_to_global, named
from grpo_jax.types import Sequences
from tests.tiny import mesh_of

ALL = choose_targets(["*"], experts=False)
CONFIG = dataclasses.replace(TINY, lora=Lora(rank=3, alpha=4.5, targets=ALL))


def trained(config, mesh, seed=1):
    """Adapters as training leaves them: both halves are not 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jax.device_put(0.3 * rng.normal(size=leaf.shape).astype(np.float32), leaf.sharding),
        init_adapters(config, jax.random.key(seed), mesh),
    )


@pytest.fixture(scope="module")
def adapters(mesh):
    return trained(CONFIG, mesh)


# --- targets and scale ---


@pytest.mark.parametrize(
    ("patterns", "experts", "expected"),
    [
        (["*_proj"], False, tuple(INPUTS)),
        (["q_proj", "v_proj"], False, ("q", "v")),
        (["v_proj", "q_*"], False, ("q", "v")),
        (["[qkvo]_proj"], True, ("q", "k", "v", "o")),
        (["down_proj", "?_proj"], False, ("q", "k", "v", "o", "down")),
    ],
)
def test_targets_by_pattern(patterns, experts, expected):
    assert choose_targets(patterns, experts=experts) == expected


@pytest.mark.parametrize(
    ("patterns", "experts", "words"),
    [
        (["q_proj", "c_attn"], False, "'c_attn' matches no projection; there are q_proj, k_proj, .*down_proj"),
        (["all-linear"], False, "'all-linear' matches no projection"),
        (["Q_proj"], False, "'Q_proj' matches no projection"),
        ([], False, "'' matches no projection"),
        (
            ["*_proj"],
            True,
            r"\*_proj matches gate_proj, up_proj, down_proj, .* there are q_proj, k_proj, v_proj, o_proj",
        ),
        (["q_proj", "up_proj"], True, "matches up_proj, which every expert"),
    ],
)
def test_targets_that_are_refused(patterns, experts, words):
    with pytest.raises(LoraError, match=words) as error:
        choose_targets(patterns, experts=experts)
    assert error.value.exit_code == 2


def test_scale():
    assert Lora(rank=16, alpha=32, targets=("q",)).scale == 2
    assert Lora(rank=16, alpha=32, targets=("q",), rslora=True).scale == 8


# --- the table ---


def test_adapters_are_sharded_as_the_weights_that_they_adapt():
    layers = parameter_table(CONFIG)["layers"]
    for target, pair in adapter_table(CONFIG).items():
        weight, inputs = layers[target], INPUTS[target]
        assert pair["a"].axes == ("layers", "rank", *weight.axes[1 : 1 + inputs])
        assert pair["b"].axes == ("layers", "rank", *weight.axes[1 + inputs :])
        assert pair["a"].shape[:2] == pair["b"].shape[:2] == (TINY.num_layers, 3)
        assert pair["a"].shape[2:] + pair["b"].shape[2:] == weight.shape[1:]
    assert count_adapters(CONFIG) == sum(x.size for x in jax.tree.leaves(init_adapters(CONFIG, key(), mesh_of())))


def key(seed=0):
    return jax.random.key(seed)


def test_the_start_does_not_depend_on_the_mesh_and_is_pefts():
    one, many = (init_adapters(CONFIG, key(3), mesh) for mesh in (mesh_of(), mesh_of(2, 2, 2)))
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert many["o"]["a"].addressable_shards[0].data.shape == (2, 3, 2, 6)  # [L, r, N, H], heads over tensor
    for target, pair in one.items():
        fan_in = np.prod(pair["a"].shape[2:])
        assert not np.any(pair["b"]) and 0.8 < np.abs(pair["a"]).max() * fan_in**0.5 <= 1.0, target


# --- what is computed ---


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("scan", [True, False])
def test_while_b_is_zero_not_a_bit_differs(params, mesh, group, scan, dtype):
    """Log-probabilities, entropies and loss of packed rows and of shared prompts, compiled."""
    prompts, completions, whole = group
    model = Decoder(dataclasses.replace(CONFIG, scan_layers=scan, dtype=dtype))
    policy = attach(params, init_adapters(CONFIG, key(), mesh))

    @jax.jit
    def numbers(params):
        rows = sequence_logprobs(model, params, whole, chunk=4)
        shared = completion_logprobs(model, params, prompts, completions, chunk=4)
        return rows, shared, -jnp.mean(shared[0])

    jax.tree.map(np.testing.assert_array_equal, numbers(params), numbers(policy))


@pytest.mark.parametrize("targets", [ALL, ("q", "v"), ("o",), ("k", "down")])
def test_beside_the_weights_as_in_the_weights(params, mesh, group, model, targets):
    """Packed rows, and completions on cached prompts, equal those of the merged model."""
    prompts, completions, whole = group
    config = dataclasses.replace(model.config, lora=dataclasses.replace(CONFIG.lora, targets=targets))
    adapters, model = trained(config, mesh), Decoder(config)

    @jax.jit
    def numbers(params):
        shared = completion_logprobs(model, params, prompts, completions, chunk=4)
        return sequence_logprobs(model, params, whole, chunk=4), shared

    beside, merged = numbers(attach(params, adapters)), numbers(merge(params, adapters, config))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), beside, merged)
    assert np.abs(beside[0][0] - numbers(params)[0][0]).max() > 0.1, "these adapters do something"


def test_the_gradient_is_the_chain_rules(params, adapters, group):
    """Through the weights of the merged model: `da = s b dW^T`, `db = s a dW`, in float32."""
    _, _, whole = group
    model, s = Decoder(CONFIG), CONFIG.lora.scale

    def loss(params):
        return -jnp.mean(sequence_logprobs(model, params, whole, chunk=5)[0])

    got = jax.jit(jax.grad(lambda adapters: loss(attach(params, adapters))))(adapters)
    dense = jax.jit(jax.grad(loss))(merge(params, adapters, CONFIG))["layers"]
    for target, pair in adapters.items():
        a, b, dw = (np.asarray(x, np.float64) for x in (pair["a"], pair["b"], dense[target]))
        flat_a, flat_b = (x.reshape(*x.shape[:2], -1) for x in (a, b))  # [L, r, in], [L, r, out]
        flat_w = dw.reshape(len(dw), flat_a.shape[2], flat_b.shape[2])
        da = (s * np.einsum("lio,lro->lri", flat_w, flat_b)).reshape(a.shape)
        db = (s * np.einsum("lri,lio->lro", flat_a, flat_w)).reshape(b.shape)
        for name, expected in (("a", da), ("b", db)):
            size = np.abs(expected).max()
            assert size > 1e-4
            np.testing.assert_allclose(got[target][name] / size, expected / size, atol=2e-5, err_msg=f"{target} {name}")


def results(mesh, *, remat="none", scan=True):
    """Loss, gradient and log-probabilities of one batch under a mesh."""
    config = dataclasses.replace(CONFIG, remat=remat, scan_layers=scan)
    rng, model = np.random.default_rng(5), Decoder(config)
    batch = ragged(rng.integers(0, 34, (4, 6)), [6, 2, 5, 6])
    with jax.set_mesh(mesh):
        base, adapters = randomized(config, mesh), trained(config, mesh)
        placed = host_to_global(jax.tree.map(np.asarray, batch), named(mesh, "batch"))

        def loss(adapters, base, batch: Sequences):
            logprobs, _ = sequence_logprobs(model, attach(base, adapters), batch, chunk=4)
            return -logprobs.sum() / 10, logprobs

        call = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return jax.device_get(call(adapters, base, placed))


@pytest.fixture(scope="module")
def one_device():
    return results(mesh_of())


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 1), (1, 1, 2)], ids=str)
def test_a_mesh_changes_nothing(one_device, sizes):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results(mesh_of(*sizes)), one_device)


@pytest.mark.parametrize("settings", [{"remat": "full"}, {"remat": "dots"}, {"scan": False}], ids=str)
def test_remat_and_loop_change_nothing(one_device, settings):
    got = results(mesh_of(), **settings)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, one_device)


# --- precision ---


def test_a_base_in_the_computing_type_computes_the_same(params, adapters, group):
    """Matrices that are stored as bfloat16 are what the cast of each use would make of them."""
    _, _, whole = group
    model = Decoder(dataclasses.replace(CONFIG, dtype="bfloat16"))
    stored = jax.tree_util.tree_map_with_path(
        lambda path, p: p if path[-1].key.endswith(("norm", "bias")) else p.astype(jnp.bfloat16), params
    )
    call = jax.jit(lambda base: sequence_logprobs(model, attach(base, adapters), whole, chunk=4))
    jax.tree.map(np.testing.assert_array_equal, call(params), call(stored))


def test_merging_into_bfloat16_loses_what_training_wrote(params, group, capsys):
    """A small update, as of a few steps: beside the weights it is kept, rounded into them a part of it is noise."""
    _, _, whole = group
    small = jax.tree.map(lambda x: x, trained(CONFIG, mesh_of()))
    small = {name: pair | {"b": 0.02 * pair["b"]} for name, pair in small.items()}
    base = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32), params)  # as the files of a model
    model = Decoder(CONFIG)
    call = jax.jit(lambda params: sequence_logprobs(model, params, whole, chunk=4)[0])
    merged = merge(base, small, CONFIG)
    exact, unmoved = call(attach(base, small)), call(base)
    in_float32 = np.abs(call(merged) - exact).mean()
    rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(jnp.float32), merged)
    in_bfloat16 = np.abs(call(rounded) - exact).mean()
    moved = np.abs(exact - unmoved).mean()
    with capsys.disabled():
        print(
            f"\nmean gap of log-probabilities: adapters moved {moved:.1e}; merged float32 {in_float32:.1e}, "
            f"bfloat16 {in_bfloat16:.1e}"
        )
    assert in_float32 < 1e-6 < 0.02 * moved < in_bfloat16
