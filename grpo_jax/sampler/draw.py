"""One token from a row of logits: exact, cheap, and with noise that belongs to the row alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.sampler.filters import min_p, top_k, top_p

if TYPE_CHECKING:
    from grpo_jax.config import SamplingConfig

# Tokens a block of the two-level inverse distribution function; a power of two near the root of large vocabularies.
BLOCK = 256


class Distribution(NamedTuple):
    """How logits become the distribution that is sampled from; static."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def full_support(self) -> bool:
        """Whether every token may be drawn, so that the trainer scores the distribution sampled from."""
        return self.temperature > 0 and self.top_k == 0 and self.top_p >= 1.0 and self.min_p <= 0.0


def distribution_of(c: SamplingConfig) -> Distribution:
    """The distribution that the settings of a section ask for."""
    return Distribution(c.temperature, c.top_k, c.top_p, c.min_p)


def row_keys(key: Array, index: Array, num_generations: int) -> Array:
    """One key a row: a function of the step's key, the problem's index and g, and of nothing else.

    index [P] -> keys [B]. Neither batch layout nor devices enter, so a prompt has the same noise in any company.
    """
    prompt_keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)  # [P]
    each = jax.vmap(lambda k: jax.vmap(lambda g: jax.random.fold_in(k, g))(jnp.arange(num_generations)))
    return each(prompt_keys).reshape(-1)  # [B]


def draw(logits: Array, keys: Array, t: Array, distribution: Distribution) -> tuple[Array, Array]:
    """A token from each row and its log-probability under the distribution really sampled from.

    logits [B, V] f32, keys [B], t [B] the tokens' indices -> tokens [B] i32, logprobs [B] f32.
    Temperature 0 takes the likeliest token (the first of equals), whose probability is then 1.
    """
    if distribution.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32), jnp.zeros(logits.shape[:1], jnp.float32)
    logits = logits.astype(jnp.float32) / distribution.temperature
    logits = top_k(logits, distribution.top_k)
    logits = top_p(logits, distribution.top_p)
    logits = min_p(logits, distribution.min_p)
    logsumexp = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    uniform = jax.vmap(lambda k, t: jax.random.uniform(jax.random.fold_in(k, t)))(keys, t)  # [B]
    tokens = inverse_cdf(jnp.exp(logits - logsumexp), uniform)
    return tokens, jnp.take_along_axis(logits, tokens[:, None], -1)[:, 0] - logsumexp[:, 0]


def inverse_cdf(probabilities: Array, uniform: Array) -> Array:
    """The token whose interval of the distribution function holds a uniform number: first v with `F(v) > u F(V)`.

    probabilities [B, V] (need not sum to 1), uniform [B] in [0, 1) -> tokens [B] i32. Two levels: the block, then the
    token within it, so that no running sum is longer than V / BLOCK or BLOCK. A token of probability 0 has an empty
    interval and is never drawn. One uniform number a row, where Gumbel noise takes V of them.
    """
    B, V = probabilities.shape
    blocks = jnp.pad(probabilities, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)  # [B, V/BLOCK, BLOCK]
    mass = blocks.sum(-1)  # [B, V/BLOCK]
    upto = jnp.cumsum(mass, -1)
    target = uniform[:, None] * upto[:, -1:]  # [B, 1]
    block = _first_above(upto, target, mass)  # [B]
    before = jnp.take_along_axis(upto - mass, block[:, None], -1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]  # [B, BLOCK]
    within = jnp.cumsum(inside, -1)
    # Scaled to the block's own last sum, so that rounding between the two levels cannot step out of the block.
    share = jnp.clip((target - before) / jnp.take_along_axis(mass, block[:, None], -1), 0.0, 1.0 - 2.0**-24)
    return (block * BLOCK + _first_above(within, share * within[:, -1:], inside)).astype(jnp.int32)


def _first_above(upto: Array, target: Array, mass: Array) -> Array:
    above = (upto > target) & (mass > 0)
    # Where rounding leaves none above, the last entry with any mass.
    last = mass.shape[-1] - 1 - jnp.argmax(jnp.flip(mass > 0, -1), -1)
    return jnp.where(above.any(-1), jnp.argmax(above, -1), last)
