"""The arrays of a step of the RL stage, in abstract form: what its programs take and give, laid out as there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp

from grpo_jax.algorithms.algorithm import Algorithm
from grpo_jax.stages.programs import old_pass, rl_state
from grpo_jax.training.state import abstract_copy
from grpo_jax.types import Experience, Rollout, TrainState

if TYPE_CHECKING:
    from grpo_jax.stages.footprints import Plant


class StepShapes(NamedTuple):
    """The arrays of an RL step."""

    state: TrainState
    reference: Any
    rollout: Rollout
    experience: Experience


def step_shapes(plant: Plant, optimizer: Any, freeze: Callable[[Any], Any], algorithm: Algorithm) -> StepShapes:
    """The arrays of a step for these settings; `freeze` makes the reference."""
    c = plant.config.rl
    P, G, Tc = c.prompts_per_step, c.num_generations, c.sampling.max_completion_length
    rollout = rollout_shape(plant, P, G, Tc)
    numbers = rollout.logprobs
    experience = Experience(
        prompts=rollout.prompts,
        completions=rollout.completions,
        completion_mask=rollout.completion_mask,
        weights=numbers,
        advantages=numbers,
        behaviour_logprobs=numbers,
        old_logprobs=numbers if old_pass(c, algorithm) else None,
        ref_logprobs=numbers if algorithm.reference else None,
        values=numbers if algorithm.critic else None,
        returns=numbers if algorithm.critic else None,
    )
    state = rl_state(plant.model, c, algorithm, optimizer, plant.trained)
    return StepShapes(state, abstract_copy(freeze, plant.trained), rollout, experience)


def rollout_shape(plant: Plant, prompts: int, num_generations: int, length: int) -> Rollout:
    """The arrays of a rollout."""
    rows = prompts * num_generations
    tokens, numbers = plant.sequences(rows, length), plant.array((rows, length), jnp.float32)
    mask = plant.array((rows, length), jnp.bool_)
    return Rollout(plant.prompts(prompts), tokens, mask, numbers, plant.array((rows,), jnp.bool_))
