"""What lies in a run's directory, read as far as it is there."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from grpo_jax.reporting.files import parse_object, read_json_lines
from grpo_jax.reporting.lanes import read_lanes
from grpo_jax.reporting.ledger import NAME as LEDGER
from grpo_jax.reporting.pace import in_words
from grpo_jax.reporting.rollouts import rollout_files

ORDER = ("pretrain", "sft", "rft", "reward_model", "rl")  # of the paper; other stages follow by name


class Run(NamedTuple):
    """The files of a run as Python values; `problems` says what could not be read."""

    name: str
    config_text: str
    config: dict[str, Any]
    environment: dict[str, Any]
    stages: dict[str, list[dict[str, Any]]]
    evaluations: list[dict[str, Any]]
    rollouts: dict[int, Path]
    timeline: list[dict[str, Any]]
    ledger: dict[str, Any]
    problems: list[str]


def gather(directory: Path) -> Run:
    """Read a run's directory; what is missing is empty."""
    problems: list[str] = []
    text = read_text(directory / "config.yaml")
    environment = parse_object(read_text(directory / "environment.json")) or {}
    stages = {}
    for path in sorted(directory.glob("*/metrics.jsonl"), key=stage_order) + iterations(directory):
        records, bad = read_json_lines(path)
        of = path.parent.relative_to(directory)
        name = of.name if len(of.parts) == 1 else f"{of.name}, {of.parent.name.replace('_', ' ')}"
        stages[name] = [record for record in records if isinstance(record.get("step"), int)]
        problems += bad
    evaluations = []
    for path in in_order_of_writing((directory / "evaluation").glob("*.json")):
        content = parse_object(read_text(path))
        if content is None or not isinstance(content.get("metrics"), dict):
            problems.append(f"{path}: not an evaluation (no object with metrics); left out")
        else:
            evaluations.append({"name": path.stem} | content)
    timeline, bad = read_lanes(directory / "rl" / "timeline.jsonl")
    problems += bad
    return Run(
        name=directory.resolve().name,
        config_text=text,
        config=parse_yaml(text),
        environment=environment,
        stages={name: records for name, records in stages.items() if records},
        evaluations=evaluations,
        rollouts=rollout_files(directory / "rl"),
        timeline=timeline,
        ledger=parse_object(read_text(directory / LEDGER)) or {},
        problems=[problem.replace(f"{directory}/", "") for problem in problems],
    )


def in_order_of_writing(paths: Iterable[Path]) -> list[Path]:
    """The oldest first; `before` before `after` where the clock of the disk, with its milliseconds, knows no order."""
    return sorted(sorted(paths, reverse=True), key=lambda path: path.stat().st_mtime_ns)


def read_text(path: Path) -> str:
    """The text of a file; empty where there is none."""
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def parse_yaml(text: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; empty where it holds none."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def stage_order(path: Path) -> tuple[int, str]:
    """The sort key of <stage>/metrics.jsonl."""
    name = path.parent.name
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def iterations(directory: Path) -> list[Path]:
    """The metrics of reward models that have learnt between iterations, in order."""
    every = directory.glob("rl/iteration_*/*/metrics.jsonl")
    found = [path for path in every if path.parts[-3].removeprefix("iteration_").isdecimal()]
    return sorted(found, key=lambda path: (int(path.parts[-3].rpartition("_")[2]), path.parts[-2]))


def facts(run: Run) -> list[tuple[str, str]]:
    """The header of the report: what was run, on what, for how long. Unknown facts are left out."""
    found = {
        "Model": model_in_words(section(run.config, "model")),
        "Data": source_in_words(run.config),
        "Method": method_in_words(section(run.config, "rl")),
        "Seed": str(run.config["seed"]) if "seed" in run.config else "",
        "Devices": devices_in_words(run.environment),
        "Software": software_in_words(run.environment),
        "Sandbox": sandbox_in_words(section(run.environment, "tools")),
        "Commit": commit_in_words(run.environment.get("git")),
        "Steps": ", ".join(steps_in_words(run, stage) for stage in run.stages),
        "First to last line": duration_in_words(run.stages),
        "Last line": last_line(run.stages),
    }
    return [(name, value) for name, value in found.items() if value]


def section(config: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """A nested mapping of the config; empty where there is none."""
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def model_in_words(model: Mapping[str, Any]) -> str:
    """The name of the weights, or the shape of a policy made from scratch."""
    name = model.get("model_name_or_path")
    shape = section(model, "architecture")
    if name:
        words = str(name)
    elif shape:
        layers, width = shape.get("num_hidden_layers", "?"), shape.get("hidden_size", "?")
        words = f"from scratch, {layers} layers of width {width}"
    else:
        return ""
    return f"{words}, {model['dtype']}" if "dtype" in model else words


def source_in_words(config: Mapping[str, Any]) -> str:
    """The problem sources of the stages, each once."""
    kinds = []
    for stage in ("sft", "rl", "evaluation"):
        source = section(config, stage, "source")
        detail = source.get("path") or source.get("name")
        kinds.append(" ".join(str(word) for word in (source.get("kind"), detail) if word))
    return ", ".join(dict.fromkeys(kind for kind in kinds if kind))


def method_in_words(rl: Mapping[str, Any]) -> str:
    """The algorithm with its batch: "grpo, 32 x 16 completions a step, beta 0.04"."""
    algorithm = section(rl, "algorithm")
    if not algorithm.get("kind"):
        return ""
    words = [str(algorithm["kind"])]
    if "prompts_per_step" in rl and "num_generations" in rl:
        words.append(f"{rl['prompts_per_step']} \u00d7 {rl['num_generations']} completions a step")
    if "beta" in algorithm:
        words.append(f"beta {algorithm['beta']}")
    return ", ".join(words)


def devices_in_words(environment: Mapping[str, Any]) -> str:
    """Kinds and numbers of devices, and processes if there are several."""
    kinds = ", ".join(f"{count} \u00d7 {kind}" for kind, count in section(environment, "devices").items())
    processes = environment.get("process_count", 1)
    return f"{kinds}, {processes} processes" if kinds and processes != 1 else kinds


def software_in_words(environment: Mapping[str, Any]) -> str:
    """The versions that matter most."""
    versions = section(environment, "versions")
    words = [f"{name} {versions[name]}" for name in ("jax", "flax") if versions.get(name)]
    return ", ".join([f"Python {environment['python']}", *words] if environment.get("python") else words)


def sandbox_in_words(tools: Mapping[str, Any]) -> str:
    """What held the programs of completions, and how many attacks were tried on it at the start."""
    words = []
    for section_name in tools:
        record = section(tools, section_name)
        attacks = section(record, "attacks")
        tried = f", {len(attacks)} attacks and controls passed" if attacks else ", not tried"
        words += [f"{record['backend']}{tried}"] if record.get("backend") else []
    return ", ".join(dict.fromkeys(words))


def commit_in_words(git: Any) -> str:
    """The first characters of the commit, and whether files differed from it."""
    if not isinstance(git, Mapping) or not git.get("commit"):
        return ""
    return str(git["commit"])[:10] + (" with changes" if git.get("changed") else "")


def steps_in_words(run: Run, stage: str) -> str:
    """ "rl 200 of 200": the last step that was logged, and how many there will be if the config says so."""
    settings = section(run.config, stage)
    planned = settings.get("max_steps")
    if isinstance(planned, int) and isinstance(settings.get("iterations", 1), int):
        planned *= settings.get("iterations", 1)
    done = run.stages[stage][-1]["step"]
    return f"{stage} {done} of {planned}" if isinstance(planned, int) else f"{stage} {done}"


def times(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """The times of a stage's lines."""
    return [record["time"] for record in records if isinstance(record.get("time"), int | float)]


def duration_in_words(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """From the first to the last line of metrics, by stage."""
    spans = {name: times(records) for name, records in stages.items()}
    return ", ".join(f"{name} {in_words(t[-1] - t[0])}" for name, t in spans.items() if len(t) > 1)


def last_line(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """When the newest line of metrics was written, in UTC."""
    newest = max((time for records in stages.values() for time in times(records)), default=None)
    if newest is None:
        return ""
    moment = datetime.datetime.fromtimestamp(newest, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")
