"""Ledgers as tables and curves: of one run for its report, of several beside one another."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax.reporting.files import finite
from grpo_jax.reporting.ledger import COUNTED
from grpo_jax.reporting.metrics import read_metrics
from grpo_jax.reporting.pace import in_words

GENERATED, TRAINED = "total/generated_tokens", "total/trained_tokens"
NOT_HERE = "-"
UNCOMPARED = ("State", "Source")
WORDS = {"open": "leaves open", "stated": "states", "beyond": "beyond it"}  # in the order of the report


class Account(NamedTuple):
    """A stage of a ledger as the report shows it."""

    stage: str
    facts: list[tuple[str, str]]
    counts: Mapping[str, float]
    choices: list[dict[str, str]]


def accounts(ledger: Mapping[str, Any]) -> list[Account]:
    """The stages of a ledger; [] where there is none."""
    return [
        Account(name, facts_of(stage), stage["counts"], shown_all(stage["choices"]))
        for name, stage in ledger.get("stages", {}).items()
    ]


def facts_of(stage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a stage did and from what, in words."""
    method, data = stage["method"], stage["data"]
    start, models = stage.get("starts_from"), stage.get("reward_models", [])
    supervision = f" with {method['supervision']} supervision" if "supervision" in method else ""
    facts = {
        "Method": f"{method['kind']}{supervision}",
        "Source": method["source"] or "",
        "State": f"{stage['state']}, step {stage['step']}" if stage["step"] else stage["state"],
        "Data": f"{', '.join(source['kind'] for source in data['sources']) or 'of this run'}, {data['rows']} rows",
        "Data fingerprint": data["fingerprint"],
        "Rewards": ", ".join(f"{reward.get('weight', 1.0):g} x {reward['kind']}" for reward in stage["rewards"]),
        "Reward models": ", ".join(f"{model['folder']} {model['weights']}" for model in models),
        "Starts from": f"{start['name']}, weights {start['fingerprint']}" if start else "",
        "Counted from step": str(stage.get("counted_from_step", "")),
    }
    return [(name, value) for name, value in facts.items() if value]


def shown_all(choices: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Choices in words, those that the paper leaves open first."""
    ordered = sorted(choices, key=lambda choice: list(WORDS).index(choice["relation"]))
    return [
        {
            "name": choice["name"],
            "value": as_text(choice["value"]),
            "paper": f"{WORDS[choice['relation']]}: {choice['paper']}",
        }
        for choice in ordered
    ]


def as_text(value: Any) -> str:
    """A value of a setting as it is written in YAML, on a line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def count_rows(found: Sequence[Account]) -> list[tuple[str, list[str]]]:
    """The counts that any stage has, a row each, a value for each account."""
    names = [name for name in COUNTED if any(account.counts.get(name) for account in found)]
    return [(name.replace("_", " "), [number(name, account.counts) for account in found]) for name in names]


def number(name: str, counts: Mapping[str, float]) -> str:
    """A count in words; seconds as a duration."""
    value = counts.get(name)
    if not value:
        return NOT_HERE
    return in_words(value) if "seconds" in name else f"{value:,}"


def flat(ledger: Mapping[str, Any], stages: Collection[str]) -> dict[str, Any]:
    """What a ledger says was done, by name: of these stages all, of others the method; no counts."""
    found = {one["name"]: one["value"] for one in ledger.get("choices", [])}
    for name, stage in ledger.get("stages", {}).items():
        facts = {f"{name}: {what.lower()}": value for what, value in facts_of(stage) if what not in UNCOMPARED}
        if name in stages:
            found |= facts | {one["name"]: one["value"] for one in stage["choices"]}
        else:
            found[f"{name}: method"] = facts[f"{name}: method"]
    return found


def differences(ledgers: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """What is not the same in all ledgers: its name, and the value of each, - where there is none."""
    common = set.intersection(*(set(ledger.get("stages", {})) for ledger in ledgers))
    every = [flat(ledger, common) for ledger in ledgers]
    names = dict.fromkeys(name for one in every for name in one)
    rows = [(name, [as_text(one[name]) if name in one else NOT_HERE for one in every]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def totals_of(ledgers: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """What the runs took, stage by stage, a row a count."""
    stages = dict.fromkeys(stage for ledger in ledgers for stage in ledger.get("stages", {}))
    rows = []
    for stage in stages:
        counts = [ledger.get("stages", {}).get(stage, {}).get("counts", {}) for ledger in ledgers]
        names = [name for name in COUNTED if any(one.get(name) for one in counts)]
        rows += [(f"{stage}: {name.replace('_', ' ')}", [number(name, one) for one in counts]) for name in names]
    parts = dict.fromkeys(part for ledger in ledgers for part in ledger.get("parts", {}))
    for part in parts:
        counts = [ledger.get("parts", {}).get(part, {}) for ledger in ledgers]
        rows.append((f"{part}: generated tokens", [number("generated_tokens", one) for one in counts]))
    return rows


def curve(directory: Path, stage: str, metric: str, across: str = GENERATED) -> list[tuple[float, float]]:
    """A metric of a stage over the tokens generated in it so far, or trained, at the steps that have it.

    Raises ValueError naming the file for a log whose lines do not count tokens.
    """
    path = directory / stage / "metrics.jsonl"
    lines = [line for line in read_metrics(path) if finite(line.get(metric)) is not None]
    if any(across not in line for line in lines):
        raise ValueError(f"{path}: its lines have no {across}; it is of an older program")
    return [(line[across], line[metric]) for line in lines]
