"""Rotary positions: the frequencies of plain, linear, llama3 and yarn scaling, from one frozen description.

Frequencies depend on the description alone. They are computed on the host in the type and order of operations of the
implementations that the models were trained with, and are constants of the compiled program.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

KINDS = ("default", "linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions turn into angles. The names are those of config.json, so that nothing is lost on the way back."""

    rope_type: Literal["default", "linear", "llama3", "yarn"] = "default"
    rope_theta: float = 10000.0
    factor: float | None = None  # by which the context is longer than that of pretraining
    original_max_position_embeddings: int | None = None  # the context of pretraining: llama3, yarn
    low_freq_factor: float | None = None  # llama3
    high_freq_factor: float | None = None  # llama3
    beta_fast: float | None = None  # yarn; 32
    beta_slow: float | None = None  # yarn; 1
    attention_factor: float | None = None  # yarn; from `factor` or the two `mscale`s
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool | None = None  # yarn; True

    def __post_init__(self):
        if self.rope_type not in KINDS:
            raise ValueError(f"rope_type is {self.rope_type!r}; there are {', '.join(KINDS)}")
        needed = {
            "linear": ("factor",),
            "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
            "yarn": ("factor", "original_max_position_embeddings"),
        }
        for name in needed.get(self.rope_type, ()):
            if not getattr(self, name):
                raise ValueError(f"rope_type {self.rope_type!r} needs {name}, which is {getattr(self, name)}")

    @property
    def attention_scale(self) -> float:
        """What cosine and sine are multiplied by: 1 but for yarn (arXiv:2309.00071, section 3.4)."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor

        def magnitude(scale: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return magnitude(self.mscale) / magnitude(self.mscale_all_dim)
        return magnitude(1.0)


def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Radians a position for each rotated pair: [H/2] f32.

    `theta^(-2i/H)`, then by `rope_type`: linear divides by the factor; llama3 divides long wavelengths only, with a
    ramp between; yarn mixes divided and plain ones by how often they turn in the original context
    (arXiv:2309.00071, section 3.2).
    """
    theta = np.float32(rope.rope_theta)
    plain = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)  # [H/2]
    scale = {"default": lambda plain, *_: plain, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
    return scale[rope.rope_type](plain, rope, head_dim).astype(np.float32)


def _linear(plain: np.ndarray, rope: Rope, head_dim: int) -> np.ndarray:
    return plain / np.float32(rope.factor)


def _llama3(plain: np.ndarray, rope: Rope, head_dim: int) -> np.ndarray:
    context, low, high = rope.original_max_position_embeddings, rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * np.float32(math.pi) / plain
    divided = plain / np.float32(rope.factor)
    share = (context / wavelength - low) / (high - low)  # of the plain frequency, on the ramp
    ramp = (1 - share) * divided + share * plain
    return np.where(wavelength > context / low, divided, np.where(wavelength < context / high, plain, ramp))


def _yarn(plain: np.ndarray, rope: Rope, head_dim: int) -> np.ndarray:
    context, truncate = rope.original_max_position_embeddings, rope.truncate is not False

    def pair(turns: float) -> float:
        """The (fractional) number of the pair that turns so often within the original context."""
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = pair(rope.beta_fast or 32), pair(rope.beta_slow or 1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)  # share divided
    return plain / np.float32(rope.factor) * ramp + plain * (1 - ramp)


def rotation(positions: Array, rope: Rope, head_dim: int) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles `position * frequency`, times `attention_scale`: two arrays [B, T, H/2]."""
    angles = positions[..., None].astype(jnp.float32) * frequencies(rope, head_dim)  # [B, T, H/2]
    return jnp.cos(angles) * rope.attention_scale, jnp.sin(angles) * rope.attention_scale


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (i, i + H/2) of the last axis (arXiv:2104.09864, in Hugging Face's pairing).

    `cos` and `sin` [..., H/2] must broadcast against the halves of `x` [..., H].
    """
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
