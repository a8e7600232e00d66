"""The phases about reward models: labelling by the policy, training, and asking one about whole rollouts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.config import ContinueConfig, LabelConfig, RewardModelConfig, SamplingConfig
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.folder import find_folder
from grpo_jax.models.hf import read_config
from grpo_jax.models.loading import with_matrices_in
from grpo_jax.models.parameters import abstract_params
from grpo_jax.models.scores import Candidates
from grpo_jax.rewards.reward import Learned, RewardError, load_reward
from grpo_jax.stages.ahead import Ahead, compile_ahead, device_bytes
from grpo_jax.stages.convert_folder import head_of_files
from grpo_jax.stages.learned import CARD, MODEL, STAGE, learned_rewards
from grpo_jax.stages.plant import Held, Phase, Plant, Work, abstract_sampling, on_a_device, sampling_phase
from grpo_jax.stages.policy import decoder_options
from grpo_jax.stages.programs import update_program
from grpo_jax.training.optimizer import make_optimizer
from grpo_jax.training.scoring import ScoreBatch, bradley_terry, cross_entropy, scoring_step
from grpo_jax.training.state import abstract_state
from grpo_jax.types import Rollout

TWO = (0, 1)  # which two tokens mean good and bad changes no shape
LINE_12 = "rl, line 12"  # what is done between two outer iterations, where the reward model goes on learning


class Scorer(NamedTuple):
    """A reward model that is asked, in abstract form."""

    config: DecoderConfig
    params: Any
    candidates: Candidates | None
    learned: Learned
    supervision: str  # what it learns: outcome, process or preference


def label_phases(plant: Plant) -> Iterator[Phase]:
    """What the stage `label` samples, beside nothing but the policy."""
    c = plant.config.label
    yield from _labelling(plant, "label", Held(device_bytes(plant.policy)), c, c.sampling, c.num_completions)


def _labelling(
    plant: Plant,
    stage: str,
    held: Held,
    c: LabelConfig | ContinueConfig,
    sampling: SamplingConfig,
    num_completions: int,
) -> Iterator[Phase]:
    """Solutions, and completions of their beginnings, whose prompts are as long as a whole solution may be."""
    solutions = abstract_sampling(sampling, c.num_solutions, c.decode_rows)
    yield sampling_phase(plant, stage, held, c.batch_prompts, solutions, what="solutions")
    if num_completions:
        longest = plant.config.prompt.max_prompt_length + sampling.max_completion_length
        completions = abstract_sampling(sampling, num_completions, c.decode_rows)
        yield sampling_phase(
            plant, stage, held, c.batch_prompts, completions, length=longest, what="completions of the longest"
        )


def reward_model_phases(plant: Plant) -> Iterator[Phase]:
    """The update; the policy stays beside it. Measuring on held-out solutions is a forward pass, and takes less."""
    c = plant.config.reward_model
    candidates = TWO if c.head == "two_token" else None
    objective = bradley_terry if c.supervision == "preference" else cross_entropy
    held, decoder = Held(device_bytes(plant.policy)), reward_model_decoder(plant, c)
    yield _learning(plant, "reward_model: update", held, decoder, candidates, objective, c)


def continued_phases(plant: Plant, held: Held, scorers: Sequence[Scorer]) -> Iterator[Phase]:
    """Line 12 of the algorithm, beside all that reinforcement holds: its reward models have given up their weights."""
    c = plant.config.rl.continue_reward_model
    if c is None:
        return
    held, model = held._replace(reward_models=0), scorers[0]
    num_completions = c.num_completions if model.supervision == "process" else 0
    yield from _labelling(plant, LINE_12, held, c, plant.config.rl.sampling, num_completions)
    decoder = dataclasses.replace(model.config, lora=None)
    yield _learning(plant, f"{LINE_12}: update", held, decoder, model.candidates, cross_entropy, c)


def _learning(
    plant: Plant,
    name: str,
    before: Held,
    decoder: DecoderConfig,
    candidates: Candidates | None,
    objective: Callable[..., Any],
    c: RewardModelConfig | ContinueConfig,
) -> Phase:
    """An update of a reward model, beside what was held `before` it was there."""
    params, optimizer = abstract_params(decoder, plant.mesh), make_optimizer(c.optimizer, c.max_steps)
    state = abstract_state(params, optimizer, plant.mesh)
    work = Work(
        rows=on_a_device(plant, c.batch_size // c.microbatches),
        length=c.max_length,
        gradient=device_bytes(params),
        gradients=2,  # parts are added to zeros, were it one part
    )
    step = partial(
        scoring_step,
        model=Decoder(decoder),
        candidates=candidates,
        objective=objective,
        optimizer=optimizer,
        microbatches=c.microbatches,
    )

    def compile_update() -> Ahead:
        shape = (c.batch_size, c.max_length)
        labels = (plant.array(shape, dtype) for dtype in (jnp.bool_, jnp.float32, jnp.int32))
        rows = ScoreBatch(plant.sequences(*shape), *labels)
        return compile_ahead(update_program(step, optimizer, params), state, rows, mesh=plant.mesh)

    moments = before.optimizer + device_bytes(state.opt_state)
    held = before._replace(optimizer=moments, reward_models=device_bytes(params))
    settings = (decoder, c.batch_size, c.max_length, c.microbatches, c.optimizer, candidates, objective)
    return Phase(name, held, sum(before), work, plant.key("reward_model", *settings, remat=True), compile_update)


def reward_model_decoder(plant: Plant, c: RewardModelConfig) -> DecoderConfig:
    """The decoder that section `reward_model` trains: of the model to start from, or the policy's, with its head."""
    base = plant.decoder
    if c.model_name_or_path is not None:
        head = head_of_files(find_folder(c.model_name_or_path))
        base = read_config(c.model_name_or_path, **decoder_options(plant.config), head=head)
    return dataclasses.replace(base, lora=None, head="lm" if c.head == "two_token" else "scalar")


def abstract_scorers(plant: Plant) -> list[Scorer]:
    """The reward models of reinforcement."""
    return [abstract_scorer(plant, reward) for reward in plant.config.rl.rewards if reward.kind == "learned"]


def abstract_scorer(plant: Plant, reward: Any) -> Scorer:
    """A reward `learned`: of this run's own reward model, or of that in a directory, of which no weight is read.

    Raises `RewardError` if there is neither.
    """
    learned, own = load_reward(reward).learned, plant.config.reward_model
    if learned.path is not None:
        config, candidates, supervision = _of_folder(plant, learned.path)
    elif own is not None:
        config, candidates = reward_model_decoder(plant, own), TWO if own.head == "two_token" else None
        supervision = own.supervision
    else:
        raise RewardError("rewards: learned: path is null, and there is no section reward_model; give one of them")
    params = with_matrices_in(abstract_params(config, plant.mesh), config.compute_dtype)
    return Scorer(config, params, candidates, learned, supervision)


def _of_folder(plant: Plant, path: str) -> tuple[DecoderConfig, Candidates | None, str]:
    folder = Path(path).expanduser()
    folder = folder / STAGE if (folder / STAGE / CARD).is_file() else folder
    if not (folder / CARD).is_file():
        raise RewardError(f"rewards: learned: {path} holds no {STAGE}/{CARD}, which a plan needs with its config.json")
    card = json.loads((folder / CARD).read_text("utf-8"))
    candidates = tuple(card["candidates"]) if card["candidates"] else None
    head = "scalar" if candidates is None else "lm"
    return read_config(folder / MODEL, **decoder_options(plant.config), head=head), candidates, card["supervision"]


def scores_phase(plant: Plant, name: str, held: Held, scorer: Scorer, rollout: Rollout) -> Phase:
    """A reward model is asked about a rollout."""
    rows, time = rollout.completion_mask.shape
    prompts, prompt_time = rollout.prompts.sequences.tokens.shape
    parts = scorer.learned.microbatches
    program = jax.jit(
        partial(
            learned_rewards,
            model=Decoder(scorer.config),
            candidates=scorer.candidates,
            learned=scorer.learned,
            newline=np.zeros(scorer.config.vocab_size, bool),
            ends=(0,),
        )
    )
    work = Work(
        rows=on_a_device(plant, rows // parts),
        length=time,
        prompts=on_a_device(plant, prompts // parts),
        prompt_length=prompt_time,
    )
    beside = sum(held) - device_bytes(scorer.params)
    # How a score becomes a reward is a number or two a token: what a program depends on is all but that.
    key = plant.key("scores", scorer.config, scorer.candidates, parts, scorer.learned.steps, rows, time, prompts)
    compile_scores = partial(compile_ahead, program, scorer.params, rollout, mesh=plant.mesh)
    return Phase(name, held, beside, work, key, compile_scores)
