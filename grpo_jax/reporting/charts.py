"""Which curves the report draws, what each means, and what is usual: one table, one entry a chart."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from grpo_jax.reporting.files import finite
from grpo_jax.reporting.metrics import RESERVED


class Chart(NamedTuple):
    """A chart: the keys it draws (patterns), its meaning and healthy range in a line each."""

    title: str
    keys: tuple[str, ...]
    meaning: str
    healthy: str = ""
    usual: tuple[str, float | None, float | None] | None = None  # key, low, high: outside is worth a look
    stacked: bool = False
    exact: bool = False  # counters, schedules and times are not smoothed
    stages: tuple[str, ...] = ()  # of these stages only; empty: of all


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Reward": (
        Chart(
            "Reward",
            ("reward",),
            "Mean weighted reward of all completions of a step.",
            "Rises, then levels off. Flat from the start: see dead groups and what could not be judged.",
        ),
        Chart(
            "Reward by part",
            ("rewards/*/mean",),
            "Mean of each reward function, before its weight.",
            "Parts rise together. One that rises while accuracy falls is being gamed.",
        ),
        Chart(
            "Held-out evaluation",
            ("eval/*", "evaluation/*"),
            "Accuracy on problems that are not trained on.",
            "Follows the reward. Falling while the reward rises: overfitting or a gamed reward.",
        ),
        Chart(
            "Reward model between iterations",
            ("reward_model/*",),
            "How well the reward model tells right from wrong in fresh solutions of the policy, held out, before and "
            "after it has learnt from others.",
            "Better after than before, accuracy and AUC well above 0.5. Else the scores lead the policy nowhere.",
            exact=True,
        ),
        Chart(
            "Spread of rewards",
            ("reward_std", "rewards/*/std"),
            "Standard deviation of the reward, the stuff of advantages.",
            "Above 0. It shrinks as the policy masters its problems.",
        ),
        Chart(
            "Dead groups",
            ("frac_reward_zero_std",),
            "Share of groups whose completions all have one reward: they teach nothing.",
            "Below 0.8. Near 1 the problems are all too easy or all too hard.",
            usual=("frac_reward_zero_std", None, 0.8),
        ),
        Chart(
            "Without a reward",
            ("frac_unjudged",),
            "Share of completions that no reward function could judge; they teach nothing.",
            "Below 0.05. More: read some of them below, among the rollouts.",
            usual=("frac_unjudged", None, 0.05),
        ),
        Chart(
            "Could not be judged",
            ("ungradable/*", "timeout/*", "error/*", "nonfinite/*", "fallback/*"),
            "Completions of a step that a reward function gave up on, by function and reason.",
            "0, or close to it. Errors point to the reward function, time-outs to its limit.",
        ),
    ),
    "Update": (
        Chart(
            "Loss",
            ("loss", "policy_loss"),
            "Minus the clipped objective, plus beta times the KL; weighted over tokens.",
            "Near 0 and noisy, since a group's advantages sum to 0. Watch the reward instead.",
            stages=("rl",),
        ),
        Chart(
            "Loss",
            ("loss",),
            "Mean negative log-likelihood of the tokens trained on, in nats.",
            "Falls smoothly. Jumps or a rise: the learning rate is too high.",
        ),
        Chart(
            "Accuracy",
            ("accuracy", "*token_accuracy"),
            "Share of the tokens trained on that are the policy's first choice.",
            "Rises, then levels off.",
        ),
        Chart(
            "Gradient norm",
            ("grad_norm",),
            "Global norm of the gradient, before clipping.",
            "Steady. Lone spikes are clipped; spikes that grow call for a lower learning rate.",
        ),
        Chart(
            "Learning rate",
            ("learning_rate",),
            "The step size of the update, by the schedule.",
            "As configured: warm-up first, then the schedule.",
            exact=True,
        ),
        Chart(
            "Skipped updates",
            ("skipped_updates",),
            "1 where the gradient was not finite and the update left everything as it was.",
            "0. One now and then does no harm; several in a row stop the run.",
            usual=("skipped_updates", None, 0.0),
            exact=True,
        ),
    ),
    "Policy": (
        Chart(
            "KL to the reference",
            ("kl", "kl/*"),
            "Distance from the reference in nats a token: k3 (in the loss, never negative) and k1.",
            "Grows slowly. A jump without a gain in reward: raise beta or lower the learning rate.",
        ),
        Chart(
            "Entropy",
            ("entropy", "entropy/*"),
            "Mean entropy of the next-token distribution, in nats.",
            "Falls slowly. Near 0 early on, exploration has ended: raise beta or temperature.",
        ),
        Chart(
            "Clipped tokens",
            ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "clip_ratio/*"),
            "Share of tokens whose ratio left the trust region: below it, above it, either.",
            "0 with one update a batch; below 0.2 with more.",
            usual=("clip_ratio/region_mean", None, 0.2),
        ),
        Chart(
            "Ratio",
            ("ratio/*",),
            "New over old probability of the sampled tokens.",
            "1 with one update a batch; 0.9 to 1.1 with more.",
            usual=("ratio/mean", 0.9, 1.1),
        ),
        Chart(
            "Importance ratio",
            ("importance/mean", "importance/max", "importance/truncated", "importance/*"),
            "Trainer's over sampler's probability of a token: mean, largest, and the share above rl.importance_cap.",
            "Mean near 1, next to nothing above the cap. Else the sampler is too far from the policy it stands for.",
            usual=("importance/truncated", None, 0.01),
        ),
        Chart(
            "Sampler and trainer apart",
            ("logprob_gap/mean", "logprob_gap/max", "logprob_gap/*"),
            "Absolute difference of the two log-probabilities of the same token, in nats.",
            "Mean below 1e-4 in float32, 0.02 in bfloat16. More: they are not the same policy.",
            usual=("logprob_gap/mean", None, 0.05),
        ),
    ),
    "Completions": (
        Chart(
            "Length",
            ("completions/mean_length", "completions/min_length", "completions/*length*"),
            "Tokens of a completion, end of sequence included.",
            "Steady, or rising with the reward. Rising alone: padding for its own sake.",
        ),
        Chart(
            "Truncated",
            ("completions/clipped_ratio",),
            "Share of completions cut by the length limit.",
            "Below 0.3. More: raise max_completion_length, or punish length.",
            usual=("completions/clipped_ratio", None, 0.3),
        ),
        Chart(
            "Programs",
            ("tools/calls", "tools/failed", "tools/cut"),
            "Calls of the tool by completion, the share of calls that failed, and of completions that ended at one.",
            "Calls as the problems need; failures fall. Rising failures: look at the programs among the rollouts.",
        ),
        Chart(
            "Output of programs",
            ("tools/output_tokens",),
            "Tokens by completion that a tool wrote: context, in no loss and in no length.",
            "Steady; it follows the calls.",
        ),
        Chart(
            "Tokens",
            ("num_tokens", "num_generated_tokens", "num_trained_tokens"),
            "Tokens of a step: with the prompts, those that were generated, and those of an update.",
            "Steady; it follows the length of completions.",
        ),
        Chart(
            "Taken so far",
            ("total/generated_tokens", "total/trained_tokens"),
            "Tokens of the stage since its start: what runs are compared by (launch/compare.py).",
            "Straight lines.",
            exact=True,
        ),
        Chart(
            "Updates so far",
            ("total/optimizer_steps",),
            "Optimizer steps of the stage since its start; updates that were skipped do not count.",
            "A straight line.",
            exact=True,
        ),
    ),
    "Speed": (
        Chart(
            "Tokens per second",
            ("tokens_per_sec", "tokens_per_sec/*"),
            "Tokens of the phase per second that it takes.",
            "Level after the first step. A slow fall: completions grow or the host lags.",
        ),
        Chart(
            "Who waits",
            ("time/device_idle_s", "time/host_idle_s"),
            "Seconds of a step in which the devices had nothing to run, and in which the host had nothing to do.",
            "Idle devices near 0. Else: rl.sample_parts, faster rewards, or rl.steps_off_policy; see the timeline.",
        ),
        Chart(
            "The tool",
            ("tools/call_seconds", "tools/wait_seconds"),
            "Seconds from asking for a program to its output, and seconds of a step in which no row could decode.",
            "A call well below a second, waiting near 0. Else: more tool workers, or fewer rows at once.",
        ),
        Chart(
            "Seconds by phase",
            ("time/sample_s", "time/reward_s", "time/train_s", "time/*"),
            "Where a step's time goes.",
            "Level after the first step, which compiles.",
            stacked=True,
        ),
        Chart(
            "Compilations",
            ("compiles",),
            "Programs compiled so far.",
            "Level after the first steps. A later rise is a new shape, and costs time.",
            exact=True,
        ),
    ),
}


def layout(keys: Sequence[str], stage: str) -> list[dict[str, Any]]:
    """The sections of a stage with the charts for which there are keys; a key is drawn once.

    A key that no chart knows gets one of its own in the section "Other".
    """
    left = [key for key in keys if key not in RESERVED]
    sections = []
    for name, charts in SECTIONS.items():
        drawn = []
        for chart in charts:
            if chart.stages and stage not in chart.stages:
                continue
            mine = matching(chart.keys, left)
            left = [key for key in left if key not in mine]
            if mine:
                drawn.append(describe(chart, mine))
        if drawn:
            sections.append({"title": name, "charts": drawn})
    if left:
        others = [describe(Chart(key, (key,), ""), [key]) for key in left]
        sections.append({"title": "Other", "charts": others})
    return sections


def matching(patterns: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The keys that any pattern matches, in the order of patterns, then of keys."""
    return list(dict.fromkeys(key for pattern in patterns for key in keys if fnmatchcase(key, pattern)))


def describe(chart: Chart, keys: Sequence[str]) -> dict[str, Any]:
    """What the page needs to draw a chart."""
    return {
        "title": chart.title,
        "meaning": chart.meaning,
        "healthy": chart.healthy,
        "usual": list(chart.usual) if chart.usual and chart.usual[0] in keys else None,
        "stacked": chart.stacked,
        "exact": chart.exact or chart.stacked,
        "series": [{"key": key, "label": label} for key, label in zip(keys, labels(keys), strict=True)],
    }


def labels(keys: Sequence[str]) -> list[str]:
    """Short names that still tell the keys of one chart apart."""
    known = {"kl": "k3", "clip_ratio/region_mean": "either", "completions/mean_length": "mean"}
    if len(keys) == 1:
        return [known.get(keys[0], keys[0])]
    short = [known.get(key) or re.sub("_(s|mean|length)$", "", key.rpartition("/")[2]) for key in keys]
    pairs = list(zip(keys, short, strict=True))
    middle = [key.split("/")[1] if key.count("/") == 2 else name for key, name in pairs]
    first = [key.partition("/")[0] for key in keys]
    for names in (middle, short, first):
        if len(set(names)) == len(names):
            return names
    return list(keys)


def verdict(chart: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence if a chart lies outside its usual range, by the mean of the last tenth of its values."""
    if not chart["usual"]:
        return None
    key, low, high = chart["usual"]
    values = [value for record in records if (value := finite(record.get(key))) is not None]
    recent = values[-math.ceil(len(values) / 10) :]
    if not recent:
        return None
    mean = sum(recent) / len(recent)
    if low is not None and mean < low:
        return f"{chart['title']}: {key} is {mean:.3g}, usual is at least {low:g}."
    if high is not None and mean > high:
        return f"{chart['title']}: {key} is {mean:.3g}, usual is at most {high:g}."
    return None
