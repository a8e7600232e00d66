"""OLMo 2 (`model_type: olmo2`): norms after attention and mlp, and of all query and all key heads together."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.families import llama
from grpo_jax.models.layout import Stored

NAMES = llama.NAMES | {
    "layers.q_norm": Stored(llama.LAYER + "self_attn.q_norm.weight", "nh", "nh"),
    "layers.k_norm": Stored(llama.LAYER + "self_attn.k_norm.weight", "kh", "kh"),
    "layers.attention_post_norm": Stored(llama.LAYER + "post_attention_layernorm.weight", "d", "d"),
    "layers.mlp_post_norm": Stored(llama.LAYER + "post_feedforward_layernorm.weight", "d", "d"),
}


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of an `Olmo2Config`; `options` are how it is computed, and its head.

    Raises `ModelFolderError` for what this decoder does not compute.
    """
    fields = llama.common_fields(hf) | llama.bias_fields(hf)
    return DecoderConfig(**fields, family="olmo2", norms="post", qk_norm="width", **options)


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`."""
    return llama.common_hf_fields(config, "olmo2", "Olmo2") | {"attention_bias": config.qkv_bias}
