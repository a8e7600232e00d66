"""AdamW with warm-up, a schedule and clipping by global norm: one gradient transformation.

Its state is a plain pytree, whose structure does not depend on any setting, so that a resumed run may change
one. What decays is decided by a parameter's *name*: layers are stacked, so a norm is [L, D] and a bias
[L, N, H], and their rank says nothing.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grpo_jax.config import OptimizerConfig
from grpo_jax.models.parameters import is_matrix

MULTISTEP = ((80, 0.316), (90, 0.1))  # from this percentage of the steps on: this share of the peak


def schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate of update s = 0 .. total_steps - 1, as a function of s (traced or a number).

    Warm-up of W steps: `peak * (s + 1) / W`, so that the first update is not wasted on a rate of zero and the
    last one of warm-up has the peak. After it, with `u = (s - W) / (total_steps - W)` and m = `min_lr_ratio`:

        constant   peak
        linear     peak * (m + (1 - m) * (1 - u))
        cosine     peak * (m + (1 - m) * (1 + cos(pi u)) / 2)
        multistep  peak * (0.1 if s >= 0.9 * total_steps else 0.316 if s >= 0.8 * total_steps else 1)

    so that linear and cosine would reach m just after the last step. Source: arXiv:2402.03300, section 2.2.1
    (multistep; that warm-up is linear and that a border belongs to the lower rate is our choice).

    Raises ValueError for an unknown schedule or a `total_steps` below 1.
    """
    if total_steps < 1:
        raise ValueError(f"schedule: total_steps is {total_steps}; it must be at least 1")
    after_warmup = _shape(config, total_steps)
    warmup = config.warmup_steps

    def rate(step):
        step = jnp.asarray(step)
        share = after_warmup(step)
        if warmup:
            share = jnp.where(step < warmup, (step + 1) / warmup, share)
        return jnp.asarray(config.learning_rate * share, jnp.float32)

    return rate


def _shape(config: OptimizerConfig, total_steps: int):
    """The share of the peak after warm-up, a function of the step."""
    lowest, span = config.min_lr_ratio, max(total_steps - config.warmup_steps, 1)

    def progress(step):
        return jnp.clip((step - config.warmup_steps) / span, 0.0, 1.0)

    def multistep(step):
        share = jnp.ones((), jnp.float32)
        for percent, low in MULTISTEP:
            # Whole numbers: 0.8 * total_steps in floating point can miss its border by one step.
            share = jnp.where(step >= math.ceil(total_steps * percent / 100), low, share)
        return share

    shapes = {
        "constant": lambda step: jnp.ones((), jnp.float32),
        "linear": lambda step: lowest + (1 - lowest) * (1 - progress(step)),
        "cosine": lambda step: lowest + (1 - lowest) * 0.5 * (1 + jnp.cos(jnp.pi * progress(step))),
        "multistep": multistep,
    }
    if config.lr_scheduler_type not in shapes:
        raise ValueError(f"lr_scheduler_type: {config.lr_scheduler_type!r}; there are {', '.join(shapes)}")
    return shapes[config.lr_scheduler_type]


def learning_rate_at(config: OptimizerConfig, total_steps: int, step: int) -> float:
    """The learning rate of update `step` (from 0) as a Python number, for tables and metrics."""
    return float(schedule(config, total_steps)(step))


def learning_rates(config: OptimizerConfig, total_steps: int) -> np.ndarray:
    """The learning rates of all updates [total_steps], made at once: to ask for one, no device is waited for."""
    rates = schedule(config, total_steps)(np.arange(total_steps))
    return np.broadcast_to(rates, total_steps)  # a constant one is one number


def decayed(params: Any) -> Any:
    """A tree of bools like `params`: True where weight decay acts, False for norms, biases and other vectors.

    A parameter is left alone if its own name (the last key of its path) is or ends in `norm` or `bias`, or if
    it has at most one dimension. Embeddings, heads and adapters decay. The paper does not say what decays.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: is_matrix(_name(path), jnp.ndim(leaf)), params)


def _name(path: tuple) -> str:
    """The last dictionary key or field name of a path."""
    return str(getattr(path[-1], "key", getattr(path[-1], "name", path[-1]))) if path else ""


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW: `p -= lr(s) * (m_hat / (sqrt(v_hat) + eps) + decay * p)`.

    `s` counts the updates made: a caller that keeps the old state when a gradient is not finite does not
    advance the schedule. State and arithmetic are float32; `init` raises ValueError for other parameters,
    since an update of 1e-6 is lost in a bfloat16 weight. Source: arXiv:1711.05101, algorithm 2, with the
    decay scaled by the learning rate.
    """
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    return optax.chain(
        _require_float32(),
        clip,
        optax.scale_by_adam(config.adam_beta1, config.adam_beta2, config.adam_epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(config, total_steps)),
    )


def _require_float32() -> optax.GradientTransformation:
    def init(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.dtype != jnp.float32:
                raise ValueError(
                    f"optimizer: parameter {jax.tree_util.keystr(path)} is {leaf.dtype}, trained weights "
                    "must be float32; cast them, and set model.dtype for the type of the matrix products"
                )
        return optax.EmptyState()

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
