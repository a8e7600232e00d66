"""Llama (`model_type: llama`; also DeepSeek-LLM, -Coder and -Math), and what the families that follow it share."""

from __future__ import annotations

import dataclasses
from typing import Any

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.layout import Stored
from grpo_jax.models.rope import KINDS, Rope

LAYER = "model.layers.{layer}."
NAMES = {
    "embed": Stored("model.embed_tokens.weight", "v d", "vd"),
    "layers.attention_norm": Stored(LAYER + "input_layernorm.weight", "d", "d"),
    "layers.q": Stored(LAYER + "self_attn.q_proj.weight", "nh d", "dnh"),
    "layers.k": Stored(LAYER + "self_attn.k_proj.weight", "kh d", "dkh"),
    "layers.v": Stored(LAYER + "self_attn.v_proj.weight", "kh d", "dkh"),
    "layers.o": Stored(LAYER + "self_attn.o_proj.weight", "d nh", "nhd"),
    "layers.q_bias": Stored(LAYER + "self_attn.q_proj.bias", "nh", "nh"),
    "layers.k_bias": Stored(LAYER + "self_attn.k_proj.bias", "kh", "kh"),
    "layers.v_bias": Stored(LAYER + "self_attn.v_proj.bias", "kh", "kh"),
    "layers.o_bias": Stored(LAYER + "self_attn.o_proj.bias", "d", "d"),
    "layers.mlp_norm": Stored(LAYER + "post_attention_layernorm.weight", "d", "d"),
    "layers.gate": Stored(LAYER + "mlp.gate_proj.weight", "f d", "df"),
    "layers.up": Stored(LAYER + "mlp.up_proj.weight", "f d", "df"),
    "layers.down": Stored(LAYER + "mlp.down_proj.weight", "d f", "fd"),
    "layers.gate_bias": Stored(LAYER + "mlp.gate_proj.bias", "f", "f"),
    "layers.up_bias": Stored(LAYER + "mlp.up_proj.bias", "f", "f"),
    "layers.down_bias": Stored(LAYER + "mlp.down_proj.bias", "d", "d"),
    "final_norm": Stored("model.norm.weight", "d", "d"),
    "head": Stored("lm_head.weight", "v d", "dv"),
    "score": Stored("score.weight", "o d", "do"),
}
"""Every parameter that a family of this type may have; a config says which it has."""

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Our config of a `LlamaConfig`; `options` are how it is computed, and its head.

    Raises `ModelFolderError` for what this decoder does not compute.
    """
    return DecoderConfig(**common_fields(hf), **bias_fields(hf), family="llama", mlp_bias=hf.mlp_bias, **options)


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The fields of config.json for a decoder; the inverse of `decoder_config`."""
    return common_hf_fields(config, "llama", "Llama") | {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }


def common_fields(hf: Any, *, activation: str = "hidden_act", rope: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields of `DecoderConfig` that all families of this type read alike, checked.

    transformers has already brought the spellings of its versions 4 and 5 to one, `rope_parameters`, which is taken
    unless `rope` is given. The function of the mlp stands under the name `activation`.
    """
    function = getattr(hf, activation)
    if function not in ACTIVATIONS:
        raise ModelFolderError(f"{activation} is {function!r}; there are {', '.join(ACTIVATIONS)}")
    return {
        "rope": read_rope(hf.rope_parameters if rope is None else rope),
        "vocab_size": hf.vocab_size,
        "hidden_size": hf.hidden_size,
        "num_layers": hf.num_hidden_layers,
        "num_heads": hf.num_attention_heads,
        "num_kv_heads": hf.num_key_value_heads or hf.num_attention_heads,
        "head_dim": getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        "mlp_size": hf.intermediate_size,
        "activation": ACTIVATIONS[function],
        "rms_norm_eps": hf.rms_norm_eps,
        "tie_word_embeddings": hf.tie_word_embeddings,
        "max_positions": hf.max_position_embeddings,
    }


def bias_fields(hf: Any) -> dict[str, bool]:
    """Which biases `attention_bias` stands for: those of all four projections."""
    return {"qkv_bias": hf.attention_bias, "o_bias": hf.attention_bias}


def activation_name(config: DecoderConfig) -> str:
    """The function of the mlp as config.json calls it."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)


def read_rope(parameters: dict[str, Any]) -> Rope:
    """A rotary embedding of config.json; raises `ModelFolderError` for a kind or a key that is not computed here."""
    given = {key: value for key, value in parameters.items() if value is not None and key != "type"}
    kind = given.get("rope_type", "default")
    if kind not in KINDS:
        raise ModelFolderError(f"rope_type is {kind!r}; there are {', '.join(KINDS)}")
    if given.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ModelFolderError(f"partial_rotary_factor is {parameters['partial_rotary_factor']}; only 1.0 is supported")
    known = {field.name for field in dataclasses.fields(Rope)}
    if set(given) - known:
        raise ModelFolderError(f"rope_parameters: unknown keys {', '.join(sorted(set(given) - known))}")
    return Rope(**given | {"rope_theta": float(given["rope_theta"])})


def write_rope(rope: Rope) -> dict[str, Any]:
    """The inverse of `read_rope`."""
    return {key: value for key, value in dataclasses.asdict(rope).items() if value is not None}


def layer_windows(hf: Any) -> tuple[int, ...]:
    """The window of each layer that config.json says slides; () if none does."""
    kinds = hf.layer_types or ()
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ModelFolderError(f"layer_types holds {', '.join(sorted(unknown))}; there are sliding and full attention")
    if "sliding_attention" not in kinds:
        return ()
    if not hf.sliding_window:
        raise ModelFolderError("layer_types has sliding attention, but sliding_window is not set")
    return tuple(hf.sliding_window if kind == "sliding_attention" else 0 for kind in kinds)


def layer_types(config: DecoderConfig) -> list[str]:
    """The inverse of `layer_windows`, without the size."""
    windows = config.windows or (0,) * config.num_layers
    return ["sliding_attention" if window else "full_attention" for window in windows]


def window_size(config: DecoderConfig) -> int | None:
    """The size of the windows; raises `ModelFolderError` for several, as config.json has room for one."""
    sizes = sorted(set(config.windows) - {0})
    if len(sizes) > 1:
        raise ModelFolderError(f"windows of {', '.join(map(str, sizes))} tokens; config.json has room for one size")
    return sizes[0] if sizes else None


def common_hf_fields(config: DecoderConfig, model_type: str, prefix: str) -> dict[str, Any]:
    """The fields of config.json that all families of this type write alike.

    The rotary embedding is written in both spellings: transformers 4 does not know `rope_parameters` and would,
    without a word, take its own default.
    """
    scalar = config.head == "scalar"
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if scalar else {}
    rope = write_rope(config.rope)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
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
        "hidden_act": activation_name(config),
        "rope_theta": config.rope.rope_theta,
        "rope_scaling": None if config.rope.rope_type == "default" else scaling,
        "rope_parameters": rope,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_positions,
        "attention_dropout": 0.0,
        **labels,
    }
