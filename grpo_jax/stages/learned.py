"""Reward models inside the RL stage: opened from a run that trained them, and asked about whole rollouts at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.data.labelled import tokenizer_mark
from grpo_jax.data.steps import newline_tokens, step_ends
from grpo_jax.models.decoder import Decoder, DecoderConfig
from grpo_jax.models.fingerprint import model_fingerprint
from grpo_jax.models.hf import read_config
from grpo_jax.models.scores import Candidates, completion_scores
from grpo_jax.rewards.reward import Learned, Reward, RewardError, StepRewards
from grpo_jax.sharding import constrain
from grpo_jax.stages.convert_folder import check_model, load_model
from grpo_jax.stages.policy import decoder_options
from grpo_jax.stages.run import Run
from grpo_jax.training.step import join_rows, split_rows
from grpo_jax.types import Rollout

STAGE, CARD, MODEL = "reward_model", "reward_model.json", "model"


class RewardModel(NamedTuple):
    """A trained reward model as files."""

    folder: Path  # of the stage
    supervision: str
    candidates: Candidates | None

    @property
    def head(self) -> str:
        """The head of its decoder."""
        return "scalar" if self.candidates is None else "lm"


def find_reward_model(path: str | Path, tokenizer: Any) -> RewardModel:
    """The reward model of a run's output_dir, or of its stage; raises `RewardError` if none is there that fits."""
    folder = Path(path).expanduser()
    folder = folder / STAGE if (folder / STAGE / CARD).is_file() else folder
    if not (folder / CARD).is_file():
        raise RewardError(
            f"rewards: learned: {path} holds no {STAGE}/{CARD}; give the output_dir of a run whose {STAGE} stage is "
            "finished"
        )
    card = json.loads((folder / CARD).read_text("utf-8"))
    mine = tokenizer_mark(tokenizer)
    if card["tokenizer"] != mine:
        raise RewardError(
            f"rewards: learned: {folder} is of tokenizer {card['tokenizer']}, the policy's is {mine}: the same ids "
            "would be other text; train a reward model with the policy's tokenizer"
        )
    if card["step_tag"]:
        raise RewardError(
            f"rewards: learned: the reward model in {folder} scores behind a step tag, which a policy does not write; "
            "train one with reward_model.step_tag null"
        )
    return RewardModel(folder, card["supervision"], tuple(card["candidates"]) if card["candidates"] else None)


def check_learned(run: Run, rewards: Sequence[Reward]) -> str:
    """Refuse reward models that are not there or do not fit, before device memory is taken.

    -> what a checkpoint keeps of those of other runs; empty if there are none.
    """
    marks = []
    for reward in rewards:
        if reward.learned is None:
            continue
        if reward.learned.path is None:
            if run.config.reward_model is None:
                raise RewardError(
                    "rewards: learned: path is null, and this run has no section reward_model; write one, or give the "
                    "output_dir of a run that has trained a reward model"
                )
            trained = run.config.reward_model.supervision
            if (tag := run.config.reward_model.step_tag) is not None:
                raise RewardError(
                    f"rewards: learned: reward_model.step_tag is {tag!r}, which a policy does not write; set it to null"
                )
        else:
            found = find_reward_model(reward.learned.path, run.tokenizer)
            trained = found.supervision
            check_model(found.folder / MODEL, scorer_config(run, found), run.mesh)
            marks.append(model_fingerprint(found.folder / MODEL)["weights"])
        if reward.learned.steps and trained != "process":
            raise RewardError(
                f"rewards: learned: supervision is process, and the reward model learns from {trained} labels: its "
                "scores of single steps mean nothing; train one with reward_model.supervision process, or set outcome"
            )
    return "+".join(marks)


def reward_models(run: Run) -> list[dict[str, str]]:
    """The reward models of a run's reinforcement, and a fingerprint of each one's weights."""
    asked = [reward for reward in run.config.rl.rewards if reward.kind == "learned"]
    found = [find_reward_model(reward.path or run.directory, run.tokenizer) for reward in asked]
    return [
        {"folder": str(one.folder), "supervision": one.supervision, **model_fingerprint(one.folder / MODEL)}
        for one in found
    ]


def with_models(run: Run, rewards: Sequence[Reward], folder: Path | None = None) -> tuple[Reward, ...]:
    """The rewards, those that are learned with their models opened on the mesh.

    `folder` holds a reward model to be asked instead of the one that each names: what has become of it. A reward that
    is opened already keeps its compiled program, and has other weights.
    """

    def opened(reward: Reward) -> Reward:
        program = reward.scorer.func if isinstance(reward.scorer, partial) else None
        return reward._replace(scorer=open_scorer(run, reward.learned, folder, program))

    return tuple(reward if reward.learned is None else opened(reward) for reward in rewards)


def without_models(rewards: Sequence[Reward]) -> tuple[Reward, ...]:
    """The rewards without the weights of their models, to be opened again: of each its compiled program stays."""
    closed = (reward.scorer and partial(reward.scorer.func) for reward in rewards)
    return tuple(reward._replace(scorer=scorer) for reward, scorer in zip(rewards, closed, strict=True))


def open_scorer(run: Run, learned: Learned, folder: Path | None = None, program: Any = None) -> partial:
    """`Rollout -> [P, G]` of a reward model, compiled, with its weights on the mesh in the type they are used in.

    `program`, if given, is that of another model of the same form, compiled before.
    """
    found = find_reward_model(folder or learned.path or run.directory, run.tokenizer)
    config = scorer_config(run, found)
    params = load_model(found.folder / MODEL, config, run.mesh, dtype=config.dtype)
    run.note(f"rl: rewards from the {found.supervision} reward model in {found.folder}")
    return partial(program or scoring_program(run, Decoder(config), found.candidates, learned), params)


def scoring_program(run: Run, model: Decoder, candidates: Candidates | None, learned: Learned) -> Any:
    """`(params, Rollout) -> rewards [P, G]`, compiled once."""
    newline, ends = newline_tokens(run.tokenizer, run.model.config.vocab_size), run.eos_ids
    return jax.jit(
        partial(learned_rewards, model=model, candidates=candidates, learned=learned, newline=newline, ends=ends)
    )


def learned_rewards(
    params: Any,
    rollout: Rollout,
    *,
    model: Decoder,
    candidates: Candidates | None,
    learned: Learned,
    newline: Any,
    ends: tuple[int, ...],
) -> Array | StepRewards:
    """The rewards of a rollout, [P, G] f32, with those of its steps where each has its own.

    The policy's own tokens are scored, the prompt once a group. Index t of the scores describes the text up to and
    including token t. Of a completion that was cut, the last step has the reward of what is unfinished.
    """
    P, B = rollout.prompts.index.shape[0], rollout.completion_mask.shape[0]

    def part(rows: Rollout) -> Array:
        return completion_scores(model, params, rows.prompts, rows.completions, candidates=candidates)

    if learned.microbatches == 1:
        scores = part(rollout)
    else:
        scores = join_rows(jax.lax.map(part, split_rows(rollout, learned.microbatches)), P, B // P)
    mask = rollout.completion_mask
    at_ends = step_ends(rollout.completions.tokens, mask, newline, ends)  # [B, Tc]
    values = learned.value(scores)
    rewards = learned.whole(values, mask, at_ends)  # [B]
    if learned.unfinished is not None:
        rewards = jnp.where(rollout.finished, rewards, jnp.float32(learned.unfinished))
        last = mask & (jnp.cumsum(mask, -1) == mask.sum(-1, keepdims=True))
        values = jnp.where(last & ~rollout.finished[:, None], jnp.float32(learned.unfinished), values)
    rewards = constrain(rewards.reshape(P, B // P), "batch", None)
    if not learned.steps:
        return rewards
    steps = (x.reshape(P, B // P, -1) for x in (jnp.where(at_ends, values, 0.0), at_ends))
    return StepRewards(rewards, *(constrain(x, "batch", None, None) for x in steps))


def scorer_config(run: Run, found: RewardModel) -> DecoderConfig:
    """The decoder of a reward model, computed as the run's model is."""
    return read_config(found.folder / MODEL, **decoder_options(run.config), head=found.head)
