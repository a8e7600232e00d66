"""Settings that several methods share, and what they mean as functions.

Imports nothing heavy: the files of the methods take their `Config` from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from grpo_jax.config import NonNegative, config

if TYPE_CHECKING:
    from jax import Array

AboveOne = Annotated[float, pydantic.Field(gt=1.0)]


class AlgorithmError(ValueError):
    """Settings of a method that contradict one another, or what it is meant for."""

    exit_code = 2


@config
class Penalty:
    """How far the policy may go from the reference."""

    beta: NonNegative = 0.04
    """Coefficient of the KL penalty to the reference (paper 0.04; TRL 0.0; 0: no reference is kept)."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimate of the divergence: log-ratio, its square over 2, or the paper's (TRL k3; verl k3; Tunix k1)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where it is subtracted: from each token's objective, or summed over tokens from the completion's reward."""
    force_k1_loss: bool = False
    """Take k1 in the loss although its gradient carries no information."""


@config
class Clip:
    """How far the ratio may go from 1."""

    epsilon: NonNegative = 0.2
    """How far below 1 the ratio may fall before clipping, and above 1 unless epsilon_high is given."""
    epsilon_high: NonNegative | None = None
    """How far above 1 the ratio may rise; None: as epsilon."""
    delta: AboveOne | None = None
    """The most that the ratio counts where the advantage is negative (dual clip; verl 3.0, TRL none)."""


@config
class Scale:
    """What a centred reward is divided by."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """The deviation of its group (the paper), that of all rewards of the batch, or nothing."""


def penalty(c: Penalty) -> dict[str, Any]:
    """The KL penalty as arguments of an objective: {} where it is not in the loss.

    Raises `AlgorithmError` for k1 in the loss unless it is forced.
    """
    from grpo_jax.algorithms.objectives import KL

    if not c.beta or c.kl_in == "reward":
        return {}
    if c.kl == "k1" and not c.force_k1_loss:
        raise AlgorithmError(
            "rl.algorithm: kl k1 with kl_in loss: the gradient of k1 = logp - ref is that of logp alone, whose mean "
            "over the policy's own samples is 0 whatever the reference: it adds noise and holds nothing back. Take k3 "
            "or k2, or kl_in reward; force_k1_loss true takes it all the same"
        )
    return {"beta": c.beta, "kl": KL[c.kl]}


def in_reward(c: Penalty) -> Callable[[Array, Array, Array], Array] | None:
    """The KL penalty as a function for `Algorithm.penalty`; None where it is not in the reward."""
    from grpo_jax.algorithms.objectives import KL

    if not c.beta or c.kl_in == "loss":
        return None
    return lambda logprobs, ref, mask: c.beta * KL[c.kl](logprobs, ref, mask)


def clip(c: Clip) -> dict[str, Any]:
    """The clipping as arguments of `objectives.clipped`; raises `AlgorithmError` for a delta within the clip."""
    high = c.epsilon if c.epsilon_high is None else c.epsilon_high
    if c.delta is not None and c.delta <= 1 + high:
        raise AlgorithmError(
            f"rl.algorithm.delta: {c.delta} is within the clip, which ends at {1 + high}; choose one above it, or null"
        )
    return {"low": c.epsilon, "high": high, "delta": c.delta}
