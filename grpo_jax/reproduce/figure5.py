"""Figure 5: RFT, online RFT, GRPO with outcome and with process supervision, from one SFT policy at equal budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.evaluation.estimators import Interval
from grpo_jax.reproduce.drawing import Line, Panel
from grpo_jax.reproduce.experiments import ARMS, BESIDE, ORDER, RULES, STEM, Scale, arm_job
from grpo_jax.reproduce.records import (
    Curve,
    Samples,
    beta_of,
    check_same_problems,
    curve_of,
    last_of,
    mistakes_of,
    reward_model_of,
    risen_since,
    samples_of,
    share_right,
    spent,
)
from grpo_jax.reproduce.results import Findings, Table, percent, points
from grpo_jax.reproduce.statistics import Link, nested_bootstrap, ordering, rises, t_interval, together

WATCHED = ("reward", "kl", "frac_reward_zero_std", "entropy", "completions/clipped_ratio")
STEPS, TOKENS = "steps", "thousands of generated tokens"
FALL = 0.02  # below its best by more than this, while the score rose: a policy exploits its reward model


class Run(NamedTuple):
    """One arm from one seed."""

    path: Path
    beta: float  # of the KL penalty
    curve: Curve
    before: Samples
    after: Samples
    metrics: dict[str, float]  # first/reward, last/reward, ...
    spent: dict[str, float]  # completions, generated_tokens, optimizer_steps, ... of the rl stage
    unknown: tuple[float, float]  # before and after: share of the wrong solutions with a mistake that no student makes


def findings(scale: Scale, out: Path) -> Findings:
    """Read the runs and say what came out. Raises `RecordError` for runs that cannot be compared in pairs."""
    runs = {name: [read(out, name, scale, seed) for seed in scale.seeds] for name in ARMS}
    for number, seed in enumerate(scale.seeds):
        check_same_problems([(f"figure5/{name}/seed{seed}", runs[name][number].after) for name in ARMS])
    finals = {name: [share_right(run.after) for run in of] for name, of in runs.items()}
    links = ordering(ORDER, [finals[name] for name in ORDER])
    beside = [link for pair in BESIDE for link in ordering(pair, [finals[name] for name in pair])]
    measure = f"mean@{runs[ORDER[0]][0].after.right.shape[1]}"
    judged = reward_model_of(out / STEM)
    return Findings(
        name="figure5",
        title=f"Figure 5 in small ({scale.name}): methods from one SFT policy, at equal budgets",
        verdicts=verdicts(links, beside, runs, measure),
        remarks=[*budget(runs, scale), *reward_model(judged), *causes(runs, measure)],
        tables=[arms_table(runs, finals, measure), links_table([*links, *beside])],
        panels=[panel(runs, measure, STEPS), panel(runs, measure, TOKENS), panel(runs, "greedy", STEPS)],
        numbers=numbers(runs, finals, [*links, *beside], measure) | {"reward_model": judged},
    )


def read(out: Path, name: str, scale: Scale, seed: int) -> Run:
    """The records of one arm from one seed."""
    run = out / arm_job(name, scale, seed, out).name
    before, after = (samples_of(run, when) for when in ("before", "after"))
    found = [mistakes_of(run, when) for when in ("before", "after")]
    unknown = tuple(one.others if one else 0.0 for one in found)
    return Run(run, beta_of(run), curve_of(run), before, after, last_of(run, WATCHED), spent(run), unknown)


def verdicts(
    links: Sequence[Link], beside: Sequence[Link], runs: Mapping[str, Sequence[Run]], measure: str
) -> list[str]:
    """Which of the paper's orderings held, in words."""
    whole = together([link.verdict for link in links])
    names = " < ".join(ARMS[name].title for name in ORDER)
    said = [f"{names}, at the end of training, by {measure} on held-out problems: {whole}."]
    said += [f"{sentence(link)}" for link in links]
    said.append("With rewards that are never wrong: " + " ".join(sentence(link) for link in beside))
    greedy = {name: [[run.curve.values["greedy"][-1]] for run in runs[name]] for name in ORDER}  # [seeds][1]
    asked = len(runs[ORDER[0]][0].after.problems)
    by_greedy = [with_problems(link, greedy, asked) for link in ordering(ORDER, [greedy[name] for name in ORDER])]
    said.append("By greedy accuracy, paired by seed: " + " ".join(sentence(link) for link in by_greedy))
    means = {name: f"{100 * np.mean(values):.1f} %" for name, values in greedy.items()}
    said.append(f"By greedy accuracy the order of the means is {in_order(means)}.")
    return said


def with_problems(link: Link, shares: Mapping[str, Sequence[Sequence[float]]], asked: int) -> Link:
    """A link between shares of right problems [seeds][1] whose interval holds the error of the problems asked too.

    Of greedy solutions only the share is known and not which are right, so the errors of both arms are taken as
    independent, which is wider than pairs are: half = 1.96 sqrt(sum of p (1 - p) / asked) / seeds.
    """
    p = np.array([shares[link.lower], shares[link.higher]])  # [2, seeds, 1]
    half = 1.96 * float(np.sqrt((p * (1 - p)).sum() / asked)) / p.shape[1]
    mean, low, high = link.difference
    difference = Interval(mean, min(low, mean - half), max(high, mean + half))
    return link._replace(difference=difference, verdict=rises(difference))


def in_order(means: Mapping[str, str]) -> str:
    """Arms by their means, `RFT (12.5 %) = Online RFT (12.5 %) < GRPO+OS (54.2 %)`; equal is what is shown as equal."""
    first, *others = sorted(means, key=lambda name: float(means[name].split()[0]))
    said, last = f"{ARMS[first].title} ({means[first]})", first
    for name in others:
        said += f" {'=' if means[name] == means[last] else '<'} {ARMS[name].title} ({means[name]})"
        last = name
    return said


def sentence(link: Link) -> str:
    """`RFT < Online RFT: held (+3.1 [1.0, 5.2] points).`"""
    lower, higher = ARMS[link.lower].title, ARMS[link.higher].title
    return f"{lower} < {higher}: {link.verdict} ({points(link.difference)} points)."


def budget(runs: Mapping[str, Sequence[Run]], scale: Scale) -> list[str]:
    """What each arm was given, by the runs' ledgers."""
    each = [run.spent for of in runs.values() for run in of]

    def between(name: str) -> str:
        low, high = (int(end(one[name] for one in each)) for end in (min, max))
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    return [
        f"Budget of each run: {between('optimizer_steps')} updates, {between('completions')} completions, "
        f"{between('generated_tokens')} generated tokens. Seeds: {len(scale.seeds)}.",
        "Learning rate: the same for all arms, that of the file, not searched for each. Beta, the coefficient of the "
        "KL penalty, is in the table; in the paper RFT and online RFT have none, and GRPO has 0.04.",
        "Intervals are of 95 %: t over seeds in bands and in the columns marked t; of paired differences, in the "
        "orderings, the hull of t over seeds and bootstrap over seeds and problems. An ordering held if its whole "
        "interval is above 0; from one seed it cannot be told.",
    ]


def reward_model(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """How good the reward model is where the truth is known, by the keys of `reward_model_of`."""
    labels, held, truth = found["labels"], found["held_out"], found["labels beside the truth"]
    # A weak SFT policy may write no good step, and a strong one no bad step.
    called = [f"{truth[kind]:.1%} of the really {kind} steps" for kind in ("good", "bad") if kind in truth]
    return [
        f"Labels by the SFT policy itself: {labels['solutions']} solutions, {labels['right_solutions']:.1%} right; "
        f"{labels['steps']} steps, {labels['hard']:.1%} good by the hard estimate; {labels['completions']} completions "
        f"sampled for them. They call good: {', '.join(called)}.",
        f"Process reward model on held-out steps of which the truth is known: {quality(held)}.",
    ]


def quality(held: Mapping[str, float]) -> str:
    """The measures of held-out steps in words, which say what there was none of: good or bad steps, or any."""
    if not held:
        return "not measured, as none are held out"
    area = f"AUC {held['auc']:.4f}" if "auc" in held else "no AUC, as these are all good or all bad"
    flawed = f"{held['first_error/flawed']:.1%} of those with one" if "first_error/flawed" in held else "none has one"
    return (
        f"{area}, accuracy {held['accuracy']:.1%}, first error found in {held['first_error']:.1%} of the solutions "
        f"({flawed})"
    )


def causes(runs: Mapping[str, Sequence[Run]], measure: str) -> list[str]:
    """What of the runs may explain an order: scores that rise while answers get worse, groups without signal."""
    said = []
    for name, of in runs.items():
        curve = np.mean([run.curve.values[measure] for run in of], axis=0)
        if ARMS[name].reward not in RULES and curve.max() - curve[-1] > FALL:
            at = of[0].curve.steps[int(curve.argmax())]
            fell = f"{ARMS[name].title} fell from {100 * curve.max():.1f} % at step {at} to {100 * curve[-1]:.1f} %"
            said.append(fell + why_it_fell(of, at))
    dead = {name: mean_of("last/frac_reward_zero_std", of) for name, of in runs.items()}
    shares = ", ".join(f"{ARMS[name].title} {written(share, '.0%')}" for name, share in dead.items())
    return [*said, f"Groups whose rewards are all equal, in the last tenth of the steps: {shares}."]


def why_it_fell(of: Sequence[Run], at: int) -> str:
    """The rest of a sentence on an arm that fell after its step `at`: each cause only if t-intervals of seeds show it.

    A policy that exploits its reward model has rising scores while its answers get worse, so what counts is the rise
    from the best step on. That it found mistakes which the model had hardly met is one way to do so.
    """
    rise = t_interval([risen_since(run.path, at) for run in of])
    scored = f"{rise.mean:+.3f}" + (f" [{rise.low:+.3f}, {rise.high:+.3f}]" if len(of) > 1 else "")
    if rises(rise) != "held":
        return (
            f"; the reward model's score of its completions has not clearly risen from there on ({scored}): that it "
            "has learnt the model's mistakes cannot be told."
        )
    more = t_interval([run.unknown[1] - run.unknown[0] for run in of])
    then, now = (f"{share:.0%}" for share in np.mean([run.unknown for run in of], axis=0))
    return (
        f" while the reward model's score of its completions rose from there on ({scored}): it has learnt the model's "
        f"mistakes. Of its wrong solutions {now} begin with a mistake that no student makes, of the SFT policy's {then}"
        + (
            f", {points(more)} points: the reward model had hardly met these."
            if rises(more) == "held"
            else f", {points(more)} points, which is no clear rise: the cause is not in new kinds of mistakes."
        )
    )


def mean_of(metric: str, of: Sequence[Run]) -> float:
    """The mean over seeds of what `last_of` has found; nan if one has no such number, as of rewards that judge none."""
    return float(np.mean([run.metrics.get(metric, np.nan) for run in of]))


def written(value: float, form: str) -> str:
    """A number in some format; `-` where there is none."""
    return "-" if np.isnan(value) else format(value, form)


def arms_table(runs: Mapping[str, Sequence[Run]], finals: Mapping[str, Any], measure: str) -> Table:
    """A row an arm."""
    rows = []
    for name, of in runs.items():
        start = t_interval([share_right(run.before).mean() for run in of])
        rows.append(
            [
                ARMS[name].title,
                " ".join(sorted({f"{run.beta:g}" for run in of})),
                f"{100 * start.mean:.1f} %",
                percent(t_interval([row.mean() for row in finals[name]])),
                percent(nested_bootstrap(finals[name])),
                percent(t_interval([run.curve.values["greedy"][-1] for run in of])),
                written(mean_of("last/reward", of), ".3f"),
                written(mean_of("last/kl", of), ".3f"),
                f"{np.mean([run.unknown[1] for run in of]):.0%}",
                f"{np.mean([run.spent['generated_tokens'] for run in of]):,.0f}",
            ]
        )
    headers = (
        "arm|beta|before|"
        + f"{measure}, t over seeds|{measure}, bootstrap|greedy, t over seeds|reward at the end|KL|new mistakes|tokens"
    )
    caption = (
        "Held-out accuracy at the end of training, mean over seeds. New mistakes: share of the wrong solutions whose "
        "first mistake is not a carry or borrow forgotten, which is what the students and so the SFT policy do. Beta: "
        "coefficient of the KL penalty; the paper's GRPO has 0.04."
    )
    return Table(caption, headers.split("|"), rows)


def links_table(links: Sequence[Link]) -> Table:
    """A row an ordering."""
    rows = [
        [f"{ARMS[link.lower].title} < {ARMS[link.higher].title}", points(link.difference), link.verdict]
        for link in links
    ]
    return Table(
        "Orderings: difference in points, paired by seed and problem.", ("claim", "difference", "verdict"), rows
    )


def panel(runs: Mapping[str, Sequence[Run]], metric: str, x: str) -> Panel:
    """Accuracy over steps, or over thousands of generated tokens: a line an arm with its t-interval over seeds."""
    lines = []
    for number, (name, of) in enumerate(runs.items()):
        tokens = np.mean([run.curve.tokens for run in of], axis=0) / 1000
        at = of[0].curve.steps if x == STEPS else tokens
        values = np.array([run.curve.values[metric] for run in of])  # [seeds, points]
        shown = [(float(place), *t_interval(column)) for place, column in zip(at, values.T, strict=True)]
        lines.append(Line(ARMS[name].title, shown, number, dashed=name not in ORDER))
    return Panel(f"held out, {metric}", x, lines)


def numbers(
    runs: Mapping[str, Sequence[Run]], finals: Mapping[str, Any], links: Sequence[Link], measure: str
) -> dict[str, Any]:
    """Every number, by arm and seed."""
    arms = {
        name: {
            "curves": [run.curve for run in of],
            f"final {measure} by seed": [float(row.mean()) for row in finals[name]],
            "metrics by seed": [run.metrics for run in of],
            "ledger by seed": [run.spent for run in of],
        }
        for name, of in runs.items()
    }
    return {"arms": arms, "orderings": links}
