"""Qwen2 and Qwen2.5 (`model_type: qwen2`): Llama with biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.families import llama

NAMES = llama.NAMES


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `Qwen2Config`; `options` are how it is computed, and its head.

    Raises `ModelFolderError` for what this decoder does not compute.
    """
    windows = llama.layer_windows(hf)
    return DecoderConfig(**llama.common_fields(hf), family="qwen2", windows=windows, qkv_bias=True, **options)


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`."""
    return llama.common_hf_fields(config, "qwen2", "Qwen2") | window_hf_fields(config)


def window_hf_fields(config: DecoderConfig) -> dict[str, Any]:
    """How the Qwen families say which layers have a window."""
    kinds = llama.layer_types(config)
    return {
        "use_sliding_window": bool(any(config.windows)),
        "sliding_window": llama.window_size(config),
        "layer_types": kinds,
        "max_window_layers": (*kinds, "sliding_attention").index("sliding_attention"),  # the first of them
    }
