"""Which rollouts go into the report: as many as fit, spread over the run, in a form made for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.reporting.files import finite, parse_object, to_script_json

MAX_BYTES = 3_300_000
MAX_STEPS, MIN_STEPS = 40, 8
GROUPS_A_STEP = 3  # as many groups are aimed at before more steps are
THINNING = ((64, 4096), (16, 2048), (8, 1024), (8, 400), (4, 160), (2, 60))  # completions, tokens of each


def choose_rollouts(files: Mapping[int, Path], max_bytes: int = MAX_BYTES) -> tuple[list[dict[str, Any]], list[str]]:
    """The rollouts for the page, [{"step", "groups", "groups_total"}] by step, and what could not be read.

    Steps are spread evenly over the run with the first and the last among them; every step has an equal share
    of the bytes, what one leaves goes to the next. A step takes its groups in the order of the file.
    """
    steps = spread(list(files), affordable_steps(files, max_bytes))
    chosen, problems = [], []
    left = max_bytes
    for number, step in enumerate(steps):
        entry, spent, bad = read_step(step, files[step], left // (len(steps) - number))
        chosen.append(entry)
        problems += bad
        left -= spent
    return chosen, problems


def affordable_steps(files: Mapping[int, Path], max_bytes: int) -> int:
    """How many steps can be shown with a few groups each, by the size of the last step's first group."""
    if not files:
        return MAX_STEPS
    with open(files[max(files)], encoding="utf-8", errors="replace") as file:
        group = parse_group(file.readline())
    size = size_of(thin_group(group, 8, 1024)) if group else 0
    return min(MAX_STEPS, max(MIN_STEPS, max_bytes // max(GROUPS_A_STEP * size, 1)))


def spread(items: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` items at equal distances, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def read_step(step: int, path: Path, max_bytes: int) -> tuple[dict[str, Any], int, list[str]]:
    """The groups of one file that fit in `max_bytes`, the bytes they take, and the lines not readable."""
    groups: list[dict[str, Any]] = []
    problems: list[str] = []
    spent, total, level = 0, 0, None
    full = False
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            total += 1
            if full:
                continue
            group = parse_group(line)
            if group is None:
                problems.append(f"{path.name}, line {number}: not a group; left out")
                continue
            level = level or fitting_level(group, max_bytes // 2)
            thinned = thin_group(group, *level)
            size = size_of(thinned)
            full = bool(groups) and spent + size > max_bytes
            if not full:
                groups.append(thinned)
                spent += size
    return {"step": step, "groups": groups, "groups_total": total}, spent, problems


def parse_group(line: str) -> dict[str, Any] | None:
    """A group of rollouts from its line; None where the line is not one."""
    group = parse_object(line)
    if group is None or not isinstance(group.get("completions"), list):
        return None
    return group if all(isinstance(item, dict) for item in group["completions"]) else None


def size_of(value: Any) -> int:
    """The bytes that a value takes in the page."""
    return len(to_script_json(value).encode("utf-8", "backslashreplace"))


def fitting_level(group: Mapping[str, Any], max_bytes: int) -> tuple[int, int]:
    """The fullest form of a group that fits; the barest if none does."""
    for level in THINNING:
        if size_of(thin_group(group, *level)) <= max_bytes:
            break
    return level


def thin_group(group: Mapping[str, Any], max_completions: int, max_tokens: int) -> dict[str, Any]:
    """A group with its completions by falling reward, at most so many, from best to worst evenly."""
    completions = [item | {"number": i} for i, item in enumerate(group["completions"])]
    ordered = sorted(completions, key=by_falling_reward)
    texts = {name: clip_text(group.get(name), 20 * max_tokens) for name in ("question", "prompt", "answer")}
    if texts["prompt"] == texts["question"]:
        del texts["prompt"]
    return {
        "problem_index": group.get("problem_index"),
        **texts,
        "total": len(completions),
        "all_rewards": [finite(item.get("reward")) for item in ordered],
        "completions": [thin_completion(item, max_tokens) for item in spread(ordered, max_completions)],
    }


def by_falling_reward(item: Mapping[str, Any]) -> tuple[bool, float]:
    """The sort key of a completion: best first, those without a reward last."""
    reward = finite(item.get("reward"))
    return (reward is None, -(reward or 0.0))


def thin_completion(item: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """A completion with at most so many tokens: two thirds from its start, one from its end."""
    tokens = item["tokens"] if isinstance(item.get("tokens"), list) else []
    parts = item["rewards"] if isinstance(item.get("rewards"), dict) else {}
    thinned = {
        "number": item.get("number"),
        "reward": finite(item.get("reward")),
        "advantage": finite(item.get("advantage")),
        "rewards": {str(name): finite(value) for name, value in parts.items()},
        "finished": item.get("finished"),
        "length": len(tokens),
    }
    if item.get("extracted") is not None:
        thinned["extracted"] = clip_text(item["extracted"], 200)
    if not tokens:
        return thinned | {"text": clip_text(item.get("text"), 6 * max_tokens)}
    if len(tokens) > max_tokens:
        thinned["gap"] = {"after": max_tokens * 2 // 3, "left_out": len(tokens) - max_tokens}
    thinned["tokens"] = [str(token) for token in ends(tokens, max_tokens)]
    return thinned | per_token(item, len(tokens), max_tokens)


def per_token(item: Mapping[str, Any], length: int, max_tokens: int) -> dict[str, list[float | int | None]]:
    """The arrays of a completion, short; the trainer's log-probability as its difference to the sampler's."""
    arrays = {}
    for name in ("logprobs", "trainer_logprobs", "ref_logprobs", "entropy"):
        values = item.get(name)
        if isinstance(values, list) and len(values) == length:
            arrays[name] = [finite(value) for value in ends(values, max_tokens)]
    trainer = arrays.pop("trainer_logprobs", None)
    if trainer and "logprobs" in arrays:
        pairs = zip(trainer, arrays["logprobs"], strict=True)
        arrays["trainer_gap"] = [None if t is None or s is None else t - s for t, s in pairs]
    return {name: [None if v is None else tidy(v) for v in values] for name, values in arrays.items()}


def ends(values: Sequence[Any], limit: int) -> Sequence[Any]:
    """At most `limit` values: two thirds from the start, one from the end."""
    if len(values) <= limit:
        return values
    head = limit * 2 // 3
    return [*values[:head], *values[len(values) - (limit - head) :]]


def tidy(value: float) -> float | int:
    """Four decimals; an integer where it is one, which is shorter."""
    value = round(value, 4)
    return int(value) if value == int(value) else value


def clip_text(text: Any, limit: int) -> str:
    """The text, or its start and a word on how much is left out."""
    text = "" if text is None else str(text)
    return text if len(text) <= limit else f"{text[:limit]} [... {len(text) - limit} more characters]"
