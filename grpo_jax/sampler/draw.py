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
NUMBERS = 2**31 - 1  # that tokens share: what an i32 holds


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
    bits = jax.vmap(lambda k, t: jax.random.bits(jax.random.fold_in(k, t), dtype=jnp.uint32))(keys, t)  # [B]
    tokens = inverse_cdf(jnp.exp(logits - logsumexp), bits)
    return tokens, jnp.take_along_axis(logits, tokens[:, None], -1)[:, 0] - logsumexp[:, 0]


def inverse_cdf(probabilities: Array, bits: Array) -> Array:
    """The token whose interval of the distribution function holds a random number: first v with `F(v) > u F(V)`.

    probabilities [B, V] (need not sum to 1), bits [B] u32, `u = bits / 2^32` -> tokens [B] i32. Two levels: the block,
    then the token within it, so that no running sum is longer than V / BLOCK or BLOCK. One random number a row, where
    Gumbel noise takes V of them.

    `F` is counted in integers, of which the blocks share 2^31 and the tokens of a block its own, refined to as many:
    near 1 a float32 sum moves in steps of 6e-8, which is more than most tokens of a large vocabulary have. A token of
    probability p is drawn for `2^31 p` of the 2^31 numbers, give or take one or two and a part in 10^6 of its block's
    rounding, so that its frequency is p where p is well above 2^-31 = 5e-10; roundings go up and down, so that a tail
    has its whole mass. Lighter tokens are drawn in each other's stead within their block, and a block below 2^-32 is
    never drawn, nor a token of probability 0.
    """
    B, V = probabilities.shape
    blocks = jnp.pad(probabilities, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)  # [B, V/BLOCK, BLOCK]
    number = (bits >> 1).astype(jnp.int32)
    block, rest, size = _shared_out(blocks.sum(-1), number, jnp.full_like(number, NUMBERS))
    inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]  # [B, BLOCK]
    finer = jax.lax.clz(size) - 1  # as many binary places as integers have left
    return block * BLOCK + _shared_out(inside, rest << finer, size << finer)[0]


def _shared_out(mass: Array, number: Array, size: Array) -> tuple[Array, Array, Array]:
    """Of entries that share the numbers below `size` by their mass, the one that `number` falls to.

    mass [B, N] f32, number and size [B] i32 -> the entry [B], the number counted from the entry's first, and how many
    numbers the entry has. Entries get whole numbers, rounded, of a little less than `size`: neither the rounding of N
    shares nor that of the float32 sum, N 2^-24 of it at most, must lead beyond what an i32 holds. `number` is moved by
    what their sum differs from `size`.
    """
    shares = mass / mass.sum(-1, keepdims=True) * (size * jnp.float32(1 - 2.0**-12))[:, None]
    shares = jnp.round(shares).astype(jnp.int32)
    upto = jnp.cumsum(shares, -1)  # exact
    last = upto[:, -1]
    number = number + jnp.floor(number / size.astype(jnp.float32) * (last - size)).astype(jnp.int32)
    number = jnp.clip(number, 0, last - 1)
    entry = jnp.argmax(upto > number[:, None], -1).astype(jnp.int32)  # the first; never one without a share
    mine, until = (jnp.take_along_axis(x, entry[:, None], -1)[:, 0] for x in (shares, upto))
    return entry, number - (until - mine), mine
