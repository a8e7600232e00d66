"""What finished runs say: curves, verdicts on each sample, the reward model's measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.configure import find, kind_class
from grpo_jax.configure.documents import read
from grpo_jax.data.labels.arithmetic import true_labels
from grpo_jax.evaluation.estimators import majority_at_k, mean_at_n, pass_at_k
from grpo_jax.evaluation.voting import classes
from grpo_jax.reporting.ledger import read_ledger, totals
from grpo_jax.reporting.metrics import read_metrics
from grpo_jax.reproduce.mistakes import Mistakes, mistakes

HELD_OUT, TOKENS = "eval/", "total/generated_tokens"


class Curve(NamedTuple):
    """Held-out accuracy of one run as it trained."""

    steps: tuple[int, ...]  # from 0, the policy that the run began with
    tokens: tuple[int, ...]  # generated until then, evaluation left out
    values: dict[str, tuple[float, ...]]  # by metric: greedy, mean@8, ...


class Samples(NamedTuple):
    """What became of the samples of an evaluation."""

    problems: tuple[tuple[str, str], ...]  # id and question: an id is a place in its source, whatever its seed
    right: np.ndarray  # [problems, n] bool
    votes: list[list[str | None]]  # [problems][n], the class of equal answers that each belongs to


class RecordError(ValueError):
    """Records that cannot be compared; the message names the files."""

    exit_code = 2


def curve_of(run: Path) -> Curve:
    """The curve of a run with `rl` and `evaluation`; raises OSError or ValueError for records that are not whole."""
    before = json.loads((run / "evaluation" / "before.json").read_text("utf-8"))["metrics"]
    lines = read_metrics(run / "rl" / "metrics.jsonl")
    made = {0: 0} | {line["step"]: line[TOKENS] for line in lines if TOKENS in line}
    looked = [line for line in lines if any(key.startswith(HELD_OUT) for key in line)]
    steps = (0, *(line["step"] for line in looked))
    tokens = tuple(made[max(at for at in made if at <= step)] for step in steps)
    names = [name for name in before if all(HELD_OUT + name in line for line in looked)]
    values = {name: (before[name]["value"], *(line[HELD_OUT + name] for line in looked)) for name in names}
    return Curve(steps, tokens, values)


def spent(run: Path) -> dict[str, float]:
    """What the rl stage of a run took for the policy, by the run's ledger: completions, generated_tokens, ..."""
    return read_ledger(run)["stages"]["rl"]["counts"]


def spent_beside(run: Path) -> dict[str, float]:
    """What line 12 took between outer iterations, solutions and labels for the reward model and its training.

    The same counts as `spent`, which has none of these: they are in the ledgers of rl/iteration_i. All 0 where none is.
    """
    return totals(read_ledger(run).get("parts", {}).values())


def samples_of(run: Path, name: str) -> Samples:
    """The samples of one evaluation of a run: before, after, policy."""
    lines = (run / "evaluation" / f"{name}.samples.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    right = np.array([[sample["right"] for sample in row["samples"]] for row in rows], bool)
    answers = [[sample["answer"] for sample in row["samples"]] for row in rows]
    votes = [classes(given, good) for given, good in zip(answers, right, strict=True)]
    return Samples(tuple((row["id"], row["question"]) for row in rows), right, votes)


def mistakes_of(run: Path, name: str) -> Mistakes | None:
    """The kinds of mistakes in the samples of one evaluation of a run; None where nothing is wrong."""
    lines = (run / "evaluation" / f"{name}.samples.jsonl").read_text("utf-8").splitlines()
    rows = map(json.loads, lines)
    return mistakes((row["question"], sample["text"]) for row in rows for sample in row["samples"])


def share_right(samples: Samples) -> np.ndarray:
    """The share of right samples of each problem [problems]."""
    return mean_at_n(samples.right)


def at_k(samples: Samples, k: int) -> dict[str, np.ndarray]:
    """Pass@K and Maj@K of each problem [problems]."""
    return {"pass": pass_at_k(samples.right, k), "maj": majority_at_k(samples.votes, samples.right, k)}


def check_same_problems(runs: Sequence[tuple[str, Samples]]) -> None:
    """Raise `RecordError` if evaluations that are to be compared in pairs were not asked the same problems."""
    (first, expected), *others = runs
    for name, samples in others:
        if samples.problems != expected.problems:
            asked = f"{len(expected.problems)} and {len(samples.problems)}"
            raise RecordError(
                f"{first} and {name} were asked {asked} problems that are not the same in the same order; run both "
                "again in a new output directory"
            )


def last_of(run: Path, names: Sequence[str], share: float = 0.1) -> dict[str, float]:
    """Means of metrics of the rl stage over the first and last tenth of its steps: `first/NAME`, `last/NAME`."""
    lines = [line for line in read_metrics(run / "rl" / "metrics.jsonl") if "reward" in line]
    few = max(1, round(share * len(lines)))
    found = {}
    for where, part in (("first", lines[:few]), ("last", lines[-few:])):
        for name in names:
            values = [line[name] for line in part if line.get(name) is not None]
            if values:
                found[f"{where}/{name}"] = float(np.mean(values))
    return found


def risen_since(run: Path, step: int, share: float = 0.1) -> float:
    """The mean reward of the last tenth of the rl stage's steps, less that of as many just after `step` updates.

    Where fewer than twice a tenth are left, of the later half less the earlier one; 0 where that leaves nothing.
    """
    lines = [line for line in read_metrics(run / "rl" / "metrics.jsonl") if line.get("reward") is not None]
    told = [(line["step"], line["reward"]) for line in lines]
    rest = [reward for at, reward in told if at > step]
    few = min(max(1, round(share * len(told))), len(rest) // 2)
    return float(np.mean(rest[-few:]) - np.mean(rest[:few])) if few else 0.0


def beta_of(run: Path) -> float:
    """The coefficient of the KL penalty in a run's config."""
    return read(run / "config.yaml").tree["rl"]["algorithm"]["beta"]


def reward_model_of(stem: Path) -> dict[str, Any]:
    """How good the labels and the reward model of the stem are, as its stages have told and beside the truth."""
    summary = json.loads((stem / "label" / "summary.json").read_text("utf-8"))
    held_out = json.loads((stem / "reward_model" / "held_out.json").read_text("utf-8"))
    return {"labels": summary, "labels beside the truth": labels_beside_truth(stem), "held_out": held_out}


def labels_beside_truth(stem: Path) -> dict[str, float]:
    """Of the steps that are really good, and really bad, the share that the stem's hard labels call good.

    The source knows the result of every step; `id` of a labelled solution names its problem. -> keys good, bad.
    """
    config = read(stem / "config.yaml").tree
    source = config["label"]["source"]
    given = {key: value for key, value in source.items() if key != "kind"}
    problems = find("data.sources", source["kind"]).build(
        kind_class("data.sources", source["kind"])(**given), config["seed"]
    )
    labels: dict[bool, list[float]] = {True: [], False: []}
    for line in (stem / "label" / "labels.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        number = int(row["id"].partition("#")[0].rpartition("-")[2])
        truth = true_labels([step["text"] for step in row["steps"]], problems[number].solution)
        for step, good in zip(row["steps"], truth, strict=True):
            labels[good > 0].append(step["hard"])
    return {name: float(np.mean(labels[good])) for name, good in (("good", True), ("bad", False)) if labels[good]}


def reward_curve(run: Path, every: int = 10) -> list[tuple[int, float]]:
    """The mean reward in training of each `every` steps, and the last of these steps."""
    lines = [line for line in read_metrics(run / "rl" / "metrics.jsonl") if line.get("reward") is not None]
    parts = [lines[start : start + every] for start in range(0, len(lines), every)]
    return [(part[-1]["step"], float(np.mean([line["reward"] for line in part]))) for part in parts]


def refreshes(run: Path, measure: str) -> list[tuple[float, float]]:
    """What was measured of the reward model on fresh solutions at each continued training, before it and after.

    nan where the measure could not be taken.
    """
    keys = [f"reward_model/{measure}_{when}" for when in ("before", "after")]
    lines = [line for line in read_metrics(run / "rl" / "metrics.jsonl") if any(map(is_of_refresh, line))]
    found = [[line.get(key) for key in keys] for line in lines]
    return [tuple(float("nan") if value is None else value for value in pair) for pair in found]


def is_of_refresh(key: str) -> bool:
    """Whether a metric is one of those that are written once for each continued training of the reward model."""
    return key.startswith("reward_model/") and key.endswith("_before")
