"""The reward model goes on learning between outer iterations: line 12 of Algorithm 1 (arXiv:2402.03300, section 4.1.4).

    fresh problems -> solutions of the present policy -> labels -> training from the weights of before -> new scores

These are the stages `label` and `reward_model` once more, on other settings and in a directory of the iteration:

    rl/iteration_1/label/           solutions of the policy after iteration 1, and what is right of them
    rl/iteration_1/reward_model/    the reward model of iteration 2, with metrics and measures before and after

so that each iteration's files stay, and a run that is stopped or killed within goes on as those stages do.

The paper leaves open, and here it is so: it is done after all iterations but the last, behind which nobody would ask
the model again. Labels are what the answer says (an outcome model) or Math-Shepherd's, whose completer is the policy
itself. Old solutions are those that the model was first trained on, and those of all iterations before; 10 % is their
share in the mixture (`data/replay.py`). The optimizer begins anew: the moments and the ended schedule of another
mixture say nothing of this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax.config import Config, ContinueConfig, LabelConfig, RewardModelConfig
from grpo_jax.configure import ConfigError, kind_class
from grpo_jax.data.labelled import LabelError, Writing, is_held_out
from grpo_jax.data.order import OrderError, distinct_indices
from grpo_jax.reporting.metrics import read_metrics
from grpo_jax.rewards.reward import Learned, Reward, RewardError
from grpo_jax.stages import label, reward_model
from grpo_jax.stages.exploration import Stage
from grpo_jax.stages.learned import MODEL, RewardModel, find_reward_model, scorer_config, with_models, without_models
from grpo_jax.stages.run import Run
from grpo_jax.stages.sources import Selected
from grpo_jax.types import Problem, TrainState

KEY = "rl.continue_reward_model"
# Added to the run's seed: which problems are solved anew is drawn apart from the order of the steps.
FRESH = 2_000_039


class Continuation(NamedTuple):
    """What line 12 needs in every iteration."""

    learned: Learned
    reward: Reward  # which answers are right
    label: label.Programs
    model: reward_model.Programs


def check_continued(run: Run, rewards: Sequence[Reward], problems: Sequence[Problem]) -> None:
    """Refuse what line 12 cannot do, before device memory is taken; say what it will cost at most."""
    c: ContinueConfig | None = run.config.rl.continue_reward_model
    if c is None:
        if run.config.rl.iterations > 1 and any(reward.learned for reward in rewards):
            run.note(
                "rl: in each iteration the reference becomes the policy; the reward model stays as it is "
                f"({KEY} would be line 12 of the algorithm)"
            )
        return
    learned = the_learned(rewards)
    supervision = supervision_of(run, learned)
    if supervision == "preference":
        raise RewardError(
            f"{KEY}: the reward model learns preferences, and fresh solutions are labelled right or wrong; give one of "
            "supervision outcome or process"
        )
    if len(problems) < c.num_problems:
        raise OrderError(
            f"{KEY}.num_problems: {c.num_problems}, but rl.source has {len(problems)}; lower it, or give more problems"
        )
    if c.replay and c.old_labels is None and (learned.path is not None or run.config.reward_model is None):
        raise RewardError(
            f"{KEY}.old_labels is null, and the reward model is of another run, {learned.path}: say what it has learnt "
            "from, such as {kind: steps, path: .../label/labels.jsonl}, or set replay to 0"
        )
    label.check_batches(run, KEY, c, completions(c, supervision))
    run.check_batch(f"{KEY}.batch_size", c.batch_size)
    run.check_batch(f"each of {c.microbatches} {KEY}.microbatches", c.batch_size // c.microbatches)
    run.check_length(f"{KEY}.max_length", c.max_length)
    check_learnable(run, c, problems)
    label.answer_reward(run, KEY, c.reward)
    times, rl = run.config.rl.iterations - 1, run.config.rl
    each = label.cost("fresh solutions", c.num_problems, c.num_solutions, completions(c, supervision))
    run.note(
        f"rl: {times} time(s), after each {rl.max_steps} steps but the last, the reward model learns for {c.max_steps} "
        f"steps; {each}"
    )


def the_learned(rewards: Sequence[Reward]) -> Learned:
    """The one reward model of the rewards; raises `RewardError` if they ask several."""
    learned = [reward.learned for reward in rewards if reward.learned is not None]
    if len({each.path for each in learned}) > 1:
        raise RewardError(
            f"{KEY}: rl.rewards asks {len(learned)} reward models, of {', '.join(str(each.path) for each in learned)}; "
            "which is to go on learning is not said: leave one"
        )
    return learned[0]


def supervision_of(run: Run, learned: Learned) -> str:
    """What the reward model learns, before it is there."""
    if learned.path is None:
        return run.config.reward_model.supervision
    return find_reward_model(learned.path, run.tokenizer).supervision


def completions(c: ContinueConfig, supervision: str) -> int:
    """How many completions each beginning of a solution has: a model of outcomes needs none."""
    return c.num_completions if supervision == "process" else 0


def folder_of(run: Run, times: int | None) -> Path | None:
    """Where the reward model is that has learnt in so many iterations; None: where the reward says."""
    return run.stage("rl") / f"iteration_{times}" if times else None


def open_rewards(stage: Stage, start: int) -> Stage:
    """The stage with its reward models opened, as they were after so many steps.

    Right after the last step of an iteration, line 12 is still to come.
    """
    run, c = stage.run, stage.run.config.rl
    times = None if c.continue_reward_model is None else max(start - 1, 0) // c.max_steps
    return stage._replace(rewards=with_models(run, stage.rewards, folder_of(run, times)), continued=times)


def close_rewards(stage: Stage) -> Stage:
    """The stage without the weights of its reward models; the compiled programs stay."""
    return stage._replace(rewards=without_models(stage.rewards))


def open_continuation(run: Run, rewards: Sequence[Reward]) -> Continuation | None:
    """What line 12 needs, or None if the reward model stays as it is. Nothing is compiled yet."""
    c = run.config.rl.continue_reward_model
    if c is None:
        return None
    learned = the_learned(rewards)
    this = part_of(run, learned, 1)
    return Continuation(
        learned=learned,
        reward=label.answer_reward(run, KEY, c.reward),
        label=label.open_programs(this),
        model=reward_model.open_programs(this, prepared_model(this, 1)),
    )


def part_of(run: Run, learned: Learned, iteration: int) -> Run:
    """The run as the stages `label` and `reward_model` see it that are a part of reinforcement."""
    folder = run.stage("rl") / f"iteration_{iteration}"
    before = find_reward_model(folder_of(run, iteration - 1) or learned.path or run.directory, run.tokenizer)
    config = settings(run.config, before, folder)
    return run.part(config, folder)


def settings(config: Config, before: RewardModel, folder: Path) -> Config:
    """The sections `label` and `reward_model` of an iteration, of which `before` is the reward model.

    Trackers are the reinforcement's, which go on meanwhile; the numbers are in metrics.jsonl.
    """
    c, rl = config.rl.continue_reward_model, config.rl
    both = ("reward", "num_solutions", "batch_prompts", "decode_rows")
    more = ("replay", "target", "held_out", "max_steps", "batch_size", "max_length", "packing", "microbatches")
    of_model = (*more, "optimizer", "logging_steps", "save_steps")
    return dataclasses.replace(
        config,
        label=LabelConfig(
            source=rl.source,
            sampling=rl.sampling,
            num_completions=completions(c, before.supervision),
            **{name: getattr(c, name) for name in both},
        ),
        reward_model=RewardModelConfig(
            labels=steps_in(folder),
            model_name_or_path=str(before.folder / MODEL),
            supervision=before.supervision,
            head="scalar" if before.candidates is None else "two_token",
            eval_steps=0,
            **{name: getattr(c, name) for name in of_model},
        ),
        report_to=(),
    )


def steps_in(folder: Path) -> Any:
    """The labelled solutions of an iteration, as a source of labels."""
    return kind_class("data.labels", "steps")(path=str(folder / "label" / "labels.jsonl"))


def old_labels(run: Run, iteration: int) -> tuple[Any, ...]:
    """All labelled solutions of before: what the model was first trained on, and those of the iterations since."""
    c, first = run.config.rl.continue_reward_model, run.config.reward_model
    if not c.replay:
        return ()
    begun = (c.old_labels,) if c.old_labels else (first.labels or reward_model.own_labels(run), first.old_labels)
    since = (steps_in(folder_of(run, times)) for times in range(1, iteration))
    return (*(labels for labels in begun if labels is not None), *since)


def prepared_model(this: Run, iteration: int, old: tuple[Any, ...] = ()) -> reward_model.Prepared:
    """What the stage `reward_model` needs: the form is that of the model which goes on."""
    found = find_reward_model(Path(this.config.reward_model.model_name_or_path).parent, this.tokenizer)
    decoder = scorer_config(this, found)
    writing = Writing(this.config.prompt, this.tokenizer, this.eos_ids[0])
    return reward_model.Prepared(
        decoder, decoder, found.candidates, writing, reward_model.Continued(iteration, old), KEY
    )


def continue_reward_model(
    stage: Stage, c: Continuation, state: TrainState, step: int
) -> tuple[Stage, dict[str, float]]:
    """Line 12 after so many steps: the stage with rewards by the new model, and its measures before and after.

    The policy stays as it is. What is done already, of a run that was stopped here, is not done again.
    """
    run, settings_ = stage.run, stage.run.config.rl.continue_reward_model
    iteration = step // run.config.rl.max_steps
    this = part_of(run, c.learned, iteration)
    run.note(f"rl: iteration {iteration} is over after step {step}; the reward model goes on learning")
    problems = fresh_problems(run, stage.problems, iteration)
    about = label.record(this, problems) | {"policy": f"rl, step {step}"}

    def tell(what: str, count: int) -> None:
        stage.events.write(12, step, part=what, count=count)

    labelled = label.train(
        this,
        lambda: state.params,
        label.Prepared(problems, c.reward, about, iteration),
        c.label,
        lambda count: tell("fresh solutions", count),
    )
    tell("labels", labelled.solutions)
    if this.finished_step("reward_model") is None:
        prepared = prepared_model(this, iteration, old_labels(run, iteration))
        reward_model.train(this, lambda: state.params, prepared, c.model)
    tell("training", settings_.max_steps)
    rewards = with_models(run, stage.rewards, folder_of(run, iteration))
    return stage._replace(rewards=rewards, continued=iteration), measures(this)


def fresh_problems(run: Run, problems: Sequence[Problem], iteration: int) -> Selected:
    """The problems that are solved anew after an iteration."""
    count, seed = run.config.rl.continue_reward_model.num_problems, run.config.seed + FRESH
    return Selected(problems, distinct_indices(len(problems), count, seed=seed, step=iteration - 1))


def check_learnable(run: Run, c: ContinueConfig, problems: Sequence[Problem]) -> None:
    """Refuse rows that are too short for what the policy may write, and to hold out all problems of an iteration."""
    asked, written = run.config.prompt.max_prompt_length, run.config.rl.sampling.max_completion_length
    if c.max_length < asked + written:
        raise ConfigError(
            f"{KEY}.max_length: {c.max_length} tokens, but a prompt has up to {asked}, a completion up to {written}: "
            f"the reward model would not learn from the longest; raise it to {asked + written}"
        )
    for iteration in range(1, run.config.rl.iterations):
        fresh = fresh_problems(run, problems, iteration)
        if all(is_held_out(problem.question, c.held_out, run.config.seed) for problem in fresh):
            raise LabelError(
                f"{KEY}.held_out: {c.held_out} leaves none of the {len(fresh)} problems of iteration {iteration} to "
                f"learn from; lower it, or raise {KEY}.num_problems"
            )


def measures(this: Run) -> dict[str, float]:
    """What was measured on held-out fresh solutions, of the model of before and of the one that has learnt."""
    path = this.stage("reward_model") / "metrics.jsonl"
    lines = [line for line in (read_metrics(path) if path.is_file() else []) if "eval/loss" in line]
    found = {}
    for word, line in zip(("before", "after"), (lines[0], lines[-1]) if lines else (), strict=False):
        for key, value in line.items():
            if key.startswith("eval/") and value is not None:
                found[f"reward_model/{key.removeprefix('eval/')}_{word}"] = value
    return found
