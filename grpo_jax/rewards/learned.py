"""What a reward model says of a completion, on the devices.

    value at token t    sigmoid(score_t), the probability that the text up to t is good, or the score itself
    reward              the value at the last token, or of the steps' values the least, their mean or their product
    with process        the value at the end of each step (arXiv:2402.03300, section 4.1.3)

Math-Shepherd takes the least (arXiv:2312.08935, section 3.4). Which of these the paper's rewards are is not said there.
This module sees no model: the stage opens the one that `path` names and gives its scores.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from grpo_jax.config import Positive, config

if TYPE_CHECKING:
    from jax import Array

    from grpo_jax.rewards.reward import Reward


@config
class Config:
    """The score of a reward model of the policy's tokenizer."""

    weight: float = 1.0
    """Factor in the weighted sum of the rewards."""
    path: str | None = None
    """The output_dir of a run with a finished reward_model stage; null: the reward model of this run."""
    value: Literal["probability", "logit"] = "probability"
    """What is taken for a score."""
    whole: Literal["last", "min", "mean", "product"] = "last"
    """The reward of a completion: the value at its last token, or what becomes of its steps' values."""
    supervision: Literal["outcome", "process"] = "outcome"
    """One reward for the completion, or for each step its own at its end (grpo, ppo; `whole` is then only shown)."""
    unfinished: float | None = 0.0
    """Reward of a completion that the length limit cut, which has no answer; null: as the model scores it."""
    microbatches: Positive = 1
    """Parts in which a step's completions are scored, to save memory; the scores are the same."""


def build(c: Config) -> Reward:
    """Make the reward; raises `RewardError` for a product of logits, and for logits beside the default `unfinished`."""
    from grpo_jax.rewards.reward import Learned, Reward, RewardError

    if c.value == "logit" and c.whole == "product":
        raise RewardError("rewards: learned: a product of logits means nothing; set value to probability")
    if c.value == "logit" and c.unfinished == 0.0:
        raise RewardError(
            "rewards: learned: with value logit the reward of a cut completion, unfinished 0.0, is that of an even "
            "chance, and may be the best there is; set unfinished to a low score, such as -10, or to null"
        )
    value = partial(_value, logit=c.value == "logit")
    learned = Learned(c.path, c.microbatches, value, _WHOLE[c.whole], c.unfinished)
    steps = c.supervision == "process"
    return Reward("learned", c.weight, learned=learned._replace(steps=steps), steps=steps)


def _value(scores: Array, *, logit: bool) -> Array:
    import jax

    return scores if logit else jax.nn.sigmoid(scores)


def _last(values: Array, mask: Array, ends: Array) -> Array:
    """values [B, Tc], mask, ends [B, Tc] bool -> [B] f32; the other three likewise."""
    import jax.numpy as jnp

    del ends
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[-1]), 0), axis=-1, keepdims=True)  # a tool leaves holes
    return jnp.take_along_axis(values, last, axis=-1)[:, 0]


def _least(values: Array, mask: Array, ends: Array) -> Array:
    import jax.numpy as jnp

    del mask
    return jnp.where(ends, values, jnp.inf).min(-1)


def _mean(values: Array, mask: Array, ends: Array) -> Array:
    import jax.numpy as jnp

    del mask
    return jnp.where(ends, values, 0.0).sum(-1) / ends.sum(-1)


def _product(values: Array, mask: Array, ends: Array) -> Array:
    import jax.numpy as jnp

    del mask
    return jnp.where(ends, values, 1.0).prod(-1)


_WHOLE = {"last": _last, "min": _least, "mean": _mean, "product": _product}
