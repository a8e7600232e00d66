"""What a run chose, setting by setting, beside what the paper says: a pure function of the config."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from grpo_jax.config import Config
from grpo_jax.configure import find, tree_of
from grpo_jax.reporting.paper import OF_GRPO, Says, says

PACKAGE = "grpo_jax."
YOURS = "your own: "  # before the place of a setting of a module that is not of this package
OWN = Says("beyond", "a module of the user's own")
UNKNOWN = Says("beyond", "has no place in the tables yet")  # a record stops no run; a test holds the tables complete
SHARED = ("seed", "model", "prompt")  # sections that all stages have in common
SCALED = ("group", "batch")  # where an advantage is divided by a deviation


class Setting(NamedTuple):
    """A setting: its place in the config, its place in the tables of `paper.py`, and its value."""

    name: str
    key: str
    value: Any


class Choice(NamedTuple):
    """What was chosen, and what the paper says of it."""

    name: str
    value: Any
    relation: str
    paper: str


def choices(config: Config, stage: str) -> list[Choice]:
    """What a stage chose, "" for what all have in common: its settings, then what is fixed in the code.

    Settings that do not touch what is learnt or measured are left out.
    """
    parts = SHARED if not stage else (stage,)
    found = [choice_of(config, one) for part in parts for one in settings(getattr(config, part), part, part)]
    return [one for one in found if one.relation != "apart"] + fixed(config, stage)


def settings(value: Any, name: str, key: str) -> Iterator[Setting]:
    """The settings of a section, those of the sections within it among them."""
    nested = value if isinstance(value, tuple) else ()
    if dataclasses.is_dataclass(value):
        key = place_of(value, key)
        for field in dataclasses.fields(value):
            if field.name != "kind":  # it is the method, the source or the reward itself
                yield from settings(getattr(value, field.name), f"{name}.{field.name}", f"{key}.{field.name}")
    elif nested and all(dataclasses.is_dataclass(item) for item in nested):
        for number, item in enumerate(nested):
            yield from settings(item, f"{name}.{number}", key)
    else:
        yield Setting(name, key, tree_of(value))


def place_of(value: Any, key: str) -> str:
    """The place of a section in the tables: of a kind its file, whatever field it is in."""
    if not hasattr(value, "kind"):
        return key
    # The class of the file, below that which has got a `kind`; what module the latter says differs by Python's version.
    own = next(cls for cls in type(value).__mro__ if "kind" not in getattr(cls, "__dataclass_fields__", {}))
    ours = own.__module__.startswith(PACKAGE)
    return own.__module__.removeprefix(PACKAGE) if ours else f"{YOURS}{own.__module__}"


def choice_of(config: Config, setting: Setting) -> Choice:
    """A setting with what the paper says of it, which may be of GRPO alone."""
    found = OWN if setting.key.startswith(YOURS) else says(setting.key) or UNKNOWN
    if setting.key in OF_GRPO and config.rl.algorithm.kind != "grpo":
        found = Says("open", f"of GRPO {found.text}; of {config.rl.algorithm.kind} not said")
    return Choice(setting.name, setting.value, *found)


def fixed(config: Config, stage: str) -> list[Choice]:
    """What is no setting: the paper leaves it open, and the code has one answer."""
    return [Choice(f"{stage}: {name}", value, "open", paper) for name, value, paper in FIXED.get(stage, _none)(config)]


def _none(config: Config) -> list[tuple[str, Any, str]]:
    return []


def _sft(config: Config) -> list[tuple[str, Any, str]]:
    return [
        ("optimizer", "AdamW", "not said"),
        (
            "tokens trained on",
            "of the completion, end of sequence included",
            "whether the prompt is learnt, not said",
        ),
        ("mean", "over the tokens of the batch", "over the tokens of an example, then over examples (eq. 6)"),
        ("examples of a row", "do not see one another", "not said"),
    ]


def _label(config: Config) -> list[tuple[str, Any, str]]:
    return [
        ("end of a step", "the end of a line, and of the solution", "not said"),
        ("beginnings that are equal", "are completed once", "not said"),
        ("a completion without an answer", "counts as wrong", "not said"),
    ]


def _reward_model(config: Config) -> list[tuple[str, Any, str]]:
    loss = "Bradley-Terry" if config.reward_model.supervision == "preference" else "binary cross-entropy"
    return [("optimizer", "AdamW", "not said"), ("loss", loss, "not said"), ("mean", "over the labels", "not said")]


def _rl(config: Config) -> list[tuple[str, Any, str]]:
    from grpo_jax.algorithms.algorithm import all_groups

    c = config.rl
    algorithm = find("algorithms", c.algorithm.kind).build(c.algorithm)
    kept = algorithm.keep is all_groups if c.dead_groups == "auto" else c.dead_groups == "count"
    rows = [
        ("optimizer", "AdamW", "not said"),
        ("max_completion_length", "of the completion alone", "whether the max length counts the prompt is not said"),
        ("|o|", "counts the end of sequence, and no token of a tool", "not said"),
        ("groups of equal rewards", "count in the means" if kept else "are left out of the means", "not said"),
    ]
    if getattr(c.algorithm, "scale_rewards", None) in SCALED:
        rows += [
            ("standard deviation", "the population's: over n, not n - 1", "which one is not said"),
            ("added to the deviation", 0.0, "not said; a group without spread has advantages of exactly 0"),
        ]
    if any(judges_steps(reward) for reward in c.rewards):
        rows += [("end of the last step", "the last token, be it the end of sequence or where it was cut", "not said")]
    return rows


FIXED = {"sft": _sft, "label": _label, "reward_model": _reward_model, "rl": _rl}


def judges_steps(reward: Any) -> bool:
    """Whether a reward is one for each step, by its settings."""
    return getattr(reward, "supervision", None) == "process" or place_of(reward, "") == "rewards.step_match"


def method(config: Config, stage: str) -> dict[str, Any]:
    """What a stage does, by name and settings, and where it is from: the paper and its equations."""
    c = getattr(config, stage)
    if stage != "rl":
        return {"kind": stage, "settings": {}, "source": sources_of(type(c))}
    settings = tree_of(c.algorithm)
    supervision = "process" if any(judges_steps(reward) for reward in c.rewards) else "outcome"
    return {
        "kind": settings.pop("kind"),
        "supervision": supervision,
        "settings": settings,
        "source": sources_of(find("algorithms", c.algorithm.kind)),
    }


def sources_of(thing: Any) -> str | None:
    """The papers and equations that a docstring's first sentence names in brackets; None if it names none."""
    first = (inspect.getdoc(thing) or "").partition("\n\n")[0]
    found = re.search(r"\(((?:arXiv:[^()]*))\)", first.replace("\n", " "))
    return found[1] if found else None


def rewards(config: Config, stage: str) -> list[dict[str, Any]]:
    """The reward functions of a stage, with their settings and weights."""
    c = getattr(config, stage)
    of_stage = (*(getattr(c, "rewards", None) or ()), getattr(c, "reward", None), getattr(c, "scorer", None))
    return [tree_of(reward) for reward in of_stage if reward is not None]


def sources(config: Config, stage: str) -> list[dict[str, Any]]:
    """Where a stage's problems or labels are from, with settings."""
    c = getattr(config, stage)
    names = ("source", "labels", "old_labels", "eval_labels")
    found = [getattr(c, name, None) for name in names] + list(getattr(c, "benchmarks", None) or ())
    return [tree_of(source) for source in found if source is not None]
