"""What all sections are made of: the decorator, the mark of a kind, numbers with bounds, and the parts they share."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, dataclass_transform

import pydantic


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls):
    """Make `cls` a frozen, keyword-only dataclass that pydantic validates: known keys, finite numbers."""
    cls.__pydantic_config__ = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Marks a field whose type is the `Config` of `grpo_jax.<package>.<kind>`, or of a dotted module."""

    package: str


Positive = Annotated[int, pydantic.Field(gt=0)]
Count = Annotated[int, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(ge=0.0, le=1.0)]
Decay = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]
Axis = Annotated[int, pydantic.Field(ge=-1)]
NonNegative = Annotated[float, pydantic.Field(ge=0.0)]


@config
class OptimizerConfig:
    """AdamW with a schedule and clipping by global norm."""

    learning_rate: NonNegative = 1e-6
    """Peak learning rate (paper, RL: 1e-6; SFT: 5e-5)."""
    lr_scheduler_type: Literal["constant", "cosine", "linear", "multistep"] = "constant"
    """After warm-up; `multistep` is the paper's: 31.6 % of the peak after 80 % of the steps, 10 after 90."""
    min_lr_ratio: Share = 0.0
    """Where cosine and linear end, as a share of the peak."""
    warmup_steps: Count = 0
    """Steps of linear warm-up."""
    weight_decay: NonNegative = 0.0
    """Decoupled decay of matrices; norms and biases never decay. (TRL 0.0, verl 0.01, Tunix 0.1.)"""
    adam_beta1: Decay = 0.9
    """Decay of the first moment."""
    adam_beta2: Decay = 0.95
    """Decay of the second moment (paper 0.95; TRL 0.999)."""
    adam_epsilon: NonNegative = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are scaled down to this global norm; 0: no clipping. (Tunix's command line: 0.1.)"""


@config
class SamplingConfig:
    """How completions are drawn."""

    max_completion_length: Positive = 1024
    """Tokens, end of sequence included (paper 1024; TRL and verl 512)."""
    temperature: NonNegative = 1.0
    """0 is greedy; the trainer scores with the same temperature. (Tunix 0.9.)"""
    top_k: Count = 0
    """Keep the k likeliest tokens; 0: all. (Tunix's command line: 50.)"""
    top_p: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1.0
    """Keep the smallest set of likeliest tokens with this mass."""
    min_p: Share = 0.0
    """Keep tokens with at least this share of the likeliest token's probability."""
    stop: tuple[str, ...] = ()
    """A completion ends after any of these strings."""
    cache_block: Count = 0
    """Slots by which keys and values grow while all rows are decoded at once: only those in use are read. 0: quarters
    of `max_completion_length` from 128 tokens on, else the whole."""
