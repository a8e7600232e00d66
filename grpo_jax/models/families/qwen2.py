"""Qwen2 and Qwen2.5 (`model_type: qwen2`): Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.families import llama
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.layout import Stored

NAMES = llama.NAMES | {
    "layers.q_bias": Stored(llama.LAYER + "self_attn.q_proj.bias", "nh", "nh"),
    "layers.k_bias": Stored(llama.LAYER + "self_attn.k_proj.bias", "kh", "kh"),
    "layers.v_bias": Stored(llama.LAYER + "self_attn.v_proj.bias", "kh", "kh"),
}


def describes(config: DecoderConfig) -> bool:
    """Whether a decoder of this shape is one of this family."""
    return config.qkv_bias


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `Qwen2Config`; `options` are dtype, remat, scan_layers and head.

    Raises `ModelFolderError` for what this decoder does not compute.
    """
    if "sliding_attention" in (hf.layer_types or ()):
        raise ModelFolderError(
            f"use_sliding_window with a window of {hf.sliding_window}; only full attention is supported"
        )
    return DecoderConfig(**llama.common_fields(hf), qkv_bias=True, **options)


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`."""
    return llama.common_hf_fields(config, "qwen2", "Qwen2") | {"use_sliding_window": False}
