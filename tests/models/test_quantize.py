"""Weights in eight bits: how far off, the same sampler in every layout and on a mesh, and what it is refused for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.decoding import DECODE, decode_params
from grpo_jax.models.logprobs import completion_logprobs
from grpo_jax.models.lora import INPUTS, Lora, attach, init_adapters
from grpo_jax.models.parameters import init_params
from grpo_jax.models.quantize import SCALES, QuantizeError, quantize, quantize_params
from tests import tiny


def dequantized(params, config):
    """The weights that the integers stand for, in the tree of the model."""
    whole = quantize_params(params, config)
    layers = {name: x for name, x in whole["layers"].items() if name != SCALES}
    for name, scale in whole["layers"][SCALES].items():
        spread = np.expand_dims(scale, tuple(range(1, 1 + INPUTS[name])))
        layers[name] = np.float32(layers[name]) * spread
    (head, scale), *rest = whole[SCALES].items()
    assert not rest
    scale = scale[:, None] if head == "embed" else scale
    found = {**whole, "layers": layers, head: np.float32(whole[head]) * scale}
    return {name: x for name, x in found.items() if name != SCALES}


def test_no_weight_is_off_by_more_than_half_a_step():
    w = np.random.default_rng(0).normal(size=(3, 5, 7, 2)).astype(np.float32) * np.arange(7)[:, None]  # a channel of 0
    values, scale = quantize(w, (1,))
    assert values.dtype == jnp.int8 and scale.shape == (3, 7, 2)
    off = np.abs(w - np.float32(values) * np.asarray(scale)[:, None])
    assert (off <= np.asarray(scale)[:, None] * (0.5 + 1e-5)).all() and off.max() > 0
    np.testing.assert_array_equal(
        np.abs(values).max(1), np.where(np.arange(7)[:, None] > 0, 127, 0) * np.ones((3, 1, 2))
    )


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_quantised(tied):
    config = tiny.decoder(tie_word_embeddings=tied).config
    params = tiny.host_params(tie_word_embeddings=tied)
    found = quantize_params(params, config)
    integers = {name for name, x in found["layers"].items() if name != SCALES and x.dtype == jnp.int8}
    assert integers == set(INPUTS) == set(found["layers"][SCALES])
    assert list(found[SCALES]) == ["embed" if tied else "head"] and found[SCALES][
        "embed" if tied else "head"
    ].shape == (tiny.V,)
    assert found["embed"].dtype == (jnp.int8 if tied else jnp.float32)
    assert found["layers"]["attention_norm"] is params["layers"]["attention_norm"]


@pytest.mark.parametrize("layout", ["stored", "joined", "gathered"])
@pytest.mark.parametrize("tied", [True, False])
def test_products_are_those_of_the_weights_they_stand_for(layout, tied):
    """The decoder on integers computes what it computes on integers times scales, whole and laid out for decoding."""
    changes = {"tie_word_embeddings": tied, "num_kv_heads": 2, "qkv_bias": True}
    model, params = tiny.decoder(decode_weights=layout, **changes), tiny.host_params(**changes)
    prepared = decode_params(quantize_params(params, model.config), model.config)
    assert (DECODE in prepared) == (layout != "stored")
    sequences = tiny.prompts().sequences
    got, _ = model.apply({"params": prepared}, sequences)
    expected, _ = model.apply({"params": dequantized(params, model.config)}, sequences)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    exact, _ = model.apply({"params": params}, sequences)
    assert np.abs(got - exact).max() > 1e-4, "nothing was rounded"


def rollout(weights, *, mesh=None, **changes):
    model = tiny.decoder(**changes)
    settings = tiny.sampling()._replace(weights=weights)
    return tiny.roll_out(model, tiny.host_params(**changes), tiny.prompts(), settings=settings, mesh=mesh)


def test_the_sampler_and_its_gap():
    """It says honestly what it drew from: near the trainer's probabilities, and not equal to them."""
    gaps = {}
    for weights in ("same", "int8"):
        drawn = rollout(weights)
        scored, _ = completion_logprobs(tiny.decoder(), tiny.host_params(), drawn.prompts, drawn.completions, chunk=8)
        mask = np.asarray(drawn.completion_mask)
        gaps[weights] = np.abs(np.asarray(scored) - np.asarray(drawn.logprobs))[mask].mean()
    assert gaps["same"] < 1e-5 and 1e-4 < gaps["int8"] < 0.05, gaps


@pytest.mark.parametrize("layout", ["stored", "joined", "gathered"])
def test_a_mesh_changes_nothing(layout):
    one = rollout("int8", decode_weights=layout)
    many = rollout("int8", decode_weights=layout, mesh=tiny.mesh_of(data=1, fsdp=2, tensor=2))
    np.testing.assert_array_equal(one.completions.tokens, many.completions.tokens)
    np.testing.assert_allclose(one.logprobs, many.logprobs, atol=1e-5)


def test_greedy_tokens_are_mostly_the_same():
    settings = tiny.sampling(temperature=0.0)
    tokens = [
        np.asarray(tiny.roll_out(tiny.decoder(), tiny.host_params(), tiny.prompts(P=8), settings=s).completions.tokens)
        for s in (settings, settings._replace(weights="int8"))
    ]
    assert np.mean(tokens[0] == tokens[1]) > 0.8


def test_adapters_stay_exact():
    """The base is rounded, what is trained beside it is not."""
    lora = Lora(rank=2, alpha=4.0, targets=("q", "down"))
    model = tiny.decoder(lora=lora)
    adapters = init_adapters(model.config, jax.random.key(1), tiny.mesh_of())
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    params = attach(tiny.host_params(), adapters)
    prepared = quantize_params(params, model.config)
    assert prepared["lora"] is adapters
    expected, _ = model.apply(
        {"params": attach(dequantized(tiny.host_params(), model.config), adapters)}, tiny.prompts().sequences
    )
    laid_out = decode_params(prepared, dataclasses.replace(model.config, decode_weights="joined"))
    got, _ = model.apply({"params": laid_out}, tiny.prompts().sequences)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_experts_are_refused():
    config = tiny.decoder(num_experts=4, experts_per_token=2).config
    with pytest.raises(QuantizeError, match="the 4 experts of this model; set it to same"):
        quantize_params(init_params(config, jax.random.key(0), tiny.mesh_of()), config)
