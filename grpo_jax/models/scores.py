"""One number a token from a decoder: of its scalar head, or of two tokens of the vocabulary that mean good and bad.

Index t of every result describes the text up to and including token t: it is read from the state after that token.
The number is a logit; the sigmoid of it is the probability that the text so far is good.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.cache import empty_cache
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.ops import softcap
from grpo_jax.models.parameters import init_table, parameter_table
from grpo_jax.types import Prompts, Sequences

Candidates = tuple[int, int]
"""The ids of the tokens that mean good and bad."""


def sequence_scores(
    model: Decoder, params: Any, sequences: Sequences, *, candidates: Candidates | None = None
) -> Array:
    """The score of each token of packed text given its segment: [B, T] f32; with `candidates` from the lm head."""
    out, _ = model.apply({"params": params}, sequences)
    return out if candidates is None else candidate_margin(model.config, params, out, candidates)


def completion_scores(
    model: Decoder, params: Any, prompts: Prompts, completions: Sequences, *, candidates: Candidates | None = None
) -> Array:
    """The score of each completion token: [B, Tc] f32; a group's prompt [P, Tp] is computed once."""
    rows, time = prompts.sequences.tokens.shape
    _, prefix = model.apply({"params": params}, prompts.sequences, cache=empty_cache(model.config, rows, time))
    out, _ = model.apply({"params": params}, completions, prefix=prefix)
    return out if candidates is None else candidate_margin(model.config, params, out, candidates)


def candidate_margin(config: DecoderConfig, params: Any, hidden: Array, candidates: Candidates) -> Array:
    """`logit(good) - logit(bad)` of the next token: hidden [..., D] -> [...] f32.

    Its sigmoid is the softmax over the two tokens alone, Math-Shepherd's step score (arXiv:2312.08935, their release).
    """
    ids = jnp.array(candidates)
    head = params["embed"][ids].T if config.tie_word_embeddings else params["head"][:, ids]  # [D, 2]
    logits = jnp.einsum("...d,dc->...c", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    logits = softcap(logits, config.logit_softcap)
    return logits[..., 0] - logits[..., 1]


def with_score_head(params: Any, config: DecoderConfig, key: Array, mesh: Mesh) -> Any:
    """Parameters of a scalar model on the trunk of a language model: copies of its weights, and a new score head.

    `config` is the scalar model's; the language model's head has no place in it.
    """
    table = parameter_table(config)
    score = init_table({"score": table["score"]}, key, mesh)
    trunk = {name: params[name] for name in table if name != "score"}
    return jax.jit(lambda trunk: jax.tree.map(lambda p: p + 0, trunk))(trunk) | score
