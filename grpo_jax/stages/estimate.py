"""Temporaries by arithmetic: what more micro-batches, another remat or another mesh would change, without compiling.

A plan never prints these numbers. They choose what is compiled next: the ratio of what a compiler said to the estimate,
times the estimate of another setting, is a good guess of what the compiler will say there.
"""

from __future__ import annotations

from grpo_jax.models.attention import kernel_of, piece_of
from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.stages.footprints import Plant, Work

FLOAT = 4  # bytes


def estimated(plant: Plant, work: Work) -> float:
    """`temporaries` of a work on the devices of a plant."""
    platform = plant.mesh.devices.flat[0].platform
    return temporaries(plant.decoder, work, tensor=plant.mesh.shape["tensor"], platform=platform)


def temporaries(decoder: DecoderConfig, work: Work, *, tensor: int, platform: str) -> float:
    """Bytes on a device while it has this work in hand; heads, mlp and vocabulary are split over `tensor` devices.

    `platform` of the devices (cpu, gpu, tpu) decides which attention computes it, and so which scores are in memory.

    Sampling: keys and values, the prompt's pass, and a token's logits and scores. Scoring: one layer in hand, and the
    logits of a chunk. Training: both twice, what `remat` keeps of every layer, and gradients. A program that samples
    and then trains takes what the larger part does, which lies where the other lay.
    """
    c, w = decoder, work
    if w.sampled is not None:
        parts = (w.sampled, w._replace(sampled=None))
        return max(temporaries(c, part, tensor=tensor, platform=platform) for part in parts)
    read = layer(c, w.prompts, w.prompt_length, tensor)
    prompt_scores = scores(c, w.prompts, w.prompt_length, (0, w.prompt_length), tensor, platform)
    prompt = read + prompt_scores
    gathered = 2 * _layer_weights(c) * c.compute_dtype.itemsize / tensor
    if w.cache:
        decoded = layer(c, w.rows, 1, tensor) + scores(c, w.rows, 1, (w.prompt_length, w.length), tensor, platform)
        return w.cache + w.weights + max(prompt, decoded + 3 * logits(c, w.rows, tensor)) + gathered
    passed = layer(c, w.rows, w.length, tensor)
    own_scores = scores(c, w.rows, w.length, (w.prompt_length, w.length), tensor, platform)
    inside = prompt + passed + own_scores
    chunk = 2 * logits(c, w.rows * min(w.chunk, w.length), tensor)
    if not w.gradient:
        return inside + chunk + gathered
    tokens = w.rows * w.length + w.prompts * w.prompt_length
    of_passes = ((w.prompt_length, prompt_scores), (w.length, own_scores))
    stay = sum(x for time, x in of_passes if kernel_of(c, platform, time) == "xla")  # others are computed again
    whole = read + passed + stay
    kept = {"full": 0.0, "dots": tokens * _products(c, tensor), "none": whole}[c.remat]
    residual = tokens * c.hidden_size * c.compute_dtype.itemsize
    return c.num_layers * (residual + kept) + 2 * (inside + chunk + gathered) + w.gradients * w.gradient


def layer(decoder: DecoderConfig, rows: int, time: int, tensor: int) -> float:
    """Activations of one layer, without attention scores."""
    c = decoder
    return rows * time * (4 * c.hidden_size * c.compute_dtype.itemsize + _products(c, tensor))


def scores(decoder: DecoderConfig, rows: int, time: int, keys: tuple[int, int], tensor: int, platform: str) -> float:
    """Attention scores of one layer that are in memory at once, as its kernel computes them (`attention.py`).

    `keys` are those shared by a group and a row's own. Of all of both, of the own keys up to each piece (the CPU's
    compiler computes pieces side by side), or none: splash keeps its scores on the chip. One query is always plain.
    """
    c, kernel = decoder, "xla" if time == 1 else kernel_of(decoder, platform, time)
    pieces = -(-max(time, 1) // piece_of(time))
    shared, own = keys
    seen = {"xla": shared + own, "blocks": shared + own * (1 + 1 / pieces) / 2, "splash": 0}[kernel]
    return rows * time * seen * c.num_heads / tensor * (2 * FLOAT + c.compute_dtype.itemsize)


def logits(decoder: DecoderConfig, tokens: int, tensor: int) -> float:
    """Logits of some tokens in float32."""
    return tokens * decoder.vocab_size / tensor * FLOAT


def _products(c: DecoderConfig, tensor: int) -> float:
    """Bytes a token of what the matrix products of a layer return, attention's own left out."""
    experts = c.num_experts if c.experts_kernel == "dense" else c.experts_per_token
    mlp = 3 * c.mlp_size * max(experts, 1)
    heads = 2 * (c.num_heads + c.num_kv_heads) * c.head_dim
    return (heads + mlp) / tensor * c.compute_dtype.itemsize


def _layer_weights(c: DecoderConfig) -> int:
    """Numbers of one layer."""
    heads = 2 * (c.num_heads + c.num_kv_heads) * c.head_dim
    return c.hidden_size * (heads + 3 * c.mlp_size * max(c.num_experts, 1))
