"""Llama (`model_type: llama`), and what the families that follow it share."""

from __future__ import annotations

from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.layout import Stored

LAYER = "model.layers.{layer}."
NAMES = {
    "embed": Stored("model.embed_tokens.weight", "v d", "vd"),
    "layers.attention_norm": Stored(LAYER + "input_layernorm.weight", "d", "d"),
    "layers.q": Stored(LAYER + "self_attn.q_proj.weight", "nh d", "dnh"),
    "layers.k": Stored(LAYER + "self_attn.k_proj.weight", "kh d", "dkh"),
    "layers.v": Stored(LAYER + "self_attn.v_proj.weight", "kh d", "dkh"),
    "layers.o": Stored(LAYER + "self_attn.o_proj.weight", "d nh", "nhd"),
    "layers.mlp_norm": Stored(LAYER + "post_attention_layernorm.weight", "d", "d"),
    "layers.gate": Stored(LAYER + "mlp.gate_proj.weight", "f d", "df"),
    "layers.up": Stored(LAYER + "mlp.up_proj.weight", "f d", "df"),
    "layers.down": Stored(LAYER + "mlp.down_proj.weight", "d f", "fd"),
    "final_norm": Stored("model.norm.weight", "d", "d"),
    "head": Stored("lm_head.weight", "v d", "dv"),
    "score": Stored("score.weight", "o d", "do"),
}


def describes(config: DecoderConfig) -> bool:
    """Whether a decoder of this shape is one of this family."""
    return not config.qkv_bias


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `LlamaConfig`; `options` are dtype, remat, scan_layers and head.

    Raises `ModelFolderError` for what this decoder does not compute.
    """
    for key in ("attention_bias", "mlp_bias"):
        if getattr(hf, key):
            raise ModelFolderError(f"{key} is true; a Llama with biases is not supported")
    return DecoderConfig(**common_fields(hf), qkv_bias=False, **options)


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`."""
    return common_hf_fields(config, "llama", "Llama") | {"attention_bias": False, "mlp_bias": False}


def common_fields(hf: Any) -> dict[str, Any]:
    """The fields of `DecoderConfig` that all families of this type read alike, checked.

    transformers has already brought the spellings of its versions 4 and 5 to one, `rope_parameters`.
    """
    rope = dict(hf.rope_parameters)
    if rope.get("rope_type", "default") != "default":
        raise ModelFolderError(f"rope_type is {rope['rope_type']!r}; only the default rotary embedding is supported")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelFolderError(f"partial_rotary_factor is {rope['partial_rotary_factor']}; only 1.0 is supported")
    if hf.hidden_act != "silu":
        raise ModelFolderError(f"hidden_act is {hf.hidden_act!r}; only 'silu' is supported")
    return {
        "vocab_size": hf.vocab_size,
        "hidden_size": hf.hidden_size,
        "num_layers": hf.num_hidden_layers,
        "num_heads": hf.num_attention_heads,
        "num_kv_heads": hf.num_key_value_heads or hf.num_attention_heads,
        "head_dim": getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        "mlp_size": hf.intermediate_size,
        "rope_theta": float(rope["rope_theta"]),
        "rms_norm_eps": hf.rms_norm_eps,
        "tie_word_embeddings": hf.tie_word_embeddings,
        "max_positions": hf.max_position_embeddings,
    }


def common_hf_fields(config: DecoderConfig, model_type: str, prefix: str) -> dict[str, Any]:
    """The fields of config.json that all families of this type write alike.

    The rotary base is written in both spellings: transformers 4 does not know `rope_parameters` and would,
    without a word, take its own default.
    """
    scalar = config.head == "scalar"
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if scalar else {}
    return {
        "model_type": model_type,
        "architectures": [prefix + ("ForSequenceClassification" if scalar else "ForCausalLM")],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_size,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_positions,
        "attention_dropout": 0.0,
        **labels,
    }
