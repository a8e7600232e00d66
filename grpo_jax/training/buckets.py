"""Rows sorted by length, in micro-batches that are computed only as far as their longest row reaches.

The times to which a micro-batch may be cut are few and static, so one program holds them all and chooses by the
lengths on the device. Rows are sorted within each batch shard: none leaves its device. What a row gives does not
depend on its neighbours, so sums over rows are those of the batch in its own order, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.cache import Cache, of_rows
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logprobs import continued_logprobs, prefill
from grpo_jax.sharding import constrain, shards_in_context
from grpo_jax.training.statistics import merge_statistics
from grpo_jax.types import Experience, Rollout


class Sorting(NamedTuple):
    """An order of a batch's rows in micro-batches; rows and prompts are counted within their batch shard."""

    order: Array  # [B] i32, the row that stands at each place
    prompts: Array  # [M, B/M] i32, the prompt that each row continues
    lengths: Array  # [M, B/M] i32, tokens of each row
    times: tuple[int, ...]  # that micro-batches are cut to (`ladder`); static


def ladder(longest: int, buckets: int) -> tuple[int, ...]:
    """The times that micro-batches are cut to: 0 for rows without tokens, then equal steps up to the longest.

    Equal steps pad less than steps of a constant ratio for as many programs, uniform and long-tailed lengths alike.
    """
    return (0, *sorted({-(-longest * k // buckets) for k in range(1, buckets + 1)}))


def row_lengths(mask: Array) -> Array:
    """Tokens of each row up to the last that counts, 0 where none does: mask [B, Tc] -> [B] i32."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[1] + 1, dtype=jnp.int32), 0), axis=1)


def sort_rows(mask: Array, *, prompts: int, microbatches: int, buckets: int, rows: int = 1) -> Sorting:
    """Sort rows of a mask [B, Tc] by length, the longest first; each `rows` neighbours stay together, in order."""
    shards, (B, time), lengths = shards_in_context(), mask.shape, row_lengths(mask)
    own, G = B // shards, B // prompts
    units = lengths.reshape(shards, own // rows, rows).max(-1)  # [shards, units]
    first = jnp.argsort(-units, axis=1, stable=True) * rows
    order = (first[:, :, None] + jnp.arange(rows)).reshape(B).astype(jnp.int32)
    of_places = jax.tree.map(
        lambda x: cut(of_rows(x, order), microbatches), (jnp.tile(jnp.arange(own), shards) // G, lengths)
    )
    return Sorting(order, *of_places, ladder(time, buckets))


def cut(x: Array, microbatches: int) -> Array:
    """Rows in order [B, ...] -> [M, B/M, ...], of each batch shard equally many; `join` undoes it."""
    shards = shards_in_context()
    x = jnp.swapaxes(x.reshape(shards, microbatches, -1, *x.shape[1:]), 0, 1)  # [M, shards, B/(M*shards), ...]
    return x.reshape(microbatches, -1, *x.shape[3:])


def join(x: Array) -> Array:
    """[M, B/M, ...] -> rows in order [B, ...]."""
    x = jnp.swapaxes(x.reshape(x.shape[0], shards_in_context(), -1, *x.shape[2:]), 0, 1)
    return x.reshape(-1, *x.shape[3:])


def sorted_parts(tree: Any, sorting: Sorting) -> Any:
    """The rows of arrays [B, ...] in micro-batches [M, B/M, ...], as they were sorted."""
    return jax.tree.map(lambda x: cut(of_rows(x, sorting.order), sorting.lengths.shape[0]), tree)


def unsorted(parts: Array, sorting: Sorting) -> Array:
    """Undo `sorted_parts`: [M, B/M, ...] -> [B, ...] in the batch's order."""
    order = sorting.order.reshape(shards_in_context(), -1)
    return of_rows(join(parts), jnp.argsort(order, axis=1).reshape(-1).astype(jnp.int32))


def over_buckets(
    run: Callable[[int, Any], Any],
    fold: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    parts: Any,
    sorting: Sorting,
) -> tuple[Any, Any, Array]:
    """`run(time, part)` of each micro-batch at the shortest of the sorting's times that holds its rows, then `fold`.

    `time` is static, and is the longest of all shards where there are more; a micro-batch without tokens is not run,
    and gives zeros. `fold(carry, what run gave) -> carry, result` is a scan's; it stands outside of the choice, where
    what is carried is updated in place. -> carry, results, and the share of the computed tokens that is padding.
    """
    times = jnp.array(sorting.times)
    choice = jnp.searchsorted(times, sorting.lengths.max(axis=1))  # [M]
    given = jax.eval_shape(partial(run, sorting.times[1]), jax.tree.map(lambda x: x[0], parts))

    def nothing(part: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), given)

    branches = [nothing, *(partial(run, time) for time in sorting.times[1:])]

    def step(carry: Any, inputs: tuple[Array, Any]) -> tuple[Any, Any]:
        return fold(carry, jax.lax.switch(inputs[0], branches, inputs[1]))

    carry, results = jax.lax.scan(step, start, (choice, parts))
    return carry, results, padding_share(sorting.lengths, times[choice].sum() * sorting.lengths.shape[1])


def padding_share(lengths: Array, computed: Array | int) -> Array:
    """The share of `computed` completion tokens that belongs to no row: [] f32."""
    return 1.0 - lengths.sum() / jnp.maximum(computed, 1).astype(jnp.float32)


def shorten(tree: Any, time: int) -> Any:
    """Arrays by token [rows, Tc] cut to so much time; arrays by row stay."""
    return jax.tree.map(lambda x: constrain(x[:, :time], "batch", None) if x.ndim > 1 else x, tree)


def sorted_logprobs(
    params: Any, rollout: Rollout, *, model: Decoder, microbatches: int, buckets: int, **scoring: Any
) -> Array:
    """Log-probabilities [B, Tc] of a rollout by micro-batches of rows of like length; the prompts are computed once.

    `scoring` are the other options of `continued_logprobs`.
    """
    P, time = rollout.prompts.index.shape[0], rollout.completion_mask.shape[1]
    last, prefix = prefill(model, params, rollout.prompts)
    sorting = sort_rows(rollout.completion_mask, prompts=P, microbatches=microbatches, buckets=buckets)

    def run(cut_to: int, part: Any) -> Array:
        (completions, mask), rows = part
        completions, mask = shorten((completions, mask), cut_to)
        logprobs, _ = continued_logprobs(
            model, params, of_rows(last, rows), prefix.replace(rows=rows), completions, **scoring
        )
        return jnp.pad(jnp.where(mask, logprobs, 0.0), ((0, 0), (0, time - cut_to)))

    parts = sorted_parts((rollout.completions, rollout.completion_mask), sorting), sorting.prompts
    _, logprobs, _ = over_buckets(run, lambda _, logprobs: (None, logprobs), None, parts, sorting)
    return unsorted(logprobs, sorting)


def sorted_gradient(
    prompt_pass: Callable[[Any], tuple[Array, Cache]],
    loss_of: Callable[[Any, tuple[Array, Cache], Experience, Array], tuple[Array, Any]],
    params: Any,
    experience: Experience,
    sorting: Sorting,
) -> tuple[Any, Array, Any, Array]:
    """The gradient, the loss, the statistics and the share of padding, by micro-batches of rows of like length.

    `prompt_pass(params)` is a prefill of all prompts, `loss_of(params, prefill, rows, prompt of each row)` the loss of
    some rows and its statistics. The prompts are computed once: micro-batches sum up the gradient of their keys, values
    and last hidden states in float32, and one backward pass takes it on to the parameters.
    """
    batch = experience.replace(prompts=None)

    def prompt_arrays(params: Any) -> tuple[Any, Cache]:
        last, cache = prompt_pass(params)
        return (last, cache.k, cache.v), cache.replace(k=None, v=None)

    arrays, pull, about = jax.vjp(prompt_arrays, params, has_aux=True)

    def loss(params: Any, arrays: Any, rows: Experience, at: Array) -> tuple[Array, Any]:
        last, k, v = arrays
        return loss_of(params, (last, about.replace(k=k, v=v)), rows, at)

    def run(time: int, part: Any) -> tuple[Any, Any]:
        rows, at = part
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, arrays, shorten(rows, time), at)

    def fold(carry: Any, given: Any) -> tuple[Any, None]:
        (total, statistics), grads = carry
        (part, more), more_grads = given
        grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, more_grads)
        return ((total + part, merge_statistics(statistics, more)), grads), None

    parts = sorted_parts(batch, sorting), sorting.prompts
    shapes, _ = jax.eval_shape(partial(run, sorting.times[1]), jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=jnp.float32), arrays)
    start = zeros, (jax.tree.map(jnp.zeros_like, params), sums)
    ((total, statistics), (grads, sums)), _, padding = over_buckets(run, fold, start, parts, sorting)
    (of_prompts,) = pull(jax.tree.map(lambda a, b: a.astype(b.dtype), sums, arrays))
    return jax.tree.map(jnp.add, grads, of_prompts), total, statistics, padding
