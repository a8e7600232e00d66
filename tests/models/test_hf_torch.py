"""Against transformers in torch, live: logits, the scalar head, and directories that go both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TINY, ragged, randomized

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.hf import load_params, read_config, save_params
from grpo_jax.models.logprobs import next_token_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 37, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2}
CONFIGS = {
    "llama": lambda **k: transformers.LlamaConfig(**SHAPE, head_dim=6, rope_theta=100.0, rms_norm_eps=1e-3, **k),
    "qwen2": lambda **k: transformers.Qwen2Config(**SHAPE, head_dim=14, rope_theta=1e6, **k),
}


def torch_model(config, seed):
    """A transformers model with random numbers everywhere, biases and norms too."""
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1.0 if "norm" in name else noise)
    return model


def torch_run(model, tokens, mask):
    attention = torch.tensor(mask.astype(np.int64))
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(torch.tensor(tokens), attention_mask=attention, position_ids=positions)


def batch():
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (4, 11))
    return tokens, np.arange(11) >= 11 - np.array([11, 8, 3, 1])[:, None]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "heads", "kv_heads"), [("llama", 4, 1), ("qwen2", 6, 2), ("qwen2", 2, 2)])
def test_logits_equal_torch(tmp_path, mesh, forward, family, heads, kv_heads, tied):
    config = CONFIGS[family](num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    theirs = torch_model(config, seed=heads)
    theirs.save_pretrained(tmp_path, max_shard_size="9KB")
    tokens, mask = batch()
    expected = torch_run(theirs, tokens, mask).logits.numpy()
    decoder = read_config(tmp_path)
    model, params = Decoder(decoder), load_params(tmp_path, decoder, mesh)
    logits = next_token_logits(model, params, forward(model, params, ragged(tokens, mask.sum(1))))
    assert np.abs(expected[mask]).max() > 2
    np.testing.assert_allclose(np.asarray(logits)[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_our_export(tmp_path, mesh, forward, qkv_bias, tied):
    config = dataclasses.replace(
        TINY, family="qwen2" if qkv_bias else "llama", qkv_bias=qkv_bias, tie_word_embeddings=tied
    )
    params = randomized(config, mesh)
    save_params(params, config, None, tmp_path / "m", max_shard_bytes=8000)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(report.values()), report
    assert type(theirs).__name__ == ("Qwen2ForCausalLM" if qkv_bias else "LlamaForCausalLM")
    tokens, mask = batch()
    tokens = tokens % config.vocab_size
    model = Decoder(config)
    logits = next_token_logits(model, params, forward(model, params, ragged(tokens, mask.sum(1))))
    np.testing.assert_allclose(np.asarray(logits)[mask], torch_run(theirs, tokens, mask).logits[mask], atol=1e-4)


def test_bfloat16_export_is_loaded_as_such(tmp_path, mesh):
    save_params(randomized(TINY, mesh), TINY, None, tmp_path / "m", dtype="bfloat16")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype="auto").dtype == torch.bfloat16


def test_scalar_head_is_a_sequence_classifier(tmp_path, mesh, forward):
    config = dataclasses.replace(TINY, head="scalar")
    params = randomized(config, mesh)
    save_params(params, config, None, tmp_path / "m")
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(report.values()), report
    tokens, mask = batch()
    tokens = tokens % config.vocab_size
    with torch.no_grad():
        hidden = torch_run(theirs.model, tokens, mask).last_hidden_state
        expected = theirs.score(hidden)[..., 0].numpy()
    scores = forward(Decoder(config), params, ragged(tokens, mask.sum(1)))
    np.testing.assert_allclose(np.asarray(scores)[mask], expected[mask], atol=1e-4)


def test_gradient_equals_torch(tmp_path, mesh):
    """The gradient of the mean log-probability, through export, for the embedding and one projection."""
    config = dataclasses.replace(TINY, tie_word_embeddings=True)
    params = randomized(config, mesh)
    save_params(params, config, None, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, 6))
    logp = torch.log_softmax(theirs(torch.tensor(tokens)).logits[:, :-1], -1)
    logp.gather(-1, torch.tensor(tokens[:, 1:, None])).mean().backward()
    from grpo_jax.models.logprobs import sequence_logprobs

    def mean(params):
        logprobs, _ = sequence_logprobs(Decoder(config), params, ragged(tokens, [6, 6]), chunk=2)
        return jnp.sum(logprobs) / 10

    got = jax.jit(jax.grad(mean))(params)
    np.testing.assert_allclose(got["embed"], theirs.model.embed_tokens.weight.grad, atol=1e-5)
    q = theirs.model.layers[1].self_attn.q_proj.weight.grad.reshape(4, 6, 16).permute(2, 0, 1)
    np.testing.assert_allclose(got["layers"]["q"][1], q, atol=1e-5)
