"""What a step of each stage is, in numbers: what two settings and a mesh come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from grpo_jax.config import Config, EvaluationConfig, LabelConfig, RewardModelConfig, RLConfig, SFTConfig
from grpo_jax.configure import find


def arithmetic(
    c: Config, shards: int, only: Collection[str], count_problems: Callable[[Any, int], int | None]
) -> list[dict[str, Any]]:
    """The batch of each stage, its rows a device of `shards` batch shards, tokens, steps and epochs (None: unknown)."""
    rows = []
    for stage in _STEP:
        section = getattr(c, stage)
        if section is None or (only and stage not in only):
            continue
        source = getattr(section, "source", None)
        problems = count_problems(source, c.seed) if source else None
        rows.append({"stage": stage, "problems": problems} | _STEP[stage](c, section, shards, problems))
    return rows


def _rows_step(c: Config, s: SFTConfig | RewardModelConfig, shards: int, problems: int | None) -> dict[str, Any]:
    return {
        "step": f"{s.batch_size} rows x {s.max_length}",
        "rows": s.batch_size,
        "rows_a_device": s.batch_size // shards,
        "microbatches": s.microbatches,
        "tokens_a_step": s.batch_size * s.max_length,
        "steps": s.max_steps,
        "epochs": None,  # packing decides how many examples a row holds
    }


def _label_step(c: Config, s: LabelConfig, shards: int, problems: int | None) -> dict[str, Any]:
    """The solutions; how many beginnings they have, whose completions follow, is known when they are written."""
    rows = s.batch_prompts * s.num_solutions
    return {
        "step": f"{s.batch_prompts} prompts x {s.num_solutions} solutions",
        "rows": rows,
        "rows_a_device": rows // shards,
        "decode_rows": min(s.decode_rows or rows, rows),
        "tokens_a_step": rows * s.sampling.max_completion_length + s.batch_prompts * c.prompt.max_prompt_length,
        "steps": -(-problems // s.batch_prompts) if problems else None,
    }


def _rl_step(c: Config, s: RLConfig, shards: int, problems: int | None) -> dict[str, Any]:
    rows, steps = s.prompts_per_step * s.num_generations, s.iterations * s.max_steps
    sampled, read = rows * s.sampling.max_completion_length, s.prompts_per_step * c.prompt.max_prompt_length
    return {
        "step": f"{s.prompts_per_step} prompts x {s.num_generations} completions",
        "rows": rows,
        "rows_a_device": rows // shards,
        "decode_rows": min(s.decode_rows or rows, rows),
        "microbatches": s.microbatches,
        "updates_a_step": s.num_iterations,
        "tokens_a_step": sampled + read,
        "steps": steps,
        "epochs": steps * s.prompts_per_step / problems if problems else None,
    }


def _evaluation_step(c: Config, s: EvaluationConfig, shards: int, problems: int | None) -> dict[str, Any]:
    rows = s.batch_prompts * s.num_samples
    return {
        "step": f"{s.batch_prompts} prompts x {s.num_samples} samples",
        "rows": rows,
        "rows_a_device": rows // shards,
        "decode_rows": min(s.decode_rows or rows, rows),
        "tokens_a_step": rows * s.sampling.max_completion_length + s.batch_prompts * c.prompt.max_prompt_length,
        "steps": -(-problems // s.batch_prompts) if problems else None,
    }


_STEP = {
    "sft": _rows_step,
    "label": _label_step,
    "reward_model": _rows_step,
    "rl": _rl_step,
    "evaluation": _evaluation_step,
}


def problems_here(source: Any, seed: int) -> int | None:
    """How many problems a source has, if that can be known without fetching or preparing anything."""
    local = {key: value for key, value in {"download": False, "manual_dir": None}.items() if hasattr(source, key)}
    if source.kind == "hf" and not Path(source.path).expanduser().exists():
        return None
    try:
        return len(find("data.sources", source.kind).build(dataclasses.replace(source, **local), seed))
    except Exception:  # a source of any kind, also the user's own: what fails here is only not counted
        return None
