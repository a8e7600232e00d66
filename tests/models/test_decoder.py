"""Parameters from the table, and one result however it is computed, padded, packed or sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, ragged, randomized

from grpo_jax.config import ArchitectureConfig, MeshConfig
from grpo_jax.models.decoder import Decoder, DecoderConfig, from_architecture
from grpo_jax.models.parameters import abstract_params, count, init_params
from grpo_jax.models.rope import Rope
from grpo_jax.sharding import ShardingError, constrain, make_mesh, named
from grpo_jax.types import Sequences


def real(x, sequences):
    """The hidden states of real tokens, in order."""
    return np.asarray(x)[np.asarray(sequences.segments) > 0]


def test_the_table_is_the_tree(mesh, group):
    _, _, whole = group
    for config in (TINY, dataclasses.replace(TINY, tie_word_embeddings=True, qkv_bias=False, head="scalar")):
        made = jax.eval_shape(Decoder(config).init, jax.random.key(0), whole)["params"]
        declared = abstract_params(config, mesh)
        assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, declared)
        assert count(config) == sum(x.size for x in jax.tree.leaves(declared))


def test_parameter_count_of_a_known_model():
    half_billion = DecoderConfig(
        vocab_size=151936,
        hidden_size=896,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        mlp_size=4864,
        tie_word_embeddings=True,
        qkv_bias=True,
    )
    assert count(half_billion) == 494_032_768  # Qwen2.5-0.5B


def test_positions_are_those_of_the_scaling():
    yarn = Rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=2048)
    linear = Rope(rope_type="linear", factor=4.0)
    lengths = [dataclasses.replace(TINY, rope=rope).longest for rope in (Rope(), linear, yarn)]
    assert lengths == [4096, 4096, 8192]


def test_architecture_section_becomes_a_decoder():
    config = from_architecture(ArchitectureConfig(qkv_bias=True), vocab_size=20, max_positions=64, remat="full")
    assert (config.num_layers, config.mlp_size, config.qkv_bias, config.max_positions) == (2, 192, True, 64)
    assert config.tie_word_embeddings and config.remat == "full" and hash(config) == hash(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "4 query heads are not a multiple of 3 kv heads"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"dtype": "float16"}, "dtype is 'float16'; choose one of float32, bfloat16"),
        ({"remat": "all"}, "remat is 'all'"),
        ({"windows": (3,)}, "1 windows for 2 layers"),
        ({"local_rope": Rope()}, "local_rope is the rotary embedding of layers with a window, and there are none"),
        ({"num_experts": 4, "experts_per_token": 5}, "5 experts a token of 4"),
        ({"norms": "around"}, "norms is 'around'; choose one of pre, post, both"),
        ({"activation": "relu"}, "activation is 'relu'; choose one of silu, gelu_tanh"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_start_does_not_depend_on_the_mesh(mesh):
    eight = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    one, many = (init_params(TINY, jax.random.key(3), m) for m in (mesh, eight))
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert many["layers"]["q"].sharding.spec == named(eight, "layers", "embed", "heads", "head_dim").spec
    assert many["layers"]["q"].addressable_shards[0].data.shape == (2, 8, 2, 6)


def test_a_mesh_that_does_not_divide_is_refused():
    config = dataclasses.replace(TINY, vocab_size=32)
    with pytest.raises(ShardingError, match=r"layers\.k: a dimension of 2 cannot be .* tensor of size 4"):
        abstract_params(config, make_mesh(MeshConfig(fsdp=1, tensor=4), jax.devices()[:4]))


def gradients(config, params, sequences):
    def loss(params):
        hidden, _ = Decoder(config).apply({"params": params}, sequences)
        return jnp.mean(jnp.sin(hidden))

    return jax.jit(jax.value_and_grad(loss))(params)


def test_scan_loop_and_remat_agree(params, group):
    _, _, whole = group
    settings = [(True, "none"), (True, "dots"), (False, "full")]
    results = [gradients(dataclasses.replace(TINY, scan_layers=s, remat=r), params, whole) for s, r in settings]
    for value, gradient in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), gradient, results[0][1])


def test_bfloat16_is_close_and_gradients_stay_float32(params, group, forward):
    _, _, whole = group
    half = dataclasses.replace(TINY, dtype="bfloat16")
    hidden, exact = (forward(Decoder(c), params, whole) for c in (half, TINY))
    assert hidden.dtype == jnp.bfloat16
    difference = np.abs(real(hidden.astype(jnp.float32) - exact, whole))
    assert difference.max() < 0.15 and difference.mean() < 0.02
    gradient = jax.eval_shape(lambda p: gradients(half, p, whole)[1], params)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, params, forward, side):
    tokens = np.random.default_rng(2).integers(0, 34, (1, 6))
    plain = real(forward(model, params, ragged(tokens, [6])), ragged(tokens, [6]))
    for pads, pad in ((1, 0), (9, 3), (33, 33)):
        wide = np.zeros((1, 6 + pads), int)
        wide[:, -6:] = tokens
        if side == "right":
            wide = np.roll(wide, 6, axis=1)
        padded = ragged(wide, [6], pad=pad, side=side)
        np.testing.assert_allclose(real(forward(model, params, padded), padded), plain, atol=1e-5)


def test_packed_segments_do_not_see_one_another(model, params, forward):
    rng = np.random.default_rng(3)
    lengths = [4, 6, 1]
    rows = [rng.integers(0, 34, (1, n)) for n in lengths]
    packed = Sequences(
        tokens=jnp.asarray(np.concatenate([*rows, [[7]]], axis=1), jnp.int32),
        positions=jnp.asarray(np.concatenate([np.arange(n) for n in [*lengths, 1]])[None], jnp.int32),
        segments=jnp.asarray(np.repeat([1, 2, 3, 0], [*lengths, 1])[None], jnp.int32),
    )
    alone = [forward(model, params, ragged(row, [row.shape[1]])) for row in rows]
    got = real(forward(model, params, packed), packed)
    np.testing.assert_allclose(got, np.concatenate([x[0] for x in alone]), atol=1e-5)


def test_scalar_head_scores_every_token(mesh, group, forward):
    _, _, whole = group
    config = dataclasses.replace(TINY, head="scalar")
    params = randomized(config, mesh)
    scores = forward(Decoder(config), params, whole)
    body = {name: leaf for name, leaf in params.items() if name != "score"}
    hidden = forward(Decoder(dataclasses.replace(TINY, tie_word_embeddings=True)), body, whole)
    assert scores.shape == whole.tokens.shape and scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, (hidden @ params["score"])[..., 0], atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 2, 2), (2, 2, 1), (2, 2, 2)])
def test_a_mesh_changes_nothing(params, sizes, forward):
    data, fsdp, tensor = sizes
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    shardings = jax.tree.map(lambda x: x.sharding, abstract_params(TINY, mesh))
    batch = ragged(np.random.default_rng(4).integers(0, 34, (4, 6)), [6, 2, 5, 6])
    expected = forward(Decoder(TINY), params, batch)
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, named(mesh, "batch", None))
        got = forward(Decoder(TINY), jax.device_put(params, shardings), placed)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_constrain_is_the_identity_without_a_mesh():
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", None) is x
