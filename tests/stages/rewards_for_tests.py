"""An array reward that is a kind of its own: how much the tokens of a completion vary, so that groups have spread."""

from functools import partial

from grpo_jax.config import config


@config
class Config:
    """Mean token id, scaled."""

    weight: float = 0.1
    """Factor in the weighted sum of the rewards."""
    unjudged: int = -1
    """A completion that begins with this token cannot be judged."""


def build(c: Config):
    from grpo_jax.rewards.reward import Reward

    return Reward("token_mean", c.weight, array=partial(token_mean, unjudged=c.unjudged))


def token_mean(rollout, *, unjudged):
    import jax.numpy as jnp

    mask = rollout.completion_mask
    total = jnp.where(mask, rollout.completions.tokens, 0).sum(-1) / mask.sum(-1)
    total = jnp.where(rollout.completions.tokens[:, 0] == unjudged, jnp.nan, total)
    return total.reshape(rollout.prompts.index.shape[0], -1) / 10.0
