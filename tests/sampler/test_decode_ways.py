"""However decoding is computed - weights, layers, cache, rows - the tokens and their log-probabilities are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.decoding import DECODE, decode_bytes, decode_config, decode_params
from grpo_jax.models.lora import Lora, adapter_table
from grpo_jax.models.parameters import Parameter
from grpo_jax.models.rope import Rope
from grpo_jax.sampler.sample import cache_blocks, sample
from tests import tiny

STORED = {"decode_weights": "stored"}
SHAPES = {
    "windows": {
        "windows": (3, 0),
        "local_rope": Rope(rope_theta=100.0),
        "qk_norm": "head",
        "norms": "both",
        "attention_softcap": 20.0,
        "logit_softcap": 10.0,
        "tie_word_embeddings": True,
        "num_kv_heads": 2,
    },
    "experts": {"num_experts": 4, "experts_per_token": 2, "experts_kernel": "dense"},
    "biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "num_kv_heads": 1},
    "adapters": {"lora": Lora(rank=2, alpha=8.0, targets=("q", "v", "o", "up"))},
}


def params_of(changes):
    """Random parameters, biases and adapters too."""
    shape = {name: value for name, value in changes.items() if not name.startswith("decode")}
    params = tiny.host_params(**{name: value for name, value in shape.items() if name != "lora"})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)
    if "lora" in changes:
        table = adapter_table(tiny.decoder(**shape).config)
        entry = {"is_leaf": lambda x: isinstance(x, Parameter)}
        params["lora"] = jax.tree.map(lambda p: 0.3 * rng.standard_normal(p.shape).astype(np.float32), table, **entry)
    return params


def drawn(changes, **settings):
    settings = tiny.sampling(G=4, Tc=8)._replace(**settings)
    model = tiny.decoder(**changes)
    program = jax.jit(lambda params, prompts, key: sample(model, params, prompts, key, sampling=settings))
    return program(params_of(changes), tiny.prompts(), jax.random.key(0))


def same(a, b):
    np.testing.assert_array_equal(a.completions.tokens, b.completions.tokens)
    np.testing.assert_array_equal(a.completion_mask, b.completion_mask)
    np.testing.assert_array_equal(a.finished, b.finished)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    """Plain decoding against joined weights with slots and a ring; where there are windows, blocks of the cache too."""
    plain = drawn(SHAPES[shape] | STORED)
    assert 0 < plain.finished.sum() < plain.finished.size or shape == "windows"
    joined = SHAPES[shape] | {"decode_weights": "joined"}
    same(drawn(joined, decode_rows=6), plain)
    if shape == "windows":
        same(drawn(joined | {"decode_layers": "unroll"}, cache_block=4), plain)


@pytest.mark.parametrize(("weights", "shape", "rows"), [("gathered", (1, 4, 1), 0), ("joined", (1, 2, 2), 4)])
def test_weights_on_a_mesh(weights, shape, rows):
    plain = tiny.roll_out(tiny.decoder(**STORED), tiny.host_params(), tiny.prompts())
    settings = tiny.sampling()._replace(decode_rows=rows)
    model = tiny.decoder(decode_weights=weights)
    same(tiny.roll_out(model, tiny.host_params(), tiny.prompts(), mesh=tiny.mesh_of(*shape), settings=settings), plain)


def test_bf16_is_cast_once():
    """In the computing type before the loop: the numbers are those of a cast at every token."""
    low = {"dtype": "bfloat16"}
    same(drawn(low | {"decode_weights": "joined"}), drawn(low | STORED))
    config = decode_config(tiny.decoder(**low, decode_layers="unroll").config, {})
    layers = decode_params(tiny.host_params(), config)[DECODE]
    assert {x.dtype for layer in layers for name, x in layer.items() if not name.endswith("norm")} == {
        jnp.dtype(jnp.bfloat16)
    }


def test_bytes_are_counted():
    """What a plan counts is what is made: on one device, and by shards."""
    for changes in ({}, SHAPES["windows"], SHAPES["experts"]):
        config = decode_config(tiny.decoder(**changes, decode_weights="joined").config, {})
        made = jax.eval_shape(lambda p, config=config: decode_params(p, config), params_of(changes))
        matrices = [x for path, x in jax.tree_util.tree_leaves_with_path(made) if not path[-1].key.endswith("norm")]
        assert decode_bytes(config, "joined", {}) == sum(x.size * x.dtype.itemsize for x in matrices)
    config = tiny.decoder().config
    whole = decode_bytes(config, "joined", {})
    assert decode_bytes(config, "gathered", {"fsdp": 4, "tensor": 2}) == whole // 2
    assert decode_bytes(config, "joined", {"fsdp": 4, "tensor": 2}) == whole // 8
    assert decode_bytes(config, "stored", {"fsdp": 4}) == 0


def test_auto_takes_what_fits():
    large = {"hidden_size": 4096, "mlp_size": 11008, "num_layers": 30, "num_heads": 32, "num_kv_heads": 32}
    large = tiny.decoder(**large, head_dim=128, vocab_size=102400, dtype="bfloat16").config  # 13.8 GB
    assert decode_config(large, {"fsdp": 2}).decode_weights == "stored"
    assert decode_config(large, {"fsdp": 2}, weights="int8").decode_weights == "joined", "6.9 GB in eight bits"
    assert decode_config(large, {"fsdp": 8}).decode_weights == "joined"
    assert decode_config(large, {"fsdp": 8, "tensor": 4}).decode_weights == "gathered"
    assert decode_config(tiny.decoder().config, {}).decode_weights == "stored"
    assert decode_config(tiny.decoder(decode_layers="unroll").config, {}).decode_weights == "gathered"
    assert decode_config(tiny.decoder().config, {"fsdp": 2}).decode_weights == "gathered"


def test_auto_scans_small_caches_on_one_cpu_device():
    small, slots = tiny.decoder(num_layers=24).config, 1000
    assert decode_config(small, {}, slots=slots).scan_layers
    assert not decode_config(small, {"data": 2}, slots=slots).scan_layers
    assert not decode_config(small, {}, slots=10**6).scan_layers
    assert decode_config(tiny.decoder(num_layers=25).config, {}, slots=10**6).scan_layers
    for layers, scanned in {"scan": True, "unroll": False}.items():
        assert decode_config(tiny.decoder(decode_layers=layers).config, {}, slots=slots).scan_layers == scanned


@pytest.mark.parametrize(
    ("length", "block", "sizes"),
    [(127, 0, (127,)), (1024, 0, (256,) * 4), (10, 4, (4, 4, 2)), (10, 40, (10,)), (513, 0, (129, 129, 129, 126))],
)
def test_blocks_of_a_cache(length, block, sizes):
    assert cache_blocks(length, block) == sizes
