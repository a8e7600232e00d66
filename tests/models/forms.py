"""The forms in which sampler and trainer compute a model, over one batch of texts, for comparison with each other.

Two prompts with three completions each, of uneven lengths and padded, and the same texts as whole rows and as packed
segments.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from small_models import ragged

from grpo_jax.models.cache import empty_cache
from grpo_jax.models.logprobs import completion_logprobs, next_token_logits, sequence_logprobs
from grpo_jax.types import Prompts, Sequences

P, G, Tp, Tc = 2, 3, 21, 11
STARTS, LENGTHS = np.array([21, 9]), np.array([11, 1, 6, 8, 11, 3])  # tokens of each prompt and completion


def batch(vocab: int) -> tuple[Prompts, Sequences, Sequences]:
    """Prompts padded on the left, completions padded on the right, and both as whole rows."""
    rng = np.random.default_rng(0)
    prompts = ragged(rng.integers(0, vocab, (P, Tp)), STARTS, pad=5)
    completions = ragged(rng.integers(0, vocab, (P * G, Tc)), LENGTHS, pad=9, side="right")
    moved = jnp.where(completions.segments > 0, completions.positions + np.repeat(STARTS, G)[:, None], 0)
    completions = completions.replace(positions=moved)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, G, axis=0), prompts)
    whole = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), repeated, completions)
    return Prompts(prompts, jnp.arange(P)), completions, whole


def packed(whole: Sequences) -> Sequences:
    """The texts of whole rows as segments of two rows, one after the other, with padding at the end."""
    real = np.asarray(whole.segments) > 0
    rows = []
    for texts in np.split(np.arange(len(real)), 2):
        tokens = np.concatenate([np.asarray(whole.tokens)[row][real[row]] for row in texts])
        positions = np.concatenate([np.arange(real[row].sum()) for row in texts])
        segments = np.concatenate([np.full(real[row].sum(), number) for number, row in enumerate(texts, 1)])
        rows.append((tokens, positions, segments))
    time = max(len(tokens) for tokens, _, _ in rows) + 2
    stacked = [np.stack([np.pad(row[i], (0, time - len(row[i]))) for row in rows]) for i in range(3)]
    return Sequences(*(jnp.asarray(x, jnp.int32) for x in stacked))


def follows(sequences: Sequences) -> np.ndarray:
    """The tokens that have one before them in their segment: [B, T] bool."""
    return np.asarray((sequences.positions > 0) & (sequences.segments > 0))


def chosen(logits, tokens) -> np.ndarray:
    """`log p(tokens[t])` for t from 1, of logits [B, T, V]: [B, T-1]."""
    logp = jax.nn.log_softmax(logits)[:, :-1]
    return np.asarray(jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0])


@partial(jax.jit, static_argnums=0)
def plain(model, params, whole):
    """Logits of whole rows."""
    return next_token_logits(model, params, model.apply({"params": params}, whole)[0])


@partial(jax.jit, static_argnums=0)
def cached(model, params, whole):
    """Logits of whole rows, one token a step."""
    rows, time = whole.tokens.shape

    def step(cache, token):
        hidden, cache = model.apply({"params": params}, jax.tree.map(lambda x: x[:, None], token), cache=cache)
        return cache, hidden[:, 0]

    first = empty_cache(model.config, rows, time + 3)
    _, hidden = jax.lax.scan(step, first, jax.tree.map(lambda x: x.T, whole))
    return next_token_logits(model, params, jnp.moveaxis(hidden, 0, 1))


@partial(jax.jit, static_argnums=0)
def on_prefix(model, params, prompts, completions):
    """Log-probabilities of completions on shared prompts."""
    return completion_logprobs(model, params, prompts, completions, chunk=4)[0]


@partial(jax.jit, static_argnums=0)
def in_segments(model, params, sequences):
    """Log-probabilities of packed text."""
    return sequence_logprobs(model, params, sequences, chunk=16)[0]


@partial(jax.jit, static_argnums=0)
def scored_with_gradient(model, params, sequences):
    """Log-probabilities of packed text or whole rows, and the gradient of their mean (first tokens have none)."""

    def mean(params):
        logprobs = sequence_logprobs(model, params, sequences, chunk=16)[0]
        scored = (sequences.segments > 0) & (sequences.positions > 0)
        return jnp.sum(logprobs) / jnp.sum(scored), logprobs

    gradient, logprobs = jax.grad(mean, has_aux=True)(params)
    return logprobs, gradient


def largest(got, expected, where=None) -> float:
    """The largest difference, of the entries `where`."""
    difference = np.abs(np.asarray(got) - np.asarray(expected))
    return float(difference.max() if where is None else difference[where].max())
