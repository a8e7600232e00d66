"""Figure 7: Maj@K and Pass@K of the SFT policy and of the reinforced one, K to 64."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from grpo_jax.evaluation.estimators import Interval
from grpo_jax.reproduce.drawing import Line, Panel
from grpo_jax.reproduce.experiments import ARMS, BEST, Scale
from grpo_jax.reproduce.records import at_k, check_same_problems, samples_of
from grpo_jax.reproduce.results import Findings, Table, percent, points
from grpo_jax.reproduce.statistics import Verdict, nested_bootstrap, paired, rises, stays, together

MARGIN = 0.01  # a rise of Pass@K by at most one point is none
FAMILIES = {"maj": "Maj@K", "pass": "Pass@K"}
FEW = 4  # from so many votes on a majority can differ from a single sample

ByK = Mapping[int, Sequence[np.ndarray]]  # of each K: [seeds][problems]


class Compared(NamedTuple):
    """One K of one family, before and after."""

    family: str
    k: int
    before: Interval
    after: Interval
    difference: Interval


def findings(scale: Scale, out: Path) -> Findings:
    """Read the evaluations and say what came out. Raises `RecordError` if they are not of the same problems."""
    values: dict[str, dict[str, ByK]] = {}
    for who in ("sft", BEST):
        found = [samples_of(out / "figure7" / who / f"seed{seed}", "policy") for seed in scale.seeds]
        of_k = {k: [at_k(samples, k) for samples in found] for k in scale.ks}
        values[who] = {family: {k: [one[family] for one in of_k[k]] for k in scale.ks} for family in FAMILIES}
    for seed in scale.seeds:
        names = [f"figure7/{who}/seed{seed}" for who in ("sft", BEST)]
        check_same_problems([(name, samples_of(out / name, "policy")) for name in names])
    compared = [compare(family, k, values["sft"], values[BEST]) for family in FAMILIES for k in scale.ks]
    return Findings(
        name="figure7",
        title=f"Figure 7 in small ({scale.name}): Maj@K and Pass@K before and after {ARMS[BEST].title}",
        verdicts=verdicts(compared, scale.ks[-1]),
        remarks=[
            f"{scale.ks[-1]} samples of each of {len(values['sft']['pass'][1][0])} held-out problems at temperature 1, "
            f"by {len(scale.seeds)} reinforced policies and, with the same seeds, by the SFT policy. Each number is an "
            "exact expectation over all subsets of K samples.",
            "Intervals are of 95 %: bootstrap over seeds and problems; of differences, paired by both, the hull of it "
            "and t over seeds.",
        ],
        tables=[table(compared)],
        panels=[panel(compared, family) for family in FAMILIES],
        numbers={"compared": compared},
    )


def compare(family: str, k: int, before: Mapping[str, ByK], after: Mapping[str, ByK]) -> Compared:
    """One K of one family, with its intervals."""
    old, new = before[family][k], after[family][k]
    return Compared(family, k, nested_bootstrap(old), nested_bootstrap(new), paired(old, new))


def verdicts(compared: Sequence[Compared], most: int) -> list[str]:
    """Whether Maj@K rose and Pass@K did not, in words."""
    votes = [one for one in compared if one.family == "maj" and one.k >= FEW]
    (last,) = [one for one in compared if (one.family, one.k) == ("pass", most)]
    up: list[Verdict] = [rises(one.difference) for one in votes]
    flat, why = no_rise(last)
    said = [
        f"RL raises Maj@K and not Pass@K: {together([*up, flat])}.",
        f"Maj@K rises, for each K from {votes[0].k} to {votes[-1].k}: {together(up)} "
        f"({', '.join(f'K = {one.k} {points(one.difference)}' for one in votes)} points).",
        f"Pass@{most} rises by no more than {100 * MARGIN:g} point: {flat}{why} ({points(last.difference)} points).",
    ]
    passes = [one for one in compared if one.family == "pass"]
    if tail := list(itertools.takewhile(lambda one: one.difference.mean <= 0, reversed(passes))):
        said.append(f"From K = {tail[-1].k} on, the SFT policy has at least as much Pass@K as the reinforced one.")
    return said


def no_rise(last: Compared) -> tuple[Verdict, str]:
    """Whether Pass@K stays within the margin, and why not to be told where the SFT policy has no room to rise by it.

    A policy near 100 % cannot rise whatever RL does; only a clear fall is then told from no change.
    """
    if 1 - last.before.mean < MARGIN and last.difference.high >= 0:
        return "cannot be told", f", as the SFT policy has {100 * last.before.mean:.1f} % and less room than that"
    return stays(last.difference, MARGIN), ""


def table(compared: Sequence[Compared]) -> Table:
    """A row a K and family."""
    rows = [
        [FAMILIES[one.family].replace("K", str(one.k)), percent(one.before), percent(one.after), points(one.difference)]
        for one in compared
    ]
    return Table("Means over problems and seeds.", ("", "SFT", ARMS[BEST].title, "difference, points"), rows)


def panel(compared: Sequence[Compared], family: str) -> Panel:
    """Both policies over K."""
    own = [one for one in compared if one.family == family]
    lines = [
        Line("SFT", [(one.k, *one.before) for one in own], 1, dashed=True),
        Line(ARMS[BEST].title, [(one.k, *one.after) for one in own], 0),
    ]
    return Panel(FAMILIES[family], "K, number of samples", lines, logarithmic=True)
