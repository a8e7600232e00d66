"""The proof of an export: every number as it was, and the same log-probabilities on real text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.decoder import DTYPES, Decoder, DecoderConfig
from grpo_jax.models.logprobs import sequence_logprobs
from grpo_jax.sharding import batch_shards, host_to_global, named
from grpo_jax.types import Sequences

TOKENS, LENGTH, ROWS = 512, 128, 16  # of text that is compared; the most in a row; the most rows
CHUNK = 32  # time steps whose logits are in memory at once
PIECE = 2**22  # numbers that are digested at once
SEEDS = (np.uint32(0x9E3779B9), np.uint32(0x85EBCA6B))

PASSAGE = """\
Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did
Natalia sell altogether in April and May? Natalia sold 48/2 = 24 clips in May. Altogether she sold 48+24 = 72 clips.
Let $f(x) = x^2 - 5x + 6$. It factors as $(x - 2)(x - 3)$, so that $f(x) = 0$ exactly when $x = 2$ or $x = 3$. Between
the roots $f$ is negative, and its least value is $f(5/2) = -1/4$. Therefore the answer is \\boxed{-\\frac{1}{4}}.
Suppose that n is odd, n = 2k+1. Then n^2 = 4k^2+4k+1 = 4k(k+1)+1, and since k(k+1) is even, n^2 leaves 1 when it is
divided by 8. 12+7=19, 47+8-9=46, 3*17=51, 99-9-9=81, 144/12=12. def square(x): return x * x  # 1234567890
设 a 和 b 为正整数, 且 a + b = 10. 求 a b 的最大值. 当 a = b = 5 时, 最大值为 25.
"""
SENTENCE = "Natalia sold 48/2 = 24 clips, and 48 + 24 = 72."  # of the check that a user can make


class Text(NamedTuple):
    """Rows of text that two sets of weights are compared on."""

    rows: list[list[int]]  # the first is SENTENCE, and may be empty
    sentence: str  # what the tokenizer knows of it
    origin: str  # where the other rows are from, in words

    @property
    def tokens(self) -> int:
        """How many there are."""
        return sum(map(len, self.rows))


def make_text(texts: Sequence[str], origin: str, tokenizer: Any, longest: int) -> Text:
    """Rows of at most LENGTH tokens of these texts, or if there are none of a passage of mathematics.

    Characters that the tokenizer does not know are left out.
    """
    knows = known_characters([*texts, PASSAGE, SENTENCE], tokenizer)
    length = min(LENGTH, longest)

    def known(text: str) -> str:
        return "".join(c for c in text if c in knows)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(known(text), add_special_tokens=False)

    rows = [row[:length] for row in map(encode, texts) if len(row) > 1]
    if not rows:
        ids, origin = encode(PASSAGE), "a passage of mathematics"
        if len(ids) < 2:
            ids, origin = list(range(len(tokenizer))), "all tokens in a row, as it knows no mathematics"
        rows = [ids[start : start + length] for start in range(0, len(ids), length)]
    rows = rows[: max(1, min(ROWS, TOKENS // max(map(len, rows))))]
    return Text([encode(SENTENCE)[:length], *rows], known(SENTENCE), origin)


def known_characters(texts: Iterable[str], tokenizer: Any) -> set[str]:
    """The characters of the texts that the tokenizer can encode."""

    def knows(character: str) -> bool:
        try:
            ids = tokenizer.encode(character, add_special_tokens=False)
        except Exception:  # the Rust library raises bare exceptions
            return False
        return bool(ids) and tokenizer.unk_token_id not in ids

    return {character for character in set("".join(texts)) if knows(character)}


class Values(NamedTuple):
    """What a model says of a text: `log p(token | those before it)`, or the scores of the scalar head."""

    numbers: np.ndarray  # [rows, time] f32
    counted: np.ndarray  # [rows, time] bool: tokens that are scored

    def gap(self, other: Values) -> float:
        """The largest difference; NaN if either has one."""
        return float(np.abs(self.numbers - other.numbers)[self.counted].max(initial=0.0))

    @property
    def first(self) -> float:
        """The mean over the first row, of log-probabilities, or of the one score; NaN where it is empty."""
        counted = self.numbers[0][self.counted[0]]
        return float(counted.mean()) if counted.size else float("nan")


def evaluator(decoder: DecoderConfig, mesh: Mesh, text: Text) -> Callable[[Any], Values]:
    """`params -> Values` on the rows of a text, compiled once for all weights that are compared."""
    sequences = host_to_global(batch(text.rows, batch_shards(mesh)), named(mesh, "batch"))
    model = Decoder(decoder)
    scalar = decoder.head == "scalar"
    segments = np.asarray(batch(text.rows, 1).segments) > 0
    counted = segments.copy()
    if scalar:
        counted[:, :-1] &= ~segments[:, 1:]  # the last token's
    else:
        counted[:, 0] = False  # nothing stands before it

    @jax.jit
    def program(params: Any, sequences: Sequences) -> Array:
        if scalar:
            return model.apply({"params": params}, sequences)[0]
        return sequence_logprobs(model, params, sequences, chunk=CHUNK)[0]

    def values(params: Any) -> Values:
        with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
            return Values(np.asarray(program(params, sequences))[: len(text.rows)], counted)

    return values


def batch(rows: Sequence[Sequence[int]], shards: int) -> Sequences:
    """Right-padded rows, one segment each, and empty ones until `shards` divides them."""
    shape = (-(-len(rows) // shards) * shards, max(map(len, rows)))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)], segments[number, : len(row)] = row, 1
    positions = np.where(segments > 0, np.arange(shape[1], dtype=np.int32), 0).astype(np.int32)
    return Sequences(tokens, positions, segments)


def fingerprint(params: Any, dtype: str) -> dict[str, tuple[int, int]]:
    """64 bits of every parameter, its numbers rounded to this type: any changed or moved number changes them."""
    digests = jax.tree.map(partial(_digest, dtype=jnp.dtype(DTYPES[dtype])), params)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(digests))
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(map(int, leaf)) for path, leaf in leaves}


@partial(jax.jit, static_argnames="dtype")
def _digest(leaf: Array, *, dtype: jnp.dtype) -> Array:
    """Two sums, modulo 2^32, of a mix of each number's float32 bits and its place: no order of summation matters.

    Some rows at a time: it takes little memory.
    """
    rows, inner = leaf.shape[0], math.prod(leaf.shape[1:])
    block = min(max(PIECE // inner, 1), rows)
    if leaf.dtype == jnp.bfloat16:  # as integers: on the CPU a loop over bfloat16 is made one over float32
        leaf = jax.lax.bitcast_convert_type(leaf, jnp.uint16)

    def part(start: Array | int, size: int) -> Array:
        numbers = jax.lax.dynamic_slice_in_dim(leaf, start, size)
        if numbers.dtype == jnp.float32:
            numbers = jax.lax.bitcast_convert_type(numbers.astype(dtype), jnp.dtype(f"uint{8 * dtype.itemsize}"))
        bits = numbers if numbers.dtype == jnp.uint32 else numbers.astype(jnp.uint32) << 16
        place = jnp.zeros(bits.shape, jnp.uint32)
        for dimension, length in enumerate(bits.shape):
            place = place * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dimension)
        place += jnp.uint32(start) * np.uint32(inner % 2**32)
        return jnp.stack([jnp.sum(_mix(bits ^ _mix(place + seed)), dtype=jnp.uint32) for seed in SEEDS])

    whole = rows // block
    total = jax.lax.fori_loop(0, whole, lambda i, total: total + part(i * block, block), jnp.zeros(2, jnp.uint32))
    return total + part(whole * block, rows - whole * block) if rows % block else total


def _mix(x: Array) -> Array:
    """The last steps of MurmurHash3: every bit of the result depends on every bit of `x`, one to one."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The parameters whose fingerprints differ, or that one side lacks."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def differences(one: DecoderConfig, other: DecoderConfig) -> list[str]:
    """The fields in which two decoders differ, both values with each."""
    names = (field.name for field in dataclasses.fields(one))
    pairs = ((name, getattr(one, name), getattr(other, name)) for name in names)
    return [f"{name}: {a!r} became {b!r}" for name, a, b in pairs if a != b]
