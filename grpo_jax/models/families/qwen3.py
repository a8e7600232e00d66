"""Qwen3 (`model_type: qwen3`): Llama with norms of each query and key head, and without biases as a rule."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.families import llama, qwen2
from grpo_jax.models.layout import Stored

HEAD_NORMS = {
    "layers.q_norm": Stored(llama.LAYER + "self_attn.q_norm.weight", "h", "h"),
    "layers.k_norm": Stored(llama.LAYER + "self_attn.k_norm.weight", "h", "h"),
}
NAMES = llama.NAMES | HEAD_NORMS


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `Qwen3Config`; `options` are how it is computed, and its head.

    Raises `ModelFolderError` for what this decoder does not compute.
    """
    fields = llama.common_fields(hf) | llama.bias_fields(hf)
    return DecoderConfig(**fields, family="qwen3", windows=llama.layer_windows(hf), qk_norm="head", **options)


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`."""
    fields = llama.common_hf_fields(config, "qwen3", "Qwen3") | qwen2.window_hf_fields(config)
    return fields | {"attention_bias": config.qkv_bias}
