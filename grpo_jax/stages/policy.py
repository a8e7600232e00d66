"""The policy of a run: tokenizer, decoder, and the weights to start from.

What is trained are all weights or, with `model.lora`, adapters on weights that are frozen and lie on the mesh once, in
the type in which they are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from grpo_jax.config import Config, LoraConfig
from grpo_jax.configure import ConfigError, find
from grpo_jax.data.tokenizer import character_tokenizer, check_vocabulary, eos_ids, load_tokenizer, prompt_characters
from grpo_jax.models.decoder import Decoder, DecoderConfig, from_architecture
from grpo_jax.models.hf import read_config, save_params
from grpo_jax.models.loading import with_matrices_in
from grpo_jax.models.lora import (
    SUFFIX,
    Lora,
    LoraError,
    abstract_adapters,
    choose_targets,
    count_adapters,
    init_adapters,
)
from grpo_jax.models.parameters import abstract_params, count, init_params
from grpo_jax.models.peft import check_adapters, load_adapters, save_adapters
from grpo_jax.sharding import run_key
from grpo_jax.stages.convert_folder import check_model, load_model, model_record


def open_tokenizer(config: Config, note: Callable[[str], None]) -> Any:
    """The tokenizer that the config names, or one token for each character of its sources.

    Raises `ConfigError` where the export could not be read: transformers loads every model of type qwen2 with its own
    tokenizer, whatever lies beside the weights.
    """
    name = config.model.tokenizer_name_or_path or config.model.model_name_or_path
    if name:
        return load_tokenizer(name, note, prompt_format=config.prompt.format)
    if config.model.architecture.qkv_bias:
        raise ConfigError(
            "model.architecture.qkv_bias: true makes a qwen2, which transformers never reads with one token a "
            "character; set it to false, or give model.tokenizer_name_or_path a tokenizer of Qwen's kind"
        )
    return character_tokenizer(alphabet(config))


def alphabet(config: Config) -> str:
    """All characters of the sources, their templates included.

    Raises `ConfigError` for a source whose characters are not known beforehand.
    """
    sections = [section for section in (config.sft, config.label, config.rl, config.evaluation) if section]
    characters = prompt_characters(config.prompt)
    sources = [("data.sources", section.source) for section in sections if section.source]
    if model := config.reward_model:
        sources += [("data.labels", labels) for labels in (model.labels, model.old_labels, model.eval_labels) if labels]
    if config.rl and (more := config.rl.continue_reward_model) and more.old_labels:
        sources.append(("data.labels", more.old_labels))
    for package, source in sources:
        module = find(package, source.kind)
        if not hasattr(module, "alphabet"):
            raise ConfigError(
                f"model: a policy from scratch on source {source.kind!r} needs model.tokenizer_name_or_path; only "
                "source arithmetic knows its characters beforehand"
            )
        characters |= set(module.alphabet(source))
    return "".join(sorted(characters))


def read_decoder_config(config: Config) -> DecoderConfig | None:
    """The decoder that a Hugging Face config.json describes; None where it is made from `model.architecture`.

    Raises `LoraError` for targets of `model.lora` that it does not have.
    """
    name = config.model.model_name_or_path
    if not name:
        return None
    decoder = read_config(name, **decoder_options(config))
    return decoder if config.model.lora is None else with_adapters(decoder, config.model.lora)


def with_adapters(decoder: DecoderConfig, lora: LoraConfig) -> DecoderConfig:
    """The decoder with the adapters that a config asks for; raises `LoraError`."""
    try:
        targets = choose_targets(lora.targets, experts=bool(decoder.num_experts))
    except LoraError as error:
        raise LoraError(f"model.lora.targets: {error}") from error
    adapters = Lora(rank=lora.rank, alpha=lora.alpha, rslora=lora.rslora, targets=targets)
    return dataclasses.replace(decoder, lora=adapters)


def decoder_options(config: Config) -> dict[str, Any]:
    """How a decoder is computed, whatever its shape."""
    names = ("dtype", "remat", "scan_layers", "decode_layers", "decode_weights", "experts_kernel", "attention_kernel")
    return {name: getattr(config.model, name) for name in names}


def open_decoder(config: Config, tokenizer: Any, decoder_config: DecoderConfig | None) -> Decoder:
    """The decoder, of `model.architecture` if no other is given; the tokenizer must fit its vocabulary."""
    if decoder_config is None:
        options = decoder_options(config)
        decoder_config = from_architecture(config.model.architecture, vocab_size=len(tokenizer), **options)
    check_vocabulary(tokenizer, decoder_config.vocab_size)
    return Decoder(decoder_config)


def completion_ends(config: Config, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a completion: the tokenizer's, and all of the model's generation config."""
    return eos_ids(tokenizer, config.model.model_name_or_path)


def initial_params(config: Config, decoder: DecoderConfig, mesh: Mesh) -> Any:
    """What is trained, as the pipeline starts it, created sharded: all weights, or adapters."""
    name, lora = config.model.model_name_or_path, config.model.lora
    if lora is None:
        return load_model(name, decoder, mesh) if name else init_params(decoder, run_key(config.seed), mesh)
    if lora.adapter_name_or_path:
        return load_adapters(lora.adapter_name_or_path, decoder, mesh)
    return init_adapters(decoder, run_key(config.seed), mesh)


def frozen_params(config: Config, decoder: DecoderConfig, mesh: Mesh) -> Any | None:
    """The base of the adapters, created sharded; None where all weights are trained."""
    if decoder.lora is None:
        return None
    return load_model(config.model.model_name_or_path, decoder, mesh, dtype=decoder.dtype)


def check_weights(config: Config, decoder: DecoderConfig, mesh: Mesh) -> None:
    """Refuse weights that are not all there or of another model, and a mesh that does not divide them; loads none."""
    if config.model.model_name_or_path:
        check_model(config.model.model_name_or_path, decoder, mesh)
    if decoder.lora and config.model.lora.adapter_name_or_path:
        check_adapters(config.model.lora.adapter_name_or_path, decoder)
    abstract(decoder, mesh)


def abstract(decoder: DecoderConfig, mesh: Mesh) -> Any:
    """Shapes and shardings of what is trained; raises `ShardingError` if the mesh does not divide one."""
    return abstract_adapters(decoder, mesh) if decoder.lora else abstract_params(decoder, mesh)


def abstract_frozen(decoder: DecoderConfig, mesh: Mesh) -> Any | None:
    """Types, shapes and shardings of the base of the adapters; None where all weights are trained."""
    if decoder.lora is None:
        return None
    return with_matrices_in(abstract_params(decoder, mesh), decoder.compute_dtype)


def describe_adapters(decoder: DecoderConfig) -> str:
    """What is trained, in a line."""
    lora, names = decoder.lora, ", ".join(target + SUFFIX for target in decoder.lora.targets)
    return (
        f"lora: rank {lora.rank}, scale {lora.scale:g}, on {names}: {count_adapters(decoder):,} numbers are trained "
        f"beside {count(decoder):,} that are frozen"
    )


def base_record(config: Config, decoder: DecoderConfig) -> dict[str, Any]:
    """What checkpoints of adapters keep of the weights beside them: which they are, and how adapters are added."""
    if decoder.lora is None:
        return {}
    base = model_record(config.model.model_name_or_path)
    if config.model.tokenizer_name_or_path:
        base.pop("tokenizer", None)  # it is not the run's
    return {"base": base, "lora": dataclasses.asdict(decoder.lora) | {"targets": list(decoder.lora.targets)}}


def export_weights(
    params: Any, decoder: DecoderConfig, tokenizer: Any, ends: tuple[int, ...], path: Path, **options: Any
) -> None:
    """Write weights as a Hugging Face directory, in the type they are computed in; `options` as in `save_params`."""
    ids = {"eos_token_id": list(ends), "pad_token_id": tokenizer.pad_token_id}
    save_params(params, decoder, tokenizer, path, **{"dtype": decoder.dtype, "generation_config": ids} | options)


def export_adapters(adapters: Any, config: Config, decoder: DecoderConfig, tokenizer: Any, path: Path) -> None:
    """Write the adapters as a PEFT directory, which names the base by its whole path or its hub name."""
    name = config.model.model_name_or_path
    base = str(Path(name).resolve()) if Path(name).is_dir() else name
    save_adapters(adapters, decoder, path, base_name=base, tokenizer=tokenizer)
