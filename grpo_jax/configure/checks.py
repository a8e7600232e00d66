"""What must hold between settings, checked before any device is touched."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from grpo_jax.config import (
    Config,
    EvaluationConfig,
    ModelConfig,
    RewardModelConfig,
    RLConfig,
    SamplingConfig,
    SFTConfig,
)
from grpo_jax.configure.documents import ConfigError

STAGES = tuple(field.name for field in dataclasses.fields(Config) if field.default is None)


def check(config: Config) -> None:
    """Raise `ConfigError` for settings that contradict one another, a line for each contradiction."""
    found = [*_model(config.model), *_pipeline(config)]
    found += _sft(config.sft) if config.sft is not None else []
    found += _reward_model(config, config.reward_model) if config.reward_model is not None else []
    found += _rl(config.rl) if config.rl is not None else []
    found += _evaluation(config.evaluation) if config.evaluation is not None else []
    found += _best_metric(config)
    if found:
        raise ConfigError("\n".join(found))


def check_output(config: Config) -> None:
    """Make output_dir and write a file in it. Raises `ConfigError` naming the path if that fails."""
    folder = Path(config.output_dir)
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output_dir {config.output_dir!r} cannot be written: {error.strerror} ({error.filename}); "
            "give another with --output_dir"
        ) from error


def _model(model: ModelConfig) -> Iterator[str]:
    shape = model.architecture
    hub = "a hub name such as Qwen/Qwen2.5-0.5B-Instruct"
    if model.model_name_or_path is None and shape is None:
        yield "model: there is neither model_name_or_path nor architecture; give one of them"
    if shape is not None and shape.num_attention_heads % shape.num_key_value_heads:
        N, K = shape.num_attention_heads, shape.num_key_value_heads
        yield (
            f"model.architecture: num_attention_heads {N} is not a multiple of num_key_value_heads {K}; "
            f"choose a divisor of {N}"
        )
    if shape is not None and shape.head_dim % 2:
        yield f"model.architecture.head_dim is {shape.head_dim}; rotary embeddings need an even number"
    if model.lora is not None and model.model_name_or_path is None:
        yield (
            "model.lora: the weights beside the adapters would be random and stay so; give model.model_name_or_path, "
            "such as the hf directory of a run, or leave model.lora out"
        )
    for name in ("model_name_or_path", "tokenizer_name_or_path"):
        value = getattr(model, name)
        if value is not None and _is_path(value) and not Path(value).is_dir():
            what = "is not a directory" if Path(value).exists() else "does not exist"
            yield f"model.{name}: {value!r} {what}; give a directory, or {hub}"


def _is_path(name: str) -> bool:
    """Tell a path from a hub name, which is `name` or `owner/name` and not below a directory that is here."""
    owner, _, rest = name.partition("/")
    return name.startswith((".", "/", "~")) or "/" in rest or name.endswith("/") or bool(rest and Path(owner).is_dir())


def _pipeline(config: Config) -> Iterator[str]:
    if all(getattr(config, stage) is None for stage in STAGES):
        yield f"there is nothing to run; write one of the sections {', '.join(STAGES)}"
    for axis in ("data", "fsdp", "tensor"):
        if getattr(config.mesh, axis) == 0:
            yield f"mesh.{axis} is 0; write 1 for no split, or -1 for all devices that are left"
    if config.prompt.format != "chat" and config.prompt.template.count("{question}") != 1:
        count = config.prompt.template.count("{question}")
        yield f"prompt.template: {config.prompt.template!r} has {count} times {{question}}; write it once"
    if len(set(config.report_to)) < len(config.report_to):
        yield f"report_to: {', '.join(config.report_to)} names one twice"


def _sft(sft: SFTConfig) -> Iterator[str]:
    if sft.microbatches and sft.batch_size % sft.microbatches:
        yield (
            f"sft: batch_size {sft.batch_size} cannot be cut into {sft.microbatches} equal microbatches; "
            f"choose a divisor of {sft.batch_size}"
        )


def _reward_model(config: Config, c: RewardModelConfig) -> Iterator[str]:
    if c.labels is None and config.label is None:
        yield (
            "reward_model.labels is absent, and there is no section label that would make some; say which labelled "
            "solutions, such as {kind: math_shepherd, path: ...}"
        )
    if c.labels is None and c.supervision == "preference":
        yield "reward_model.supervision is preference, and the label stage makes no pairs; give reward_model.labels"
    if c.labels is None and c.supervision == "process" and config.label and not config.label.num_completions:
        yield (
            "reward_model.supervision is process, and label.num_completions 0 labels no steps; set it to 8, or "
            "supervision to outcome"
        )
    if c.batch_size % c.microbatches:
        yield (
            f"reward_model: batch_size {c.batch_size} cannot be cut into {c.microbatches} equal microbatches; "
            f"choose a divisor of {c.batch_size}"
        )
    if c.step_tag is not None and c.supervision != "process":
        yield (
            f"reward_model.step_tag is {c.step_tag!r} and supervision {c.supervision}, which scores no steps; "
            "leave step_tag out"
        )
    if c.good_token == c.bad_token:
        yield f"reward_model: good_token and bad_token are both {c.good_token!r}; they must differ"
    if config.model.lora is not None:
        yield "reward_model trains all weights and no adapters; leave model.lora out, or train it in a run of its own"


def _rl(rl: RLConfig) -> Iterator[str]:
    P, G, M = rl.prompts_per_step, rl.num_generations, rl.microbatches
    if not rl.rewards:
        yield "rl.rewards is empty; write at least one, for example {kind: accuracy}"
    if rl.sampling.temperature == 0:
        yield "rl.sampling.temperature is 0: the completions of a group would be equal; choose one above 0"
    narrow = [f"{name} {value}" for name, value, all_tokens in _filters(rl.sampling) if value != all_tokens]
    if rl.importance_cap is not None and narrow:
        yield (
            f"rl.importance_cap is {rl.importance_cap}, and rl.sampling.{' and '.join(narrow)} leaves tokens out: "
            "no factor makes up for what cannot be drawn; leave one of the two out"
        )
    if rl.steps_off_policy and rl.importance_cap is None:
        yield (
            "rl.steps_off_policy is 1 and rl.importance_cap is absent: completions of older weights would be taken for "
            "those of the present ones; give a cap, for example 2.0"
        )
    if rl.importance_mode != "token_truncate" and rl.importance_cap is None:
        yield (
            f"rl.importance_mode is {rl.importance_mode}, and rl.importance_cap, the bound it speaks of, is null; give "
            "one, for example 2.0, or leave the mode out"
        )
    if P % rl.sample_parts:
        yield (f"rl: {P} prompts cannot be cut into {rl.sample_parts} equal sample_parts; choose a divisor of {P}")
    apart = [name for name, none in (("sample_parts", 1), ("steps_off_policy", 0)) if getattr(rl, name) != none]
    if rl.fused_steps and apart:
        yield (
            f"rl.fused_steps is {rl.fused_steps}, and fused steps have no work of the host that rl."
            f"{' and rl.'.join(apart)} could arrange; set rl.fused_steps to 0"
        )
    if rl.fused_steps and rl.sampling.stop:
        yield (
            f"rl.fused_steps is {rl.fused_steps}, and rl.sampling.stop is {list(rl.sampling.stop)}: stop strings are "
            "found in text, on the host; set rl.fused_steps to 0, or leave rl.sampling.stop out"
        )
    if rl.tools is not None:
        yield from _tools("rl", rl.sampling)
        host = [f"{name} {getattr(rl, name)}" for name in ("fused_steps", "steps_off_policy") if getattr(rl, name)]
        if host:
            yield (
                f"rl.tools runs programs while completions are sampled, which is work of the host, and "
                f"rl.{' and rl.'.join(host)} leaves the host none there; set it to 0, or leave rl.tools out"
            )
    for name, what in (("fused_steps", "have no host between them"), ("steps_off_policy", "are of older weights")):
        if rl.dead_groups == "refill" and getattr(rl, name):
            yield (
                f"rl.dead_groups is refill, and rl.{name} {getattr(rl, name)}: groups are replaced by the host, from "
                f"the present policy, and those steps {what}; set rl.{name} to 0, or dead_groups to exclude"
            )
    if rl.rollout_weights == "int8" and rl.importance_cap is None:
        yield (
            "rl.rollout_weights: int8 samples from another policy than the trained one, and rl.importance_cap, which "
            "corrects for that, is null; set it, 2.0 for instance, or rollout_weights to same"
        )
    yield from _iterations(rl)
    if M and P * G % M:
        yield (
            f"rl: {P} prompts of {G} completions cannot be cut into {M} equal microbatches; choose a divisor of {P * G}"
        )


def _iterations(rl: RLConfig) -> Iterator[str]:
    """What needs the host between steps, or a sampler that is the present policy, as iterations with line 12 do."""
    sync = f"rl.sync_ref_model, every {rl.ref_model_sync_steps} updates,"
    if rl.sync_ref_model and rl.fused_steps:
        yield (
            f"{sync} changes the reference between steps, and rl.fused_steps is {rl.fused_steps}: several steps are "
            "one program with one reference; set rl.fused_steps to 0"
        )
    if rl.sync_ref_model and (updates := rl.iterations * rl.max_steps * rl.num_iterations) < rl.ref_model_sync_steps:
        yield (
            f"{sync} would never change the reference, as there are {updates} updates; lower rl.ref_model_sync_steps, "
            "or leave rl.sync_ref_model out"
        )
    c = rl.continue_reward_model
    if c is None:
        return
    key = "rl.continue_reward_model"
    if rl.iterations == 1:
        yield f"{key} is done between iterations, and rl.iterations is 1; raise it, or leave {key} out"
    host = [f"{name} {getattr(rl, name)}" for name in ("fused_steps", "steps_off_policy") if getattr(rl, name)]
    if host:
        yield (
            f"{key} makes another reward model between two iterations, and with rl.{' and rl.'.join(host)} the first "
            "step of an iteration is under way by then; set it to 0"
        )
    if rl.tools is not None:
        yield f"{key} labels solutions that are written in one go, and rl.tools interrupts them; leave one of them out"
    if not any(reward.kind == "learned" for reward in rl.rewards):
        kinds = ", ".join(reward.kind for reward in rl.rewards)
        yield f"{key}: rl.rewards has no reward model, only {kinds}; add {{kind: learned}}, or leave {key} out"
    if c.batch_size % c.microbatches:
        yield (
            f"{key}: batch_size {c.batch_size} cannot be cut into {c.microbatches} equal microbatches; choose a "
            f"divisor of {c.batch_size}"
        )


def _best_metric(config: Config) -> Iterator[str]:
    """The metric by which the best step is kept must be one that the run computes."""
    rl, evaluation = config.rl, config.evaluation
    if rl is None or rl.best_metric is None:
        return
    if evaluation is None or not rl.eval_steps:
        yield (
            f"rl.best_metric is {rl.best_metric}, and nothing is measured while training; write a section evaluation, "
            "and rl.eval_steps"
        )
        return
    of_k = [f"{name}@{k}" for k in evaluation.k for name in ("pass", "maj")]
    names = ["greedy", f"mean@{evaluation.num_samples}", *of_k]
    there = [*names] if evaluation.source is not None else []
    there += [f"{benchmark.kind}/{name}" for benchmark in evaluation.benchmarks or () for name in names]
    if rl.best_metric not in there:
        yield f"rl.best_metric is {rl.best_metric!r}, which is not measured; there are {', '.join(there)}"


def _tools(section: str, sampling: SamplingConfig) -> Iterator[str]:
    """Refuse what a completion in rounds cannot have."""
    if sampling.stop:
        yield (
            f"{section}.tools: completions in rounds end by themselves, and {section}.sampling.stop is "
            f"{list(sampling.stop)}, which is looked for when they are whole; leave one of the two out"
        )


def _filters(sampling: SamplingConfig) -> tuple[tuple[str, float, float], ...]:
    """What may leave out tokens: name, value, and the value that leaves out none."""
    return ("top_k", sampling.top_k, 0), ("top_p", sampling.top_p, 1.0), ("min_p", sampling.min_p, 0.0)


def _evaluation(evaluation: EvaluationConfig) -> Iterator[str]:
    if evaluation.tools is not None:
        yield from _tools("evaluation", evaluation.sampling)
    n = evaluation.num_samples
    kinds = [benchmark.kind for benchmark in evaluation.benchmarks or ()]
    if evaluation.source is None and not kinds:
        yield "evaluation.source is missing; write `{kind: jsonl, path: ...}`, or benchmarks: `[{kind: gsm8k}]`"
    if (evaluation.source is None) != (evaluation.reward is None):
        absent = "source" if evaluation.source is None else "reward"
        yield f"evaluation.{absent} is missing: the reward judges what the source asks; give both, or neither"
    if repeated := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        yield f"evaluation.benchmarks names {', '.join(repeated)} twice; results are by name"
    if over := [k for k in evaluation.k if k > n]:
        yield (
            f"evaluation.k: {', '.join(map(str, over))} of pass@k and maj@k is above num_samples {n}; "
            "draw more samples or leave it out"
        )
