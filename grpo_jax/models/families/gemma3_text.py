"""Gemma 3 for text (`model_type: gemma3_text`): Gemma 2 with norms of query and key heads instead of soft caps.

Layers with a window, five of six in the published models, have a rotary embedding of their own.
"""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.families import gemma2, llama, qwen3
from grpo_jax.models.folder import ModelFolderError

NAMES = gemma2.NAMES | qwen3.HEAD_NORMS


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `Gemma3TextConfig`; `options` are how it is computed, and its head.

    Raises `ModelFolderError` for what this decoder does not compute, and for what transformers reads over: a soft
    cap of attention and, of yarn, `truncate`.
    """
    if hf.attn_logit_softcapping is not None:
        raise ModelFolderError(
            f"attn_logit_softcapping is {hf.attn_logit_softcapping}, but no implementation of this model_type caps "
            "attention; set it to null if the weights were trained without"
        )
    full, sliding = hf.rope_parameters["full_attention"], hf.rope_parameters["sliding_attention"]
    if "truncate" in full or "truncate" in sliding:
        raise ModelFolderError("rope_parameters: truncate is not read for this model_type; remove the key")
    fields = gemma2.gemma_fields(hf, full)
    local = llama.read_rope(sliding) if fields["windows"] else None
    return DecoderConfig(
        **fields,
        family="gemma3_text",
        local_rope=None if local == fields["rope"] else local,
        qk_norm="head",
        **options,
    )


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`.

    transformers 4 knows the local rotary embedding by its base alone, and up to 4.52 the windows by their period.
    """
    fields = llama.common_hf_fields(config, "gemma3_text", "Gemma3") | gemma2.gemma_hf_fields(config)
    if config.head == "scalar":
        fields["architectures"] = ["Gemma3TextForSequenceClassification"]
    local = config.local_rope or config.rope
    period = _period(config)
    return fields | {
        "rope_parameters": {
            "full_attention": llama.write_rope(config.rope),
            "sliding_attention": llama.write_rope(local),
        },
        "rope_local_base_freq": local.rope_theta,
        **({"sliding_window_pattern": period} if period else {}),
    }


def _period(config: DecoderConfig) -> int | None:
    """The number of layers of which the last one has no window, all the others have; None if there is none such."""
    slides = [bool(window) for window in config.windows] or [False] * config.num_layers
    for period in range(1, config.num_layers + 2):
        if slides == [bool((layer + 1) % period) for layer in range(config.num_layers)]:
            return period
    return None
