"""The compiled programs of the stages: where `jax.jit` appears, with shardings and donation in view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from grpo_jax.algorithms.algorithm import Algorithm, all_groups, make_experience, mixed_outcomes
from grpo_jax.algorithms.importance import importance_corrected
from grpo_jax.algorithms.settings import AlgorithmError
from grpo_jax.config import RLConfig, SFTConfig
from grpo_jax.configure import find
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import attach
from grpo_jax.models.values import value_model
from grpo_jax.rewards.reward import Reward
from grpo_jax.sampler.draw import distribution_of
from grpo_jax.sampler.sample import Sampling, sample
from grpo_jax.sharding import batch_shards, constrain, replicated
from grpo_jax.training.critic import abstract_actor_critic, actor_critic_step, rollout_values, value_step
from grpo_jax.training.fused import Parts, fused_steps
from grpo_jax.training.optimizer import decayed, make_optimizer
from grpo_jax.training.reference import mixed
from grpo_jax.training.state import abstract_state, state_shardings
from grpo_jax.training.step import join_rows, rollout_logprobs, split_rows, train_step
from grpo_jax.training.supervised import supervised_step
from grpo_jax.types import Prompts, Rollout, TrainState

GAP = ("logprob_gap/mean", "logprob_gap/max")


class RLPrograms(NamedTuple):
    """Everything that runs on the devices in the RL stage; each compiles once."""

    sample: Callable[[Any, Prompts, Array, int], Rollout]  # params, prompts, run key, step
    logprobs: Callable[[Any, Rollout], Array]
    values: Callable[[Any, Rollout], Array]  # of the value model, if there is one
    experience: Callable[..., Any]
    update: Callable[..., Any]  # state, experience, frozen=base: donates the state
    freeze: Callable[[Any], Any]
    gap: Callable[[Any, Rollout], dict[str, Array]]  # between sampler and trainer, on a few groups
    join: Callable[[tuple[Rollout, ...]], Rollout]  # the parts of a step, `rl.sample_parts`, as one
    cut: Callable[[Rollout], tuple[Rollout, ...]]  # its inverse
    refill: Callable[[Any, Any, Array], Any]  # groups of one batch in the places of another's
    mix: Callable[[Any, Any], Any]  # the reference on its way to what is trained, `rl.sync_ref_model`


PREFERRED = "preferred"  # the reward of pairs that stand in the data


def algorithm_of(config: RLConfig) -> Algorithm:
    """The method of the settings, with what they add to any method.

    That is how dead groups and cut completions count, an entropy bonus, and the correction for a sampler that is
    another policy. Raises `AlgorithmError` for settings of a method that contradict one another.
    """
    c, algorithm = config, find("algorithms", config.algorithm.kind).build(config.algorithm)
    check_sampler(c, algorithm)
    keep = {"count": all_groups, "exclude": mixed_outcomes, "refill": mixed_outcomes}.get(c.dead_groups, algorithm.keep)
    algorithm = algorithm._replace(
        keep=keep,
        truncated=algorithm.truncated and not c.mask_truncated_completions,
        entropy_bonus=c.entropy_coef or algorithm.entropy_bonus,
    )
    cap = c.importance_cap
    return algorithm if cap is None else importance_corrected(algorithm, cap=cap, mode=c.importance_mode)


def check_sampler(c: RLConfig, algorithm: Algorithm) -> None:
    """Refuse what is meant for completions of the policy where another policy writes them, and groups of broken pairs.

    Raises `AlgorithmError`.
    """
    kind = c.algorithm.kind
    if algorithm.sampler == "data":
        sampled = ("fused_steps", "steps_off_policy", "importance_cap")
        given = [f"rl.{name} {getattr(c, name)}" for name in sampled if getattr(c, name)]
        given += ["rl.dead_groups refill"] if c.dead_groups == "refill" else []
        given += ["rl.tools"] if c.tools is not None else []
        given += [f"rl.num_generations {c.num_generations}, not 2"] if c.num_generations != 2 else []
        given += [f"rl.sampling.stop {list(c.sampling.stop)}"] if c.sampling.stop else []
        if given:
            raise AlgorithmError(
                f"rl.algorithm.kind {kind} takes its completions from the data, a better and a worse one for each "
                f"prompt, and samples none: {', '.join(given)} does not go with that; leave it out"
            )
    kinds = [reward.kind for reward in c.rewards]
    if (PREFERRED in kinds) != (algorithm.sampler == "data") or (PREFERRED in kinds and len(kinds) > 1):
        raise AlgorithmError(
            f"rl.rewards: {', '.join(kinds)} with rl.algorithm.kind {kind}: which completion of a pair is the better "
            f"stands in the data, and reward {PREFERRED!r} says so; take it alone with pairs_from data, and only there"
        )
    if c.dead_groups in ("exclude", "refill") and not (algorithm.baseline and algorithm.penalty is None):
        raise AlgorithmError(
            f"rl.dead_groups is {c.dead_groups}, and for rl.algorithm.kind {kind} a group of equal rewards is not "
            "without a signal, as its advantages are not differences within the group, or a KL penalty in the reward "
            "makes some; set rl.dead_groups to count"
        )
    if c.num_generations % algorithm.rows:
        raise AlgorithmError(
            f"rl.num_generations: {c.num_generations} completions a prompt, but rl.algorithm.kind {kind} takes them by "
            f"{algorithm.rows}; choose a multiple"
        )
    if algorithm.sampler == "reference" and c.steps_off_policy:
        raise AlgorithmError(
            f"rl.steps_off_policy is {c.steps_off_policy}, and rl.algorithm.kind {kind} samples from the reference, "
            "which no update changes; set rl.steps_off_policy to 0"
        )
    if algorithm.sampler == "reference" and c.importance_cap is not None:
        raise AlgorithmError(
            f"rl.importance_cap is {c.importance_cap}, and rl.algorithm.kind {kind} means the completions of the "
            "reference: weighed as the present policy's they would make another method; leave it out (and with it "
            "rl.rollout_weights int8)"
        )


def old_pass(c: RLConfig, algorithm: Algorithm) -> bool:
    """Whether a pass is spent on the log-probabilities of the old policy.

    With one update they are the policy's own; a penalty in the reward needs them before it, and takes the sampler's
    where that is the same policy.
    """
    narrow = not distribution_of(c.sampling).full_support  # what is left of it is renormalised, the reference is not
    other = c.steps_off_policy > 0 or c.rollout_weights != "same" or algorithm.sampler != "policy" or narrow
    return c.num_iterations > 1 or (algorithm.penalty is not None and other)


def sampling_program(model: Decoder, sampling: Sampling) -> Callable[[Any, Prompts, Array, int], Rollout]:
    """`(params, prompts, run key, step) -> Rollout`; the step's key is folded from the run's, which never changes."""

    @jax.jit
    def program(params: Any, prompts: Prompts, key: Array, step: int) -> Rollout:
        step_key = jax.random.fold_in(key, step)
        return sample(model, params, prompts, step_key, sampling=sampling)

    return program


def freeze_program(model: Decoder, *, whole: bool = False) -> Callable[[Any], Any]:
    """A copy of what is trained, weights or adapters, that is only read: matrices in the type in which they are used.

    Norms and biases stay float32, so that the copy computes exactly what the original does. A copy that is to be mixed
    is `whole`, all float32.
    """

    @jax.jit
    def program(params: Any) -> Any:
        matrices = decayed(params)
        return jax.tree.map(
            lambda p, matrix: p.astype(model.config.compute_dtype) if matrix and not whole else p + 0, params, matrices
        )

    return program


def rl_programs(
    model: Decoder,
    config: RLConfig,
    sampling: Sampling,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    params: Any,
) -> RLPrograms:
    """The programs of the RL stage for these settings.

    `params` are what is trained, all weights or adapters (arrays or their abstract forms), as they lie on the mesh."""
    scoring = {
        "model": model,
        "temperature": config.sampling.temperature,
        "chunk": config.head_chunk,
        "microbatches": config.microbatches,
        "buckets": config.length_buckets,
    }
    update = partial(train_step, **scoring, algorithm=algorithm, optimizer=optimizer)
    critic = {"model": value_model(model.config), "microbatches": config.microbatches}
    if algorithm.critic is not None:
        clip, values = (
            algorithm.critic.clip,
            partial(value_step, optimizer=critic_optimizer(config, algorithm), **critic),
        )
        update = partial(actor_critic_step, policy=update, values=partial(values, clip=clip))
    whole = rl_state(model, config, algorithm, optimizer, params)
    shards, P, K = batch_shards(_mesh(params)), config.prompts_per_step, config.sample_parts
    return RLPrograms(
        sample=sampling_program(model, sampling),
        logprobs=jax.jit(partial(rollout_logprobs, **scoring)),
        values=jax.jit(partial(rollout_values, **critic)),
        experience=jax.jit(partial(make_experience, algorithm)),
        update=update_program(update, optimizer, params, state=whole),
        freeze=freeze_program(model, whole=config.sync_ref_model)
        if uses_reference(algorithm)
        else jax.jit(lambda params: {}),
        gap=jax.jit(partial(sampler_gap, **scoring | {"microbatches": P // K // shards})),
        join=jax.jit(join_parts),
        cut=jax.jit(partial(cut_parts, count=K)),
        refill=jax.jit(replace_groups),
        mix=jax.jit(partial(mixed, alpha=config.ref_model_mixup_alpha)),
    )


def critic_optimizer(config: RLConfig, algorithm: Algorithm) -> optax.GradientTransformation:
    """The value model's optimizer, over all updates of the stage."""
    return make_optimizer(algorithm.critic.optimizer, config.iterations * config.max_steps * config.num_iterations)


def rl_state(
    model: Decoder, config: RLConfig, algorithm: Algorithm, optimizer: optax.GradientTransformation, params: Any
) -> TrainState:
    """What the RL stage carries from step to step, in abstract form: the policy's state, and the value model's."""
    actor, mesh = abstract_state(params, optimizer, _mesh(params)), _mesh(params)
    if algorithm.critic is None:
        return actor
    return abstract_actor_critic(actor, value_model(model.config), critic_optimizer(config, algorithm), mesh)


def uses_reference(algorithm: Algorithm) -> bool:
    """Whether a copy of the policy is kept from the start of an outer iteration."""
    return algorithm.reference or algorithm.sampler == "reference"


def sampler_gap(params: Any, rollout: Rollout, *, microbatches: int, **scoring: Any) -> dict[str, Array]:
    """How far the trainer is from the sampler, with the weights that were sampled from: on the first micro-batch.

    -> mean and largest value (`GAP`) of the absolute difference, over the chosen tokens.
    """
    rows = jax.tree.map(lambda x: x[0], split_rows(rollout, microbatches))
    logprobs = rollout_logprobs(params, rows, **scoring)
    gap = jnp.where(rows.completion_mask, jnp.abs(logprobs - rows.logprobs), 0.0)
    return dict(zip(GAP, (gap.sum() / rows.completion_mask.sum(), gap.max()), strict=True))


def join_parts(parts: tuple[Rollout, ...]) -> Rollout:
    """Put together what was sampled in K parts: part m holds the prompts m, m + K, m + 2K, ... of the whole."""
    if len(parts) == 1:
        return parts[0]
    whole = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    P, B = (x.shape[0] * x.shape[1] for x in (whole.prompts.index, whole.finished))
    prompts = jax.tree.map(lambda x: join_rows(x, P, 1), whole.prompts)
    rollout = jax.tree.map(lambda x: join_rows(x, P, B // P), whole.replace(prompts=None)).replace(prompts=prompts)
    return jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), rollout)


def cut_parts(rollout: Rollout, *, count: int) -> tuple[Rollout, ...]:
    """The inverse of `join_parts`."""
    if count == 1:
        return (rollout,)
    stacked = split_rows(rollout, count)
    return tuple(jax.tree.map(lambda x, m=m: x[m], stacked) for m in range(count))


def replace_groups(old: Any, new: Any, source: Array) -> Any:
    """Arrays [P, ...] or [B, ...] of `old`, group p replaced by group source[p] of `new` where that is not negative.

    source [P] i32. The shapes stay: one program, however many are replaced.
    """
    P = source.shape[0]

    def pick(x: Array, y: Array) -> Array:
        groups, others = (a.reshape(P, -1) for a in (x, y))
        result = jnp.where((source >= 0)[:, None], others[jnp.maximum(source, 0)], groups).reshape(x.shape)
        return constrain(result, "batch", *(None,) * (x.ndim - 1))

    return jax.tree.map(pick, old, new)


def fused_program(
    programs: RLPrograms,
    model: Decoder,
    config: RLConfig,
    algorithm: Algorithm,
    rewards: Sequence[Reward],
    optimizer: optax.GradientTransformation,
    params: Any,
    *,
    num_slots: int,
) -> Callable[..., Any]:
    """The RL stage's programs put together as `training.fused.fused_steps`; donates the state.

    `(state, reference, prompts, columns, first, count, slots, frozen=base) -> (state, Told, Kept)`; of a chunk, so many
    steps as `num_slots` can be kept for the report. All `rewards` have an array form.
    """
    parts = Parts(
        policy=attach,
        sample=programs.sample,
        rewards=tuple(reward.array for reward in rewards),
        weights=tuple(reward.weight for reward in rewards),
        optional=tuple(reward.optional for reward in rewards),
        logprobs=programs.logprobs,
        experience=programs.experience,
        update=programs.update,
        reference=algorithm.reference,
        num_iterations=config.num_iterations,
        old=old_pass(config, algorithm),
        values=None if algorithm.critic is None else programs.values,
        offline=programs.gap if algorithm.sampler == "reference" else None,
    )
    shardings = state_shardings(rl_state(model, config, algorithm, optimizer, params))
    program = partial(fused_steps, parts=parts, num_slots=num_slots)
    return jax.jit(program, donate_argnums=0, out_shardings=(shardings, None, None))


def sft_program(
    model: Decoder, config: SFTConfig, optimizer: optax.GradientTransformation, params: Any
) -> Callable[..., Any]:
    """`(state, sequences, loss mask, frozen=base) -> (state, metrics)`; donates the state, never the base."""
    step = partial(
        supervised_step,
        model=model,
        optimizer=optimizer,
        chunk=config.head_chunk,
        microbatches=config.microbatches,
    )
    return update_program(step, optimizer, params)


def update_program(
    step: Callable[..., Any], optimizer: optax.GradientTransformation, params: Any, *, state: Any | None = None
) -> Callable[..., Any]:
    """A step `(state, ...) -> (state, metrics)` compiled so that the state keeps its layout and its memory.

    `state` is its abstract form where it holds more than `params` and their optimizer.
    """
    mesh = _mesh(params)
    shardings = state_shardings(abstract_state(params, optimizer, mesh) if state is None else state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def _mesh(params: Any) -> jax.sharding.Mesh:
    return jax.tree.leaves(params)[0].sharding.mesh


def compiled(*programs: Callable) -> int:
    """How many times these programs were compiled; after the first steps the number must stand still."""
    return sum(program._cache_size() for program in programs)
