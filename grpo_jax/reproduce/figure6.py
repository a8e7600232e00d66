"""Figure 6: iterative GRPO, by outer iteration, and as many steps without a new reference and reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grpo_jax.evaluation.estimators import Interval
from grpo_jax.reproduce.drawing import Line, Panel
from grpo_jax.reproduce.experiments import ITERATIONS, ITERATIVE, Scale
from grpo_jax.reproduce.records import (
    Curve,
    RecordError,
    Samples,
    check_same_problems,
    curve_of,
    refreshes,
    reward_curve,
    samples_of,
    share_right,
    spent,
    spent_beside,
)
from grpo_jax.reproduce.results import Findings, Table, percent, points
from grpo_jax.reproduce.statistics import paired, rises, t_interval


class Run(NamedTuple):
    """One arm from one seed."""

    curve: Curve
    after: Samples
    rewards: list[tuple[int, float]]  # step and mean reward in training, a mean over some steps each
    refreshes: list[tuple[float, float]]  # AUC of the reward model on fresh solutions, before and after it learnt
    spent: dict[str, float]  # completions, generated_tokens, optimizer_steps, ... of the rl stage
    beside: dict[str, float]  # the same of line 12, which has the reward model go on


def findings(scale: Scale, out: Path) -> Findings:
    """Read the runs and say what came out. Raises `RecordError` for runs that cannot be compared in pairs."""
    runs = {name: [read(out / "figure6" / name / f"seed{seed}") for seed in scale.seeds] for name in ITERATIVE}
    for number, seed in enumerate(scale.seeds):
        check_same_problems([(f"figure6/{name}/seed{seed}", runs[name][number].after) for name in ITERATIVE])
    measure = f"mean@{runs['once'][0].after.right.shape[1]}"
    borders = [scale.iteration_steps * number for number in range(ITERATIONS + 1)]
    at = {name: np.array([at_steps(run.curve, measure, borders) for run in of]) for name, of in runs.items()}
    ahead = paired(*([share_right(run.after) for run in runs[name]] for name in ("once", "iterative")))
    return Findings(
        name="figure6",
        title=f"Figure 6 in small ({scale.name}): {ITERATIONS} outer iterations of GRPO with process supervision",
        verdicts=verdicts(at, ahead, more_tokens(runs), measure),
        remarks=[*remarks(scale), taken(runs), *reward_models(runs["iterative"])],
        tables=[table(at, borders)],
        panels=[accuracy(runs, measure, borders), reward(runs, borders)],
        numbers={"by iteration": {name: rows.tolist() for name, rows in at.items()}, "iterative - once": ahead}
        | {name: {"curves": [run.curve for run in of]} for name, of in runs.items()},
    )


def read(run: Path) -> Run:
    """The records of one arm from one seed."""
    rewards, measured = reward_curve(run), refreshes(run, "auc")
    return Run(curve_of(run), samples_of(run, "after"), rewards, measured, spent(run), spent_beside(run))


def at_steps(curve: Curve, measure: str, steps: Sequence[int]) -> list[float]:
    """The values of a curve at some steps; raises `RecordError` for one at which nothing was measured."""
    known = dict(zip(curve.steps, curve.values[measure], strict=True))
    if missing := set(steps) - set(known):
        raise RecordError(f"nothing was measured at step {min(missing)}; rl.eval_steps must divide rl.max_steps")
    return [known[step] for step in steps]


def verdicts(at: Mapping[str, np.ndarray], ahead: Interval, more: float, measure: str) -> list[str]:
    """Which of the paper's claims held, in words; `at` [seeds, borders], `more` tokens than without a refresh.

    Later steps bring less by themselves, so gains are told over those of the arm without a refresh at these steps too.
    """
    gains, over = (np.diff(rows, axis=1) for rows in (at["iterative"], at["iterative"] - at["once"]))
    first, later = t_interval(gains[:, 1] - gains[:, 2]), t_interval(gains[:, 0] - gains[:, 1])
    beside = t_interval(over[:, 1] - over[:, 2])
    said = [
        f"Of the iterations with a new reference and reward model the first helps more than the second, by {measure}: "
        f"{rises(first)} ({points(first)} points).",
        f"So it does by what each gains over the same steps without a refresh: {rises(beside)} ({points(beside)} "
        "points).",
        f"The round before them, Iteration-0 from the SFT policy, helps more than the first: {rises(later)} "
        f"({points(later)} points).",
    ]
    for number, column in enumerate(gains.T):
        gain = t_interval(column)
        said.append(f"Iteration-{number} improves the policy: {rises(gain)} ({points(gain)} points).")
    said.append(
        f"At equal steps of the policy, with {more:,.0f} more tokens for the reward model, iterating is better than "
        f"going on with the first reference and reward model: {rises(ahead)} ({points(ahead)} points)."
    )
    return said


def remarks(scale: Scale) -> list[str]:
    """How it was made."""
    c = scale.line_12
    return [
        f"Each iteration: {scale.iteration_steps} updates; then the reference becomes the policy, and the reward model "
        f"learns for {c['max_steps']} updates from Math-Shepherd labels of fresh solutions of {c['num_problems']} "
        "problems, made by the policy itself, with 10 % of the old ones.",
        f"Seeds: {len(scale.seeds)}. Intervals are of 95 %: t over seeds; of the last claim, of differences paired by "
        "seed and problem, the hull of t over seeds and bootstrap over seeds and problems.",
    ]


def more_tokens(runs: Mapping[str, Sequence[Run]]) -> float:
    """Tokens that the reward model's further training had generated, more than in the arm without, mean over seeds."""
    each = {name: np.mean([run.beside["generated_tokens"] for run in of]) for name, of in runs.items()}
    return float(each["iterative"] - each["once"])


def taken(runs: Mapping[str, Sequence[Run]]) -> str:
    """What the arms took, by the runs' ledgers: for the policy, and for the reward model between iterations."""
    said = []
    for name, of in runs.items():
        took, more = (
            {what: f"{np.mean([counts[what] for counts in each]):,.0f}" for what in of[0].spent}
            for each in ([run.spent for run in of], [run.beside for run in of])
        )
        said.append(
            f"{ITERATIVE[name]} {took['optimizer_steps']} updates of the policy, {took['completions']} completions, "
            f"{took['generated_tokens']} generated tokens; for the reward model {more['completions']} more "
            f"completions, {more['generated_tokens']} tokens, {more['optimizer_steps']} of its updates"
        )
    return "Taken, mean over seeds: " + "; ".join(said) + "."


def reward_models(of: Sequence[Run]) -> list[str]:
    """How well the reward model judged what the policy wrote by then, and what it gained by learning from it.

    Raises `RecordError` if the seeds' runs have not had as many refreshes.
    """
    said = []
    counts = [len(run.refreshes) for run in of]
    if len(set(counts)) > 1:
        raise RecordError(
            f"the runs of {ITERATIVE['iterative']} measured {', '.join(map(str, counts))} refreshes of the reward "
            "model, by seed; run them again in a new output directory"
        )
    for number, each in enumerate(zip(*(run.refreshes for run in of), strict=True)):
        known = [pair for pair in each if np.isfinite(pair).all()]  # an AUC wants good and bad steps
        before, after = np.mean(known, axis=0) if known else (np.nan, np.nan)
        some = "" if len(known) == len(each) else f" Measured for {len(known)} of {len(each)} seeds."
        said.append(
            f"After Iteration-{number} the reward model's AUC on steps of fresh solutions, by their Math-Shepherd "
            f"labels, was {before:.3f}; after learning from others {after:.3f}.{some}"
        )
    return said


def table(at: Mapping[str, np.ndarray], borders: Sequence[int]) -> Table:
    """A row an iteration."""
    rows = []
    for number, step in enumerate(borders):
        gain = points(t_interval(np.diff(at["iterative"], axis=1)[:, number - 1])) if number else "-"
        other = percent(t_interval(at["once"][:, number]))
        name = f"Iteration-{number - 1}" if number else "SFT policy"
        rows.append([name, str(step), percent(t_interval(at["iterative"][:, number])), gain, other])
    headers = ("after", "step", ITERATIVE["iterative"], "gain, points", ITERATIVE["once"])
    return Table("Held-out accuracy, mean over seeds and its t-interval.", headers, rows)


def accuracy(runs: Mapping[str, Sequence[Run]], measure: str, borders: Sequence[int]) -> Panel:
    """Held-out accuracy over steps, with the iterations' borders."""
    lines = []
    for number, (name, of) in enumerate(runs.items()):
        values = np.array([run.curve.values[measure] for run in of])  # [seeds, points]
        shown = [(step, *t_interval(column)) for step, column in zip(of[0].curve.steps, values.T, strict=True)]
        lines.append(Line(ITERATIVE[name], shown, number, dashed=name == "once"))
    return Panel(f"held out, {measure}", "steps", lines, marks=borders[1:-1])


def reward(runs: Mapping[str, Sequence[Run]], borders: Sequence[int]) -> Panel:
    """What the reward model says of the completions in training: where it rises alone, it is exploited."""
    lines = []
    for number, (name, of) in enumerate(runs.items()):
        values = np.array([[value for _, value in run.rewards] for run in of])  # [seeds, points]
        steps = [step for step, _ in of[0].rewards]
        shown = [(step, *t_interval(column)) for step, column in zip(steps, values.T, strict=True)]
        lines.append(Line(ITERATIVE[name], shown, number, dashed=name == "once"))
    return Panel("score by the reward model, in training", "steps", lines, marks=borders[1:-1])
