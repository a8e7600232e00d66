"""Make the golden model directories and their logits with transformers in torch.

    python tests/golden/make_model_golden.py

Writes `models_llama/` (untied, sharded, one kv head), `models_qwen2/` (tied, one file) and
`models_logits.npz` beside this file. Settings are awkward on purpose: head width is not width over heads, the
vocabulary is odd, biases and norms are not at their starting values, prompts are padded on the left.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

HERE = Path(__file__).resolve().parent
SHAPE = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 20}
LLAMA = LlamaConfig(
    **SHAPE,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=500.0,
    tie_word_embeddings=False,
)
QWEN2 = Qwen2Config(
    **SHAPE,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
)
LENGTHS = (12, 7, 1)
NEW_TOKENS, EOS, PAD = 24, (29, 5), 0  # of the two ends, each model reaches one


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every parameter, biases and norms included, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
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
    models = {"llama": (LlamaForCausalLM(LLAMA), "8KB"), "qwen2": (Qwen2ForCausalLM(QWEN2), "5GB")}
    for seed, (name, (model, shard)) in enumerate(models.items()):
        folder = HERE / f"models_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        randomize(model, seed).save_pretrained(folder, max_shard_size=shard)
        tokens, mask = padded_batch(SHAPE["vocab_size"], seed)
        arrays |= {f"{name}_tokens": tokens.astype(np.int32), f"{name}_mask": mask}
        arrays[f"{name}_logits"] = torch_logits(model, tokens, mask)
        arrays[f"{name}_greedy"] = torch_greedy(model, tokens, mask).astype(np.int32)
    np.savez_compressed(HERE / "models_logits.npz", **arrays)


if __name__ == "__main__":
    main()
