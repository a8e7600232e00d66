"""Mistral (`model_type: mistral`): Llama whose layers may all have a sliding window."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.families import llama
from grpo_jax.models.folder import ModelFolderError

NAMES = llama.NAMES


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `MistralConfig`; `options` are how it is computed, and its head.

    Raises `ModelFolderError` for what this decoder does not compute, and for windows in some layers only, which
    transformers would read over.
    """
    windows = (hf.sliding_window,) * hf.num_hidden_layers if hf.sliding_window else ()
    kinds = set(getattr(hf, "layer_types", None) or ())
    if kinds and kinds != {"sliding_attention" if windows else "full_attention"}:
        raise ModelFolderError(
            f"layer_types holds {', '.join(sorted(kinds))} with sliding_window {hf.sliding_window}; in a mistral all "
            "layers have the window or none, remove the key or give the model_type that the weights are of"
        )
    return DecoderConfig(**llama.common_fields(hf), family="mistral", windows=windows, **options)


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`."""
    return llama.common_hf_fields(config, "mistral", "Mistral") | {"sliding_window": llama.window_size(config)}
