"""Awkward models of every family, as config.json describes them: small, and no setting at its usual value.

Together they have head widths that are not width over heads, one and all key-value heads, tied and untied heads,
biases, an odd vocabulary, windows shorter than the text, and every rotary scaling with text beyond its original
context.
"""

import importlib

from transformers import AutoConfig

from grpo_jax.models import families

SHAPE = {
    "vocab_size": 37,
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 28,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 4.0,
    "original_max_position_embeddings": 12,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 3.0, "original_max_position_embeddings": 12}
YARN_BY_HAND = YARN | {"beta_fast": 1.5, "beta_slow": 0.25, "mscale": 1.5, "mscale_all_dim": 0.7, "truncate": False}
LINEAR = {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.5}
PLAIN = {"rope_type": "default", "rope_theta": 200.0}

EXPERTS = {"moe_intermediate_size": 10, "num_experts": 6, "num_experts_per_tok": 3}

CASES = {
    "llama, llama3 rope, K=1, biases": {
        "model_type": "llama",
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": LLAMA3,
    },
    "llama, yarn by hand, K=N, tied": {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "rope_parameters": YARN_BY_HAND,
    },
    "llama, linear rope, gelu": {
        "model_type": "llama",
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": LINEAR,
    },
    "mistral, window 5, linear rope": {
        "model_type": "mistral",
        "sliding_window": 5,
        "rope_parameters": LINEAR,
    },
    "mistral, no window, K=1, tied": {
        "model_type": "mistral",
        "num_key_value_heads": 1,
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    "qwen2, yarn, tied": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_parameters": YARN,
    },
    "qwen2, window 4 in the last layers, K=N": {
        "model_type": "qwen2",
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "rope_parameters": PLAIN,
    },
    "qwen3, biases, K=1, tied": {
        "model_type": "qwen3",
        "num_key_value_heads": 1,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": PLAIN,
    },
    "qwen3, window 6, yarn attention factor": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
        "rope_parameters": YARN | {"attention_factor": 1.7},
    },
    "qwen3_moe, 3 of 6, normalized": {
        "model_type": "qwen3_moe",
        **EXPERTS,
        "norm_topk_prob": True,
        "rope_parameters": PLAIN,
    },
    "qwen3_moe, 1 of 5, window 7, K=1, tied": {
        "model_type": "qwen3_moe",
        **EXPERTS,
        "num_experts": 5,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "rope_parameters": LLAMA3,
    },
    "gemma2, low caps, window 4, scale": {
        "model_type": "gemma2",
        "num_hidden_layers": 3,
        "query_pre_attn_scalar": 3,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 4.0,
        "sliding_window": 4,
        "rope_parameters": PLAIN,
    },
    "gemma2, no caps, biases, K=1, untied": {
        "model_type": "gemma2",
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 10,
        "attention_bias": True,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window": 9,
        "layer_types": ["full_attention", "sliding_attention"],
        "tie_word_embeddings": False,
        "rope_parameters": LINEAR,
    },
    "gemma3_text, two ropes, window 5": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "query_pre_attn_scalar": 11,
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": PLAIN},
    },
    "gemma3_text, logits capped, K=N, untied": {
        "model_type": "gemma3_text",
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 10,
        "attention_bias": True,
        "final_logit_softcapping": 3.0,
        "sliding_window": 3,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": False,
        "rope_parameters": {"full_attention": YARN, "sliding_attention": LLAMA3},
    },
    "olmo2, K=1, tied": {
        "model_type": "olmo2",
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rope_parameters": PLAIN,
    },
    "olmo2, biases, yarn by hand": {
        "model_type": "olmo2",
        "attention_bias": True,
        "rope_parameters": YARN_BY_HAND,
    },
}


def hf_config(name):
    """The configuration object of transformers, which exists without torch."""
    fields = SHAPE | CASES[name]
    return AutoConfig.for_model(**{key: dict(v) if isinstance(v, dict) else v for key, v in fields.items()})


def family(name):
    """The module of a family of this name."""
    return importlib.import_module(f"{families.__name__}.{name}")


def decoder_config(name, **options):
    """Our config of an awkward model."""
    return family(CASES[name]["model_type"]).decoder_config(hf_config(name), **options)
