"""A small model and ragged batches for the tests of this folder."""

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.parameters import abstract_params
from grpo_jax.models.rope import Rope
from grpo_jax.types import Sequences

TINY = DecoderConfig(
    family="qwen2",
    vocab_size=34,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_size=20,
    rope=Rope(rope_theta=300.0),
    qkv_bias=True,
)


def randomized(config, mesh, seed=0, deviation=0.2):
    """Parameters whose every number matters: biases are not 0, norms not 1, matrices not tiny."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        is_norm = "norm" in path[-1].key
        numbers = (0.2 if is_norm else deviation) * rng.normal(size=leaf.shape)
        numbers += 1.0 - config.norm_offset if is_norm else 0.0
        return jax.device_put(numbers.astype(np.float32), leaf.sharding)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config, mesh))


def ragged(tokens, lengths, pad=0, side="left"):
    """Rows of these lengths padded on one side."""
    time = tokens.shape[1]
    place = np.arange(time)[None]
    lengths = np.asarray(lengths)[:, None]
    real = place >= time - lengths if side == "left" else place < lengths
    positions = np.where(real, place - (time - lengths if side == "left" else 0), 0)
    return Sequences(
        tokens=jnp.asarray(np.where(real, tokens, pad), jnp.int32),
        positions=jnp.asarray(positions, jnp.int32),
        segments=jnp.asarray(real, jnp.int32),
    )
