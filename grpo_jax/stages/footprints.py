"""The phases of a pipeline as programs to be compiled ahead of time, with what lies on the devices meanwhile.

The programs are those of `programs.py`, on abstract arrays laid out as the stages lay them out. A phase knows what its
program depends on, so that of two configs only the phases in which they differ need compiling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from functools import partial

import jax
import jax.numpy as jnp

from grpo_jax.config import RLConfig
from grpo_jax.models.lora import attach
from grpo_jax.rewards.reward import load_rewards
from grpo_jax.sharding import batch_shards
from grpo_jax.stages.ahead import Ahead, compile_ahead, device_bytes
from grpo_jax.stages.fused import check_fused, column_shapes, num_slots
from grpo_jax.stages.plant import (
    Held,
    Phase,
    Plant,
    Work,
    abstract_sampling,
    longest_decode,
    on_a_device,
    open_plant,
    sampling_phase,
    sampling_work,
)
from grpo_jax.stages.programs import algorithm_of, fused_program, old_pass, rl_programs, sft_program
from grpo_jax.stages.scored_footprints import (
    abstract_scorer,
    abstract_scorers,
    continued_phases,
    label_phases,
    reward_model_phases,
    scores_phase,
)
from grpo_jax.stages.step_shapes import StepShapes, rollout_shape, step_shapes
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.step import group_cuts

__all__ = ["Held", "Phase", "Plant", "Work", "open_plant", "phases"]

STAGES = ("sft", "label", "reward_model", "rl", "evaluation")


def phases(plant: Plant, only: Collection[str] = ()) -> list[Phase]:
    """What a pipeline runs on its devices, in order; `only` some of its sections.

    Left out is what has no temporaries to speak of: the copy of the reference, the making of experience.

    Raises `DecodeError` and `MicrobatchError` for parts that are not whole, `RewardError` for rewards that fused steps
    cannot ask.
    """
    wanted = [stage for stage in STAGES if getattr(plant.config, stage) and (not only or stage in only)]
    absent = {stage: None for stage in STAGES if stage not in wanted and stage != "reward_model"}  # which rl may ask
    plant = plant._replace(config=dataclasses.replace(plant.config, **absent))
    rl = _fused_rl if plant.config.rl and plant.config.rl.fused_steps else _rl
    of = {
        "sft": _sft,
        "label": label_phases,
        "reward_model": reward_model_phases,
        "rl": rl,
        "evaluation": _evaluation,
    }
    return [_loading(plant, wanted), *(phase for stage in wanted for phase in of[stage](plant))]


def _loading(plant: Plant, wanted: Collection[str]) -> Phase:
    """Weights, created sharded slice by slice, then the optimizer's moments."""
    training = [stage for stage in wanted if stage in ("sft", "rl")]
    moments = plant.state(make_optimizer(getattr(plant.config, training[0]).optimizer, 1)).opt_state if training else ()
    held = Held(device_bytes(plant.policy), device_bytes(moments))
    return Phase("loading", held, sum(held), None, plant.key("loading", *training[:1]), None)


def _sft(plant: Plant) -> Iterator[Phase]:
    c = plant.config.sft
    optimizer = make_optimizer(c.optimizer, c.max_steps)
    state = plant.state(optimizer)
    work = Work(
        rows=on_a_device(plant, c.batch_size // c.microbatches),
        length=c.max_length,
        chunk=c.head_chunk,
        gradient=device_bytes(plant.trained),
        gradients=1 if c.microbatches == 1 else 2,
    )

    def compile_update() -> Ahead:
        update = sft_program(plant.model, c, optimizer, plant.trained)
        mask = plant.array((c.batch_size, c.max_length), jnp.bool_)
        rows = plant.sequences(c.batch_size, c.max_length)
        return compile_ahead(update, state, rows, mask, frozen=plant.frozen, mesh=plant.mesh)

    held = Held(device_bytes(plant.policy), device_bytes(state.opt_state))
    key = plant.key("sft", c.batch_size, c.max_length, c.microbatches, c.head_chunk, c.optimizer, remat=True)
    yield Phase("sft: update", held, 0, work, key, compile_update)


def held_by(plant: Plant, step: StepShapes) -> Held:
    """What lies on the devices while experience is collected."""
    moments = step.state.opt_state, getattr(step.state, "critic", None)  # with the value model, if there is one
    return Held(*(device_bytes(part) for part in (plant.policy, moments, step.reference, step.experience)))


def _rl(plant: Plant) -> Iterator[Phase]:
    c = plant.config.rl
    sampling = abstract_sampling(c.sampling, c.num_generations, c.decode_rows, c.rollout_weights)
    algorithm = algorithm_of(c)
    optimizer = make_optimizer(c.optimizer, c.iterations * c.max_steps * c.num_iterations)
    programs = rl_programs(plant.model, c, sampling, algorithm, optimizer, plant.trained)
    step = step_shapes(plant, optimizer, programs.freeze, algorithm)
    scorers = abstract_scorers(plant)
    held = held_by(plant, step)._replace(reward_models=sum(device_bytes(scorer.params) for scorer in scorers))
    _, moments, copy, batch, models = held
    trained = device_bytes(plant.trained)
    scored = scoring_work(plant, rows=algorithm.rows)
    gradients = {"gradient": trained, "gradients": _gradients(c)}
    P = c.prompts_per_step // c.sample_parts
    drawn = sampling_work(plant, P, sampling)
    batch_settings = ("rl", c.prompts_per_step, plant.config.prompt.max_prompt_length)
    options = (c.importance_cap, c.importance_mode, c.entropy_coef)
    settings = (*batch_settings, sampling._replace(decode_rows=0, cache_block=0), c.algorithm, *options)
    scoring = (*settings, c.microbatches, c.length_buckets, c.head_chunk)
    twice = old_pass(c, algorithm)
    ahead = partial(compile_ahead, mesh=plant.mesh, longest=longest_decode(plant, P, sampling))

    yield Phase(
        "rl: sampling",
        held,
        moments + copy + batch + models,
        drawn,
        plant.key(*batch_settings, P, sampling, "sample", decode=True),
        partial(ahead, programs.sample, plant.policy, plant.prompts(P), step.state.key, 0),
    )
    for scorer in scorers:
        yield scores_phase(plant, "rl: scores of a reward model", held, scorer, step.rollout)
    if twice:
        yield Phase(
            "rl: old log-probabilities",
            held,
            moments + copy + batch + models,
            scored,
            plant.key(*scoring, "old"),
            partial(ahead, programs.logprobs, plant.policy, step.rollout),
        )
    if algorithm.reference:
        yield Phase(
            "rl: reference log-probabilities",
            held,
            trained + moments + batch + models,
            scored,
            plant.key(*scoring, "reference"),
            partial(ahead, programs.logprobs, attach(plant.frozen, step.reference), step.rollout),
        )
    yield Phase(
        "rl: update",
        held._replace(batch=0),
        copy + models,
        scored._replace(**gradients),
        plant.key(*scoring, "update", c.optimizer, twice, remat=True),
        partial(ahead, programs.update, step.state, step.experience, frozen=plant.frozen),
    )
    yield from continued_phases(plant, held, scorers)


def _gradients(c: RLConfig) -> int:
    """Copies of the gradient that exist at once: with parts, or sorted rows, one is made while one is added to."""
    return 1 if c.microbatches == 1 and c.length_buckets == 1 else 2


def _fused_rl(plant: Plant) -> Iterator[Phase]:
    """Sampling, scoring and updates live in one program, which takes all that the stage holds; its work is a step's."""
    c, n = plant.config.rl, plant.config.rl.fused_steps
    sampling = abstract_sampling(c.sampling, c.num_generations, c.decode_rows, c.rollout_weights)
    algorithm = algorithm_of(c)
    optimizer = make_optimizer(c.optimizer, c.iterations * c.max_steps * c.num_iterations)
    programs = rl_programs(plant.model, c, sampling, algorithm, optimizer, plant.trained)
    rewards = load_rewards(c.rewards)
    check_fused(c, rewards)
    slots = num_slots(c)
    program = fused_program(programs, plant.model, c, algorithm, rewards, optimizer, plant.trained, num_slots=slots)
    step = step_shapes(plant, optimizer, programs.freeze, algorithm)
    batches = plant.chunk(n, (step.rollout.prompts, column_shapes(rewards, c)))
    number, each = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((n,), jnp.int32)
    trained = {"gradient": device_bytes(plant.trained), "gradients": _gradients(c)}
    work = scoring_work(plant, rows=algorithm.rows)._replace(
        **trained, sampled=sampling_work(plant, c.prompts_per_step, sampling)
    )
    settings = (dataclasses.replace(c, source=None), sampling, slots, plant.config.prompt.max_prompt_length)
    yield Phase(
        "rl: fused steps",
        held_by(plant, step)._replace(batch=0),
        0,
        work,
        plant.key("fused", *settings, remat=True, decode=True),
        partial(
            compile_ahead,
            program,
            step.state,
            step.reference,
            *batches,
            number,
            number,
            each,
            frozen=plant.frozen,
            mesh=plant.mesh,
            longest=(1, *longest_decode(plant, c.prompts_per_step, sampling)),
        ),
    )


def _evaluation(plant: Plant) -> Iterator[Phase]:
    """The samples of each problem; greedy decoding has a row a problem and takes less."""
    config, c = plant.config, plant.config.evaluation
    held = Held(device_bytes(plant.policy))
    if config.rl is not None and config.rl.eval_steps:  # between steps, beside all that these need
        held = next(phase.held for phase in _rl(plant) if phase.name == "rl: sampling")
    sampling = abstract_sampling(c.sampling, c.num_samples, c.decode_rows)
    scorer = None if c.scorer is None else abstract_scorer(plant, c.scorer)
    if scorer is not None:
        held = held._replace(reward_models=held.reward_models + device_bytes(scorer.params))
    yield sampling_phase(plant, "evaluation", held, c.batch_prompts, sampling)
    if scorer is not None:
        rollout = rollout_shape(plant, c.batch_prompts, c.num_samples, c.sampling.max_completion_length)
        yield scores_phase(plant, "evaluation: scores of a reward model", held, scorer, rollout)


def scoring_work(plant: Plant, *, rows: int) -> Work:
    """A micro-batch of RL; `rows` of a group stay together. Raises `MicrobatchError`."""
    c = plant.config.rl
    P, G, M = c.prompts_per_step, c.num_generations, c.microbatches
    cut = group_cuts(P, G, M, rows=rows, shards=batch_shards(plant.mesh))
    at_once = on_a_device(plant, P * cut // M)
    prompts = at_once if c.length_buckets == 1 else on_a_device(plant, P)  # sorted rows: of all prompts
    return Work(
        rows=at_once * (G // cut),
        length=c.sampling.max_completion_length,
        prompts=prompts,
        prompt_length=plant.config.prompt.max_prompt_length,
        chunk=c.head_chunk,
    )
