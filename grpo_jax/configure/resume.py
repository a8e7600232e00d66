"""What may change when a run goes on in its output_dir, and a list of what did."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from grpo_jax.config import Config
from grpo_jax.configure.checks import STAGES
from grpo_jax.configure.documents import ConfigError, Key, dotted, read, tree_of
from grpo_jax.configure.problems import validate
from grpo_jax.configure.schema import Given, narrow

MAY_CHANGE = frozenset(
    {
        "attention_kernel",
        "batch_prompts",
        "best_metric",
        "cache_block",
        "decode_layers",
        "decode_rows",
        "decode_weights",
        "eval_steps",
        "experts_kernel",
        "fused_steps",
        "head_chunk",
        "length_buckets",
        "logging_steps",
        "max_logprob_gap",
        "max_skipped_steps",
        "mesh",
        "microbatches",
        "output_dir",
        "remat",
        "report_to",
        "rollout_steps",
        "sample_parts",
        "sandbox",
        "save_steps",
        "save_total_limit",
        "scan_layers",
        "workers",
    }
)
"""Keys and sections that change where and how a run computes, what it reports and when it gives up."""

SHOWN = 80
"""Characters of a value that are shown."""
_ABSENT = object()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two configs as plain mappings, each as "rl.max_steps: 200 -> 300"."""
    return [_line(key, a, b) for key, a, b in _differences(old, new)]


def check_resume(saved: Path, config: Config, *, started: Collection[str] | None = None) -> list[str]:
    """Compare the config of a run with the one it is to go on with, and return the differences allowed.

    Allowed is `MAY_CHANGE` and, if `started` is given, any stage not in it, which has computed nothing yet. The base of
    adapters may lie elsewhere: whether it is the same is in the checkpoints.
    Raises `ConfigError` with all other differences. Without a saved config there is nothing to compare.
    """
    if not saved.exists():
        return []
    pending = set() if started is None else set(STAGES) - set(started)
    allowed, refused = [], []
    for key, a, b in _differences(_read_today(saved), tree_of(config)):
        moved = config.model.lora is not None and key == ("model", "model_name_or_path")
        free = moved or key[0] in pending or not MAY_CHANGE.isdisjoint(key)
        (allowed if free else refused).append(_line(key, a, b))
    if refused:
        shown = refused[:12] + ([f"... and {len(refused) - 12} more"] if len(refused) > 12 else [])
        raise ConfigError(
            f"{saved}: this run was started with other settings (then -> now):\n"
            + "".join(f"  {line}\n" for line in shown)
            + "take them back to go on with it, or give another --output_dir to start anew"
        )
    return allowed


def _read_today(saved: Path) -> Mapping[str, Any]:
    """The settings of a file, with defaults for keys that the program which wrote it did not have yet.

    A default is what was done before there was the key. A file that is no longer valid is taken as it stands.
    """
    document = read(saved)
    given = Given({}, document.origins)
    try:
        return tree_of(validate(narrow(Config, document.tree, given), given))
    except ConfigError:
        return document.tree


def _differences(old: Any, new: Any, key: Key = ()) -> Iterator[tuple[Key, Any, Any]]:
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(v, Mapping) for v in old + new):
        old, new = ({str(i): v for i, v in enumerate(values)} for values in (old, new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name, _ABSENT), new.get(name, _ABSENT), (*key, name))
    elif old != new:
        yield key, old, new


def _line(key: Key, old: Any, new: Any) -> str:
    then, now = _where_they_differ(_shown(old), _shown(new))
    return f"{dotted(key)}: {then} -> {now}"


def _where_they_differ(old: str, new: str) -> tuple[str, str]:
    """Both, or of long ones (a prompt template) the part in which they differ."""
    if max(len(old), len(new)) <= SHOWN:
        return old, new
    alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False)))
    start = max(0, alike - SHOWN // 4)
    return _cut(old, start), _cut(new, start)


def _cut(text: str, start: int) -> str:
    shown = text[start : start + SHOWN]
    return f"{'...' if start else ''}{shown}{'...' if start + SHOWN < len(text) else ''}"


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
