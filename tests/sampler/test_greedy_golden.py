"""Greedy completions equal those of transformers' `generate` on the same weights (tests/golden)."""

from pathlib import Path

import jax
import numpy as np
import pytest

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.hf import load_params, read_config
from grpo_jax.sampler.draw import Distribution
from grpo_jax.sampler.sample import Sampling, sample
from grpo_jax.types import Prompts, Sequences
from tests import tiny

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
EOS, PAD = (29, 5), 0


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_greedy_is_transformers_greedy(family):
    arrays = np.load(GOLDEN / "models_logits.npz")
    tokens, mask, expected = (arrays[f"{family}_{name}"] for name in ("tokens", "mask", "greedy"))
    model = Decoder(read_config(GOLDEN / f"models_{family}"))
    params = load_params(GOLDEN / f"models_{family}", model.config, tiny.mesh_of())
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    prompts = Prompts(Sequences(tokens, positions, mask.astype(np.int32)), np.arange(len(tokens), dtype=np.int32))
    settings = Sampling(Distribution(temperature=0.0), 1, expected.shape[1], EOS, PAD)
    rollout = jax.jit(lambda p, b: sample(model, p, b, jax.random.key(0), sampling=settings))(params, prompts)
    np.testing.assert_array_equal(rollout.completions.tokens, expected)
    ended = np.isin(expected, EOS).any(-1)
    np.testing.assert_array_equal(rollout.finished, ended)
    assert ended.any() and not ended.all(), "both ends should occur, or the test shows less than it says"
