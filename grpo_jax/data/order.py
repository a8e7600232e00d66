"""Which problems make up a batch: a pure function of (seed, step), so that nothing has to be saved to
resume."""

from __future__ import annotations

import functools

import numpy as np


class OrderError(ValueError):
    """There is nothing to draw from."""


def batch_indices(num_problems: int, batch: int, *, seed: int, step: int) -> np.ndarray:
    """Return the problems of a step: places step*batch .. step*batch+batch-1 in the endless row of shuffled
    epochs.

    Every epoch is a permutation of all problems; a batch may run over the border of two epochs, or hold
    several epochs where there are fewer problems than `batch`. Result [batch] i64. Raises `OrderError`
    without problems.
    """
    if num_problems < 1:
        raise OrderError("no problems to draw from: the source is empty, or every problem was left out")
    places = np.arange(step * batch, (step + 1) * batch)  # [batch]
    epochs, within = np.divmod(places, num_problems)
    result = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = permutation(num_problems, seed, int(epoch))[within[chosen]]
    return result


def distinct_indices(num_problems: int, batch: int, *, seed: int, step: int) -> np.ndarray:
    """Return the problems of a step, none of them twice: an epoch has as many whole batches as fit.

    What is left over at the end of a shuffled epoch waits for another. For sampling, where a problem that came twice
    would come with the same noise and the same completions. Result [batch] i64. Raises `OrderError` if there are
    fewer problems than `batch`.
    """
    if num_problems < batch:
        raise OrderError(f"{num_problems} problems do not fill a batch of {batch} without repeating one")
    epoch, place = divmod(step, num_problems // batch)
    return permutation(num_problems, seed, epoch)[place * batch : (place + 1) * batch]


def further_indices(num_problems: int, batch: int, *, seed: int, step: int, round: int) -> np.ndarray:
    """Return more problems for a step, none of them in its own batch or in another round: round 1, 2, ...

    For groups that have to be replaced. They are drawn from all problems but the step's own, in an order of the step's
    own, so that nothing has to be saved to resume; within an epoch a problem may then come more than once. Result
    [batch] i64. Raises `OrderError` if there are too few problems.
    """
    if num_problems < batch * (round + 1):
        raise OrderError(
            f"{num_problems} problems are too few for round {round} of {batch} more besides the first {batch}"
        )
    own = distinct_indices(num_problems, batch, seed=seed, step=step)
    stream = np.random.Philox(key=np.array([seed, step], np.uint64), counter=np.array([0, 0, 0, 1], np.uint64))
    order = np.argsort(stream.random_raw(num_problems), kind="stable")
    others = order[~np.isin(order, own)]
    return others[(round - 1) * batch : round * batch]


@functools.lru_cache(maxsize=4)
def permutation(num_problems: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch, [num_problems] i64: the argsort of a Philox stream with key (seed,
    epoch).

    Raw words of a bit generator never change between NumPy versions, which `Generator.permutation` may.
    """
    stream = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    order = np.argsort(stream.random_raw(num_problems), kind="stable")
    order.flags.writeable = False
    return order
