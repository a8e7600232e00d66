"""The policy of a run: tokenizer, decoder, and the weights to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from grpo_jax.config import Config
from grpo_jax.configure import ConfigError, find
from grpo_jax.data.tokenizer import character_tokenizer, check_vocabulary, eos_ids, load_tokenizer
from grpo_jax.models.decoder import Decoder, DecoderConfig, from_architecture
from grpo_jax.models.hf import check_params, load_params, read_config, save_params
from grpo_jax.models.parameters import abstract_params, init_params
from grpo_jax.sharding import run_key


def open_tokenizer(config: Config, note: Callable[[str], None]) -> Any:
    """The tokenizer that the config names, or one token for each character of its sources."""
    name = config.model.tokenizer_name_or_path or config.model.model_name_or_path
    return (
        load_tokenizer(name, note, prompt_format=config.prompt.format)
        if name
        else character_tokenizer(alphabet(config))
    )


def alphabet(config: Config) -> str:
    """All characters of the sources, their templates included.

    Raises `ConfigError` for a source whose characters are not known beforehand.
    """
    sections = [section for section in (config.sft, config.rl, config.evaluation) if section]
    characters = set(config.prompt.template.replace("{question}", "") + config.prompt.suffix)
    for source in (section.source for section in sections):
        module = find("data.sources", source.kind)
        if not hasattr(module, "alphabet"):
            raise ConfigError(
                f"model: a policy from scratch on source {source.kind!r} needs model.tokenizer_name_or_path; only "
                "source arithmetic knows its characters beforehand"
            )
        characters |= set(module.alphabet(source))
    return "".join(sorted(characters))


def read_decoder_config(config: Config) -> DecoderConfig | None:
    """The decoder that a Hugging Face config.json describes; None where it is made from `model.architecture`."""
    name = config.model.model_name_or_path
    return read_config(name, **decoder_options(config)) if name else None


def decoder_options(config: Config) -> dict[str, Any]:
    """How a decoder is computed, whatever its shape."""
    return {"dtype": config.model.dtype, "remat": config.model.remat, "scan_layers": config.model.scan_layers}


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
    """The weights that the pipeline starts from, created sharded."""
    if config.model.model_name_or_path:
        return load_params(config.model.model_name_or_path, decoder, mesh)
    return init_params(decoder, run_key(config.seed), mesh)


def check_weights(config: Config, decoder: DecoderConfig, mesh: Mesh) -> None:
    """Refuse weights that are not all there or of another model, and a mesh that does not divide them; loads none."""
    if config.model.model_name_or_path:
        check_params(config.model.model_name_or_path, decoder, mesh)
    else:
        abstract(decoder, mesh)


def abstract(decoder: DecoderConfig, mesh: Mesh) -> Any:
    """Shapes and shardings of the weights; raises `ShardingError` if the mesh does not divide one."""
    return abstract_params(decoder, mesh)


def export(params: Any, decoder: DecoderConfig, tokenizer: Any, ends: tuple[int, ...], path: Path) -> None:
    """Write the policy as a Hugging Face directory, in the type it was computed in."""
    ids = {"eos_token_id": list(ends), "pad_token_id": tokenizer.pad_token_id}
    save_params(params, decoder, tokenizer, path, dtype=decoder.dtype, generation_config=ids)
