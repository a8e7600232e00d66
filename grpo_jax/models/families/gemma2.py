"""Gemma 2 (`model_type: gemma2`): norms on both sides, soft caps, windows in every other layer, scaled embeddings."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.families import llama
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.layout import Stored

NAMES = llama.NAMES | {
    "layers.attention_post_norm": Stored(llama.LAYER + "post_attention_layernorm.weight", "d", "d"),
    "layers.mlp_norm": Stored(llama.LAYER + "pre_feedforward_layernorm.weight", "d", "d"),
    "layers.mlp_post_norm": Stored(llama.LAYER + "post_feedforward_layernorm.weight", "d", "d"),
}


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `Gemma2Config`; `options` are how it is computed, and its head.

    Raises `ModelFolderError` for what this decoder does not compute.
    """
    return DecoderConfig(
        **gemma_fields(hf, hf.rope_parameters),
        family="gemma2",
        attention_softcap=hf.attn_logit_softcapping,
        **options,
    )


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`."""
    fields = llama.common_hf_fields(config, "gemma2", "Gemma2") | gemma_hf_fields(config)
    return fields | {"attn_logit_softcapping": config.attention_softcap}


def gemma_fields(hf: Any, rope: dict[str, Any]) -> dict[str, Any]:
    """The fields of `DecoderConfig` that the Gemma families read alike, checked; `rope` is that of full attention."""
    if hf.use_bidirectional_attention:
        raise ModelFolderError("use_bidirectional_attention is set: an encoder, which cannot write text")
    fields = llama.common_fields(hf, activation="hidden_activation", rope=rope) | llama.bias_fields(hf)
    scalar = hf.query_pre_attn_scalar
    return fields | {
        "windows": llama.layer_windows(hf),
        "norms": "both",
        "norm_offset": 1.0,
        "attention_scale": None if scalar == fields["head_dim"] else scalar**-0.5,
        "logit_softcap": hf.final_logit_softcapping,
        "embed_scale": True,
    }


def gemma_hf_fields(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `gemma_fields` for what is not written by all families."""
    scale = config.attention_scale
    return {
        "hidden_activation": llama.activation_name(config),
        "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": config.head_dim if scale is None else round(scale**-2),
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": llama.window_size(config),
        "layer_types": llama.layer_types(config),
    }
