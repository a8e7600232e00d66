"""The arrays that travel between the parts of the system, with their shapes.

Letters: `P` prompts, `G` completions a prompt, `B = P*G` rows (row `b = p*G + g`: a group is contiguous),
`Tp` prompt time, `Tc` completion time, `T` time of packed text.

Two laws hold for every per-token array. Index `t` describes token `t`: `logprobs[b, t]` is
`log p(completion[b, t] | prompt, completion[b, :t])`. A mask says who chose the token and is never guessed from
token ids: the end-of-sequence token is chosen by the policy and counts, what follows is padding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, dataclass_transform

import jax
from jax import Array


@dataclass_transform(frozen_default=True)
def pytree(cls):
    """Make `cls` a frozen dataclass whose fields are the children of a JAX pytree, with a `replace` method."""
    cls.replace = lambda self, **changes: dataclasses.replace(self, **changes)
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@pytree
class Sequences:
    """Token rows. A query sees a key iff both have one segment and the key's position is not after its own."""

    tokens: Array  # [B, T] i32
    positions: Array  # [B, T] i32, from 0 in each segment
    segments: Array  # [B, T] i32, 0 is padding


@pytree
class Prompts:
    """Left-padded prompts: index -1 of a row is the prompt's last token."""

    sequences: Sequences  # [P, Tp]
    index: Array  # [P] i32, the problem's number in its source; the seed of the row's randomness


@pytree
class Rollout:
    """What the behaviour policy did: `G` completions for each of `P` prompts, the prompt held once a group."""

    prompts: Prompts  # [P, Tp]
    completions: Sequences  # [B, Tc], right-padded, positions continue the prompt's, segment as the prompt's
    completion_mask: Array  # [B, Tc] bool, True where the policy chose the token (end of sequence included)
    logprobs: Array  # [B, Tc] f32, under the distribution sampled from; 0 off the mask
    finished: Array  # [B] bool, False where the length limit cut the completion


@pytree
class Rewards:
    """Rewards by group. NaN means "cannot be judged" and is not a number to average."""

    outcome: Array  # [P, G] f32
    steps: Array | None = None  # [P, G, Tc] f32, nonzero on the last token of each step only
    step_mask: Array | None = None  # [P, G, Tc] bool, True on the last token of each step


@pytree
class Experience:
    """All that an update needs, whatever the algorithm."""

    prompts: Prompts  # [P, Tp]
    completions: Sequences  # [B, Tc]
    completion_mask: Array  # [B, Tc] bool
    weights: Array  # [B, Tc] f32, the reduction over the global batch: loss = -sum(weights * objective)
    advantages: Array  # [B, Tc] f32
    behaviour_logprobs: Array | None = None  # [B, Tc] f32, as sampled; compared with the policy's at every step
    old_logprobs: Array | None = None  # [B, Tc] f32; None: the policy itself, before its only update
    ref_logprobs: Array | None = None  # [B, Tc] f32; None: no reference
    values: Array | None = None  # [B, Tc] f32, of the value model before its updates; None: there is none
    returns: Array | None = None  # [B, Tc] f32, what it learns
    places: Array | None = None  # [B] i32, the row of the rollout that each row is; None: the same


@pytree
class TrainState:
    """What a training loop carries from step to step, and all of it is saved."""

    step: Array  # [] i32, updates tried (a skipped update counts)
    params: Any  # the trainable tree only
    opt_state: Any
    key: Array  # [] typed PRNG key of the run; step keys are folded from it, it never changes


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its reference answer; host side, strings."""

    question: str
    answer: str
    source: str = ""
    id: str = ""
    solution: str | None = None  # a worked solution, the demonstration of supervised fine-tuning
    messages: tuple[dict[str, str], ...] | None = None  # a ready conversation instead of `question`
    columns: dict[str, Any] = dataclasses.field(default_factory=dict)  # what else the row held, for reward functions
