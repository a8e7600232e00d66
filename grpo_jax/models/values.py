"""The value of each token's state: what a scalar decoder says before the token is chosen.

Index t of every result describes the state that token t is chosen in, as log-probabilities do: the value of completion
token 0 is read at the prompt's last token.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import empty_cache
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.parameters import parameter_table
from grpo_jax.types import Prompts, Sequences


def value_model(policy: DecoderConfig) -> Decoder:
    """The value model of a policy: its shape with a head of one number."""
    return Decoder(dataclasses.replace(policy, head="scalar", lora=None))


def completion_values(model: Decoder, params: Any, prompts: Prompts, completions: Sequences) -> Array:
    """The value before each completion token: [B, Tc] f32, 0 at padding; a group's prompt [P, Tp] is computed once."""
    rows, time = prompts.sequences.tokens.shape
    before, prefix = model.apply({"params": params}, prompts.sequences, cache=empty_cache(model.config, rows, time))
    after, _ = model.apply({"params": params}, completions, prefix=prefix)  # [B, Tc]
    last = jnp.repeat(before[:, -1], completions.tokens.shape[0] // rows)  # [B]
    values = jnp.concatenate([last[:, None], after[:, :-1]], axis=1)
    return jnp.where(completions.segments > 0, values, 0.0)


def value_params(policy: Any, config: DecoderConfig) -> Any:
    """Parameters of a value model on a policy's trunk: copies of its weights, and a head of zeros, so that V = 0."""
    table = parameter_table(config)
    trunk = {name: jax.tree.map(lambda p: p + 0, policy[name]) for name in table if name != "score"}
    return trunk | {"score": jnp.zeros(table["score"].shape, jnp.float32)}
