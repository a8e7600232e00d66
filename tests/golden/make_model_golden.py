"""Make the golden model directories and their logits with transformers in torch.

    python tests/golden/make_model_golden.py

Writes `models_<family>/` for every family and `models_logits.npz` beside this file; `models_llama` is sharded and
untied, `models_qwen2` is one file and tied. Settings are awkward on purpose: head width is not width over heads, the
vocabulary is odd, biases and norms are not at their starting values, prompts are padded on the left, windows are
shorter than the text and soft caps low.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
SHAPE = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 20}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 6}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 3.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 3.0, "original_max_position_embeddings": 6}
LINEAR = {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.5}
PLAIN = {"rope_type": "default", "rope_theta": 200.0}
MODELS = {
    "llama": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "mistral": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 5,
        "rope_parameters": LINEAR,
    },
    "qwen3": {
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 6,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
        "rope_parameters": YARN,
        "tie_word_embeddings": True,
    },
    "qwen3_moe": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 10,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7,
        "norm_topk_prob": True,
        "rope_parameters": LLAMA3,
    },
    "gemma2": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 3,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 6.0,
        "sliding_window": 4,
        "rope_parameters": PLAIN,
    },
    "gemma3_text": {
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 5,
        "sliding_window": 4,
        "sliding_window_pattern": 3,
        "rope_parameters": {"full_attention": LINEAR, "sliding_attention": PLAIN},
    },
    "olmo2": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": PLAIN,
    },
}
SHARD_SIZES = {"llama": "8KB"}
LENGTHS = (12, 7, 1)
NEW_TOKENS, EOS, PAD = 24, (29, 5), 0  # of the two ends, each model reaches one


def centre(model: torch.nn.Module, name: str) -> float:
    """Around what a parameter lies: Gemma adds 1 to its norms by itself."""
    return 1.0 if "norm" in name and "gemma" not in model.config.model_type else 0.0


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every parameter, biases and norms included, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(centre(model, name) + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.float().eval()


def padded_batch(vocab: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded tokens and their mask."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (len(LENGTHS), max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) >= max(LENGTHS) - np.array(LENGTHS)[:, None]
    return tokens, mask


def torch_logits(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """transformers' logits with an attention mask and positions from 0 at the first real token."""
    attention = torch.tensor(mask.astype(np.int64))
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens), attention_mask=attention, position_ids=positions)
    return out.logits.numpy()


def torch_greedy(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """transformers' greedy completions, the end of sequence `EOS`, what follows it `PAD`."""
    out = model.generate(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(mask.astype(np.int64)),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=list(EOS),
        pad_token_id=PAD,
    )
    return out.numpy()[:, tokens.shape[1] :]


def main() -> None:
    """Write all golden files anew."""
    arrays = {}
    for seed, (name, fields) in enumerate(MODELS.items()):
        folder = HERE / f"models_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        config = AutoConfig.for_model(name, **SHAPE | fields)
        options = {"attn_implementation": "eager", "experts_implementation": "eager"} if seed > 1 else {}
        model = randomize(AutoModelForCausalLM.from_config(config, **options), seed)
        model.save_pretrained(folder, max_shard_size=SHARD_SIZES.get(name, "5GB"))
        tokens, mask = padded_batch(SHAPE["vocab_size"], seed)
        arrays |= {f"{name}_tokens": tokens.astype(np.int32), f"{name}_mask": mask}
        arrays[f"{name}_logits"] = torch_logits(model, tokens, mask)
        arrays[f"{name}_greedy"] = torch_greedy(model, tokens, mask).astype(np.int32)
    np.savez_compressed(HERE / "models_logits.npz", **arrays)


if __name__ == "__main__":
    main()
