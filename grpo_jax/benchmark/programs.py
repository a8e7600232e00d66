"""The RL stage's programs for a small step without files: random weights and prompts, compiled one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from grpo_jax.algorithms import grpo
from grpo_jax.benchmark.material import EOS_ID, PAD_ID, START, decoder_config
from grpo_jax.benchmark.workloads import Workload
from grpo_jax.config import MeshConfig, OptimizerConfig, RLConfig, SamplingConfig
from grpo_jax.data.prompts import left_padded
from grpo_jax.data.sources import arithmetic
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.parameters import init_params
from grpo_jax.rewards import accuracy
from grpo_jax.sampler.draw import Distribution
from grpo_jax.sampler.sample import Sampling
from grpo_jax.sharding import host_to_global, make_mesh, named, run_key
from grpo_jax.stages.budget import CPU_LOGITS
from grpo_jax.stages.programs import rl_programs
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.state import create_state
from grpo_jax.types import Rewards


class SmallStep(NamedTuple):
    """A step's programs: each takes the result of the one before and gives its compiled form, and a call of it."""

    mesh: Mesh
    programs: dict[str, Callable[[Any], tuple[Any, Callable[[], Any]]]]


def head_chunk(w: Workload, microbatches: int, devices: int) -> int:
    """Time steps of logits at once, as a run on CPUs chooses them."""
    return max(1, min(CPU_LOGITS * microbatches * devices // w.rows, w.completion_length))


def small_step(w: Workload, *, microbatches: int, devices: int) -> SmallStep:
    """The programs that `stages/rl.py` would run for a workload, on the first so many devices; no completion ends."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    model = Decoder(decoder_config(w))
    config = RLConfig(
        source=arithmetic.Config(),
        algorithm=grpo.Config(),
        rewards=(accuracy.Config(),),
        prompts_per_step=w.prompts,
        num_generations=w.generations,
        microbatches=microbatches,
        head_chunk=head_chunk(w, microbatches, devices),
        sampling=SamplingConfig(max_completion_length=w.completion_length),
    )
    never = w.vocabulary + EOS_ID  # a token that is not there
    sampling = Sampling(Distribution(), w.generations, w.completion_length, (never,), PAD_ID)
    optimizer = make_optimizer(OptimizerConfig(), 100)
    algorithm = grpo.build(config.algorithm)
    params = init_params(model.config, run_key(0), mesh)
    programs = rl_programs(model, config, sampling, algorithm, optimizer, params)
    tokens = np.random.default_rng(0).integers(START, w.vocabulary, (w.prompts, w.prompt_length))
    prompts = host_to_global(
        left_padded(tokens.tolist(), np.arange(w.prompts), w.prompt_length, PAD_ID), named(mesh, "batch")
    )
    reference = programs.freeze(params)
    state = [create_state(params, optimizer, 0, mesh)]
    kept: dict[str, Any] = {}

    def sample(_: Any) -> tuple[Any, Callable[[], Any]]:
        arguments = (reference, prompts, state[0].key, 0)
        compiled = programs.sample.lower(*arguments).compile()
        return compiled, lambda: compiled(*arguments)

    def logprobs(rollout: Any) -> tuple[Any, Callable[[], Any]]:
        kept["rollout"] = rollout
        compiled = programs.logprobs.lower(reference, rollout).compile()
        return compiled, lambda: compiled(reference, rollout)

    def update(of_reference: Any) -> tuple[Any, Callable[[], Any]]:
        rewards = np.random.default_rng(1).normal(size=(w.prompts, w.generations)).astype(np.float32)
        experience = programs.experience(kept["rollout"], Rewards(rewards), None, of_reference)
        compiled = programs.update.lower(state[0], experience, frozen=None).compile()

        def call() -> Any:
            state[0], metrics = compiled(state[0], experience, frozen=None)
            return metrics

        return compiled, call

    return SmallStep(mesh, {"sample": sample, "reference": logprobs, "update": update})
