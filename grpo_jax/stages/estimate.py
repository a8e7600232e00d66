"""Temporaries by arithmetic: what more micro-batches, another remat or another mesh would change, without compiling.

A plan never prints these numbers. They choose what is compiled next: the ratio of what a compiler said to the estimate,
times the estimate of another setting, is a good guess of what the compiler will say there.
"""

from __future__ import annotations

from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.stages.footprints import Work

FLOAT = 4  # bytes


def temporaries(decoder: DecoderConfig, work: Work, *, tensor: int) -> float:
    """Bytes on a device while it has this work in hand; heads, mlp and vocabulary are split over `tensor` devices.

    Sampling: keys and values, the prompt's pass, and a token's logits and scores. Scoring: one layer in hand, and the
    logits of a chunk. Training: both twice, what `remat` keeps of every layer, and gradients. A program that samples
    and then trains takes what the larger part does, which lies where the other lay.
    """
    c, w = decoder, work
    if w.sampled is not None:
        parts = (w.sampled, w._replace(sampled=None))
        return max(temporaries(c, part, tensor=tensor) for part in parts)
    prompt = layer(c, w.prompts, w.prompt_length, w.prompt_length, tensor)
    gathered = 2 * _layer_weights(c) * c.compute_dtype.itemsize / tensor
    if w.cache:
        decoded = layer(c, w.rows, 1, w.prompt_length + w.length, tensor)
        return w.cache + w.weights + max(prompt, decoded + 3 * logits(c, w.rows, tensor)) + gathered
    inside = prompt + layer(c, w.rows, w.length, w.prompt_length + w.length, tensor)
    chunk = 2 * logits(c, w.rows * min(w.chunk, w.length), tensor)
    if not w.gradient:
        return inside + chunk + gathered
    tokens = w.rows * w.length + w.prompts * w.prompt_length
    kept = {"full": 0.0, "dots": tokens * _products(c, tensor), "none": inside}[c.remat]
    residual = tokens * c.hidden_size * c.compute_dtype.itemsize
    return c.num_layers * (residual + kept) + 2 * (inside + chunk + gathered) + w.gradients * w.gradient


def layer(decoder: DecoderConfig, rows: int, time: int, keys: int, tensor: int) -> float:
    """Activations and attention scores of one layer."""
    c = decoder
    wide = 4 * c.hidden_size * c.compute_dtype.itemsize
    scores = c.num_heads / tensor * keys * (2 * FLOAT + c.compute_dtype.itemsize)
    return rows * time * (wide + _products(c, tensor) + scores)


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
