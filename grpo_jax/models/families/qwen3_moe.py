"""Qwen3 with experts (`model_type: qwen3_moe`): in every layer the mlp is a mixture, a few experts a token."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.families import llama, qwen3
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.layout import Stored

EXPERT = llama.LAYER + "mlp.experts.{expert}."
NAMES = qwen3.NAMES | {
    "layers.router": Stored(llama.LAYER + "mlp.gate.weight", "e d", "de"),
    "layers.gate": Stored(EXPERT + "gate_proj.weight", "f d", "df"),
    "layers.up": Stored(EXPERT + "up_proj.weight", "f d", "df"),
    "layers.down": Stored(EXPERT + "down_proj.weight", "d f", "fd"),
}


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `Qwen3MoeConfig`; `options` are how it is computed, and its head.

    Raises `ModelFolderError` for what this decoder does not compute: above all for layers without experts among
    those that have them.
    """
    if not hf.num_experts:
        raise ModelFolderError(f"num_experts is {hf.num_experts}; a model without experts is of model_type qwen3")
    if hf.mlp_only_layers:
        raise ModelFolderError(f"mlp_only_layers is {hf.mlp_only_layers}; only [] is computed: experts in all layers")
    if hf.decoder_sparse_step != 1:
        raise ModelFolderError(f"decoder_sparse_step is {hf.decoder_sparse_step}; only 1: experts in all layers")
    kinds = set(getattr(hf, "layer_types", None) or ())
    if kinds and kinds != {"sliding_attention" if hf.sliding_window else "full_attention"}:
        raise ModelFolderError(
            f"layer_types holds {', '.join(sorted(kinds))} with sliding_window {hf.sliding_window}; in a qwen3_moe all "
            "layers have the window or none, remove the key or give the model_type that the weights are of"
        )
    fields = llama.common_fields(hf) | llama.bias_fields(hf) | {"mlp_size": hf.moe_intermediate_size}
    return DecoderConfig(
        **fields,
        family="qwen3_moe",
        windows=(hf.sliding_window,) * hf.num_hidden_layers if hf.sliding_window else (),
        qk_norm="head",
        num_experts=hf.num_experts,
        experts_per_token=hf.num_experts_per_tok,
        normalize_experts=hf.norm_topk_prob,
        **options,
    )


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`.

    `intermediate_size` is that of layers without experts, of which there are none: written is the width of all
    experts of a token together, which is what the published models have there.
    """
    window = llama.window_size(config)
    return llama.common_hf_fields(config, "qwen3_moe", "Qwen3Moe") | {
        "attention_bias": config.qkv_bias,
        "use_sliding_window": bool(window),
        "sliding_window": window,
        "intermediate_size": config.mlp_size * config.experts_per_token,
        "moe_intermediate_size": config.mlp_size,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.normalize_experts,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    }
