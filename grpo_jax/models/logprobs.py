"""Log-probabilities of given tokens, without ever holding the logits of all of them.

The one shift of the system is here: index t of every result describes token t, which the hidden state before
it predicts. Logits live for `chunk` time steps at once and are computed again in the backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, empty_cache
from grpo_jax.models.ops import softcap
from grpo_jax.models.quantize import SCALES
from grpo_jax.sharding import constrain
from grpo_jax.types import Prompts, Sequences

if TYPE_CHECKING:
    from grpo_jax.models.decoder import Decoder


def next_token_logits(model: Decoder, params: Any, hidden: Array) -> Array:
    """Logits of the next token, untempered and capped where the family does: hidden [..., D] -> [..., V] f32.

    The product runs in the type of `hidden` and is summed in float32.
    """
    head = params["embed"].T if model.config.tie_word_embeddings else params["head"]  # [D, V]
    logits = jnp.einsum("...d,dv->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if SCALES in params:  # of integers (`quantize.py`), one a row of the vocabulary
        (scale,) = params[SCALES].values()
        logits = logits * scale
    logits = softcap(logits, model.config.logit_softcap)
    return constrain(logits, "batch", *(None,) * (logits.ndim - 2), "vocab")


def completion_logprobs(
    model: Decoder,
    params: Any,
    prompts: Prompts,
    completions: Sequences,
    *,
    temperature: float = 1.0,
    chunk: int,
    entropy_gradient: bool = False,
) -> tuple[Array, Array]:
    """Log-probability and entropy of each completion token: two arrays [B, Tc] f32, 0 at padding.

    `log softmax(logits / temperature)[token]`; temperature 0 (greedy) is scored at 1. A group's prompt is
    computed once, and gradients flow through its keys and values. The entropy (nats, of the tempered
    distribution) carries no gradient unless `entropy_gradient`. `chunk` is the number of time steps whose
    logits exist at once; it does not change the result.
    """
    last, prefix = prefill(model, params, prompts)
    last = jnp.repeat(last, completions.tokens.shape[0] // last.shape[0], axis=0)
    scoring = {"temperature": temperature, "chunk": chunk, "entropy_gradient": entropy_gradient}
    return continued_logprobs(model, params, last, prefix, completions, **scoring)


def prefill(model: Decoder, params: Any, prompts: Prompts) -> tuple[Array, Cache]:
    """What completions need of their prompts: the last hidden state [P, D], and all keys and values."""
    rows, time = prompts.sequences.tokens.shape
    hidden, cache = model.apply(
        {"params": params}, prompts.sequences, cache=empty_cache(model.config, rows, time)
    )  # [P, Tp, D]
    return hidden[:, -1], cache


def continued_logprobs(
    model: Decoder,
    params: Any,
    last: Array,
    prefix: Cache,
    completions: Sequences,
    *,
    temperature: float = 1.0,
    chunk: int,
    entropy_gradient: bool = False,
) -> tuple[Array, Array]:
    """`completion_logprobs` of completions whose prompts were computed before (`prefill`).

    last [B, D] is the hidden state before each completion; `prefix` has a row for each of them or for each group.
    """
    hidden, _ = model.apply({"params": params}, completions, prefix=prefix)  # [B, Tc, D]
    before = jnp.concatenate([last[:, None], hidden[:, :-1]], axis=1)  # [B, Tc, D]
    chosen = completions.segments > 0
    return _score(model, params, before, completions.tokens, chosen, temperature, chunk, entropy_gradient)


def sequence_logprobs(model: Decoder, params: Any, sequences: Sequences, *, chunk: int) -> tuple[Array, Array]:
    """Log-probability and entropy of each token of packed text given its segment: two arrays [B, T] f32.

    The first token of each segment has nothing before it and gives 0, as does padding. `chunk` as in
    `completion_logprobs`.
    """
    hidden, _ = model.apply({"params": params}, sequences)  # [B, T, D]
    segments = sequences.segments
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)  # [B, T-1]
    scored = _score(model, params, hidden[:, :-1], sequences.tokens[:, 1:], follows, 1.0, chunk)
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (1, 0))), scored)


def _score(
    model, params, hidden, tokens, mask, temperature: float, chunk: int, entropy_gradient: bool = False
) -> tuple[Array, Array]:
    """Log-probability and entropy of `tokens` [B, T] predicted by `hidden` [B, T, D], 0 off `mask`."""
    rows, time = tokens.shape
    chunk = max(min(chunk, time), 1)
    temperature = temperature or 1.0

    def chunks(x: Array) -> Array:
        """[B, T, ...] -> [T/chunk, B, chunk, ...], padded at the end to a whole number of chunks."""
        x = jnp.pad(x, ((0, 0), (0, -time % chunk)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)

    def step(_, inputs):
        hidden, tokens = inputs  # [B, chunk, D], [B, chunk]
        logits = next_token_logits(model, params, hidden.reshape(-1, hidden.shape[-1]))  # [B*chunk, V], one product
        return None, jax.tree.map(
            lambda x: x.reshape(tokens.shape),
            token_scores(logits / temperature, tokens.reshape(-1), entropy_gradient=entropy_gradient),
        )

    if chunk == time:  # all logits exist at once: to compute them again in the backward pass would save nothing
        return jax.tree.map(lambda x: jnp.where(mask, x, 0.0), step(None, (hidden, tokens))[1])
    _, scored = jax.lax.scan(jax.checkpoint(step), None, (chunks(hidden), chunks(tokens)))

    def whole(x: Array) -> Array:
        """The inverse of `chunks`, masked."""
        return jnp.where(mask, jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :time], 0.0)

    return jax.tree.map(whole, scored)


def token_scores(logits: Array, tokens: Array, *, entropy_gradient: bool = False) -> tuple[Array, Array]:
    """`logits[token] - logsumexp(logits)`, and the entropy `logsumexp(logits) - sum(p logits)`.

    The entropy has a gradient only if asked for: it then takes another array of the size of the logits.

    logits [..., V] f32, tokens [...] -> two arrays [...] f32. The token is found by comparison and not by a
    gather: a vocabulary that is split over devices then needs a sum of scalars only.
    """
    total = jax.scipy.special.logsumexp(logits, axis=-1)
    ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.sum(jnp.where(ids == tokens[..., None], logits, 0.0), axis=-1)
    fixed, fixed_total = (logits, total) if entropy_gradient else jax.lax.stop_gradient((logits, total))
    entropy = fixed_total - jnp.sum(jnp.exp(fixed - fixed_total[..., None]) * fixed, axis=-1)
    return chosen - total, entropy
