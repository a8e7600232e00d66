"""Weights in eight bits for the decode loop, which reads every weight once a token: half the bytes of bfloat16.

Symmetric, by output channel: `values = round(w / scale)` in -127..127, `scale = max |w| / 127` over what is summed in
the product, so that `(x values) scale` is the product (arXiv:2208.07339, section 2, vector-wise). Quantised are the
matrices of the layers and the output head, by row of the vocabulary; norms, biases and adapters are not. The sampler is
then another policy than the trainer's: its log-probabilities say by how much, and truncated importance weights correct.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from jax import Array

from grpo_jax.models.lora import INPUTS
from grpo_jax.models.parameters import parameter_table
from grpo_jax.sharding import constrain

if TYPE_CHECKING:
    from grpo_jax.models.decoder import DecoderConfig

SCALES = "scales"  # the key of the scales in a tree of parameters, and in its layers
LARGEST = 127


class QuantizeError(ValueError):
    """A model whose weights have no form in eight bits; the message names what it has."""

    exit_code = 2


def check_quantizable(config: DecoderConfig) -> None:
    """Refuse a mixture of experts, whose kernels take the weights of experts as they are."""
    if config.num_experts:
        raise QuantizeError(
            f"rl.rollout_weights: int8 has no form for the {config.num_experts} experts of this model; set it to same"
        )


def quantize(w: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Integers of the shape of `w`, and the scales of what is left when `axes` are summed over, f32.

    `|w - values scale| <= scale / 2`. A channel of zeros has scale 1.
    """
    w = w.astype(jnp.float32)
    largest = jnp.max(jnp.abs(w), axis=axes, keepdims=True)
    scale = jnp.where(largest == 0.0, 1.0, largest / LARGEST)
    values = jnp.clip(jnp.round(w / scale), -LARGEST, LARGEST).astype(jnp.int8)
    return values, jnp.squeeze(scale, axes)


def quantize_params(params: dict[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """The same tree with its matrices as integers, and their scales beside them under the key `scales`.

    A tied embedding is quantised, for the lookup too; one that is only looked up is left alone. Raises `QuantizeError`.
    """
    check_quantizable(config)
    table = parameter_table(config)
    layers, scales = dict(params["layers"]), {}
    for name, inputs in INPUTS.items():
        axes = table["layers"][name].axes
        values, scale = quantize(layers[name], tuple(range(1, 1 + inputs)))
        layers[name] = constrain(values, *axes)
        scales[name] = constrain(scale, axes[0], *axes[1 + inputs :])  # [L, out...]
    head, summed = ("embed", 1) if config.tie_word_embeddings else ("head", 0)
    values, scale = quantize(params[head], (summed,))  # of [V, D], or [D, V]
    return {
        **params,
        "layers": {**layers, SCALES: scales},
        head: constrain(values, *table[head].axes),
        SCALES: {head: constrain(scale, "vocab")},
    }


def rollout_params(params: dict[str, Any], config: DecoderConfig, weights: Literal["same", "int8"]) -> dict[str, Any]:
    """The weights that completions are drawn with: those of the trainer, or the same in eight bits."""
    return params if weights == "same" else quantize_params(params, config)


def rescaled(y: Array, layer: dict[str, Any], name: str) -> Array:
    """A product `x values` times the scales of its weight, where the layer has them."""
    if SCALES not in layer:
        return y
    return (y * layer[SCALES][name]).astype(y.dtype)
