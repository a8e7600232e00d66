"""Tokenizers: made from an alphabet, or loaded and checked; which ids end a completion, and which one
pads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from grpo_jax.config import PromptConfig
from grpo_jax.data.encoding import TokenizerError, tokenizer_name
from grpo_jax.data.templates import has_template, probe_template, writes_date
from grpo_jax.types import Problem

PAD, EOS = "<pad>", "<eos>"
SAMPLE = "The answer is 42.\n  x + y = 7, so\n\ty = 7 - x.\nNaïve: 3 ≤ π 答案"
HEEDED_BOS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer")
"""Classes, with or without Fast, that did as add_bos_token says in transformers 4; their models were trained so."""


def character_tokenizer(alphabet: str):
    """Return a Hugging Face tokenizer with one token a character, `<pad>` = 0 and `<eos>` = 1.

    Decoding gives the text back exactly; a character that is not in the alphabet is refused when encoded.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [PAD, EOS, *sorted(set(alphabet))]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    check_round_trip(tokenizer, "".join(names[2:]))
    return tokenizer


def prompt_characters(config: PromptConfig) -> set[str]:
    """Return the characters that format `text` writes around a question."""
    parts = [config.template.replace("{question}", ""), config.suffix]
    if config.examples:
        form = " \n" if config.example is None else config.example.replace("{question}", "").replace("{answer}", "")
        parts += [form, *(text for example in config.examples for text in example)]
    return set("".join(parts))


def characters(problems: Iterable[Problem], config: PromptConfig) -> str:
    """Return all characters of the problems and of the prompt around them, sorted: the alphabet of a file."""
    found = prompt_characters(config)
    for problem in problems:
        found.update(problem.question, problem.answer, problem.solution or "")
        found.update(*(message["content"] for message in problem.messages or ()))
    return "".join(sorted(found))


def load_tokenizer(path: str, note: Callable[[str], None] = print, *, prompt_format: str = "auto"):
    """Load a tokenizer from a directory or a hub name, check it, and give it a pad token.

    Checked: text comes back from its ids with spaces and line breaks (transformers before 5.22 lost every
    space of some byte-level tokenizers), and the chat template, unless `prompt_format` is text, renders
    within a time limit. A tokenizer without pad token pads with its end-of-sequence token, as masks never
    look at ids. A beginning of sequence that tokenizer_config.json asks for is added, also where transformers
    passes over it (5.x does if there is a tokenizer.json; DeepSeek's are said not to add it themselves:
    huggingface/swift-transformers#161). `note` is told of the pad token, and of a template that writes the
    date. Raises `TokenizerError`.
    """
    from transformers import AutoTokenizer

    file = _model_file(path, "tokenizer_config.json")
    settings = _json(file) if file else {}
    if "auto_map" in settings:
        raise TokenizerError(f"{file}: auto_map asks to run code of the directory, which is never done; remove it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **_asked_bos(settings))
    except Exception as error:
        raise TokenizerError(_cannot_load(path, error)) from error
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    check_round_trip(tokenizer)
    if has_template(tokenizer) and prompt_format != "text":
        probe_template(tokenizer)
        if writes_date(tokenizer):
            note(
                f"tokenizer {path}: its chat template writes today's date; prompts have prompt.date instead, every day"
            )
    if tokenizer.pad_token_id is None:
        _pad_with_eos(tokenizer, note)
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        note(
            f"tokenizer {path}: {tokenizer.eos_token!r} is both padding and the end of sequence; "
            f"masks come from lengths"
        )
    return tokenizer


def check_round_trip(tokenizer, sample: str = SAMPLE) -> None:
    """Raise `TokenizerError` unless the sample's known characters come back from their ids unchanged."""
    known = "".join(character for character in sample if _knows(tokenizer, character))
    back = tokenizer.decode(tokenizer.encode(known, add_special_tokens=False), clean_up_tokenization_spaces=False)
    if back.removeprefix(" ") != known.removeprefix(" "):
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: does not give text back: {known!r} became {back!r}. "
            f"Older transformers load some tokenizers wrongly (5.22 mended byte-level ones): upgrade it, "
            f"or give another tokenizer with model.tokenizer_name_or_path"
        )


def pad_id(tokenizer) -> int:
    """Return the id that fills what is no token; the end of sequence where there is no pad token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def eos_ids(tokenizer, model_path: str | None = None) -> tuple[int, ...]:
    """Return every id that ends a completion, the tokenizer's own first.

    Sources: the tokenizer, and beside the weights generation_config.json and config.json (each a number or a
    list). Raises `TokenizerError` if there is none.
    """
    found = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        found += _eos_in(_model_file(model_path, name)) if model_path else []
    ids = tuple(dict.fromkeys(int(i) for i in found if i is not None))
    if not ids:
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: has no end-of-sequence token, and "
            f"{model_path or 'no model path'} names none; a completion could never end. Set eos_token in "
            f"tokenizer_config.json, or eos_token_id in generation_config.json"
        )
    return ids


def check_vocabulary(tokenizer, vocab_size: int) -> None:
    """Raise `TokenizerError` if the tokenizer has ids for which the model has no embedding."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: its largest id is {largest}, but the model's vocabulary "
            f"has {vocab_size} entries (0..{vocab_size - 1}); use the tokenizer the model was trained with"
        )


def _knows(tokenizer, character: str) -> bool:
    try:
        ids = tokenizer.encode(character, add_special_tokens=False)
    except Exception:  # the Rust library raises bare exceptions
        return False
    # No id at all is knowing it: a tokenizer that drops spaces must fail the round trip, not shorten it.
    return tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids


def _pad_with_eos(tokenizer, note: Callable[[str], None]) -> None:
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: has neither a pad nor an end-of-sequence token; "
            f"set eos_token in tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token
    note(
        f"tokenizer {tokenizer_name(tokenizer)}: no pad token; padding with the end of sequence "
        f"{tokenizer.eos_token!r} ({tokenizer.eos_token_id}), masks come from lengths"
    )


def _asked_bos(settings: dict) -> dict[str, bool]:
    """The add_bos_token of tokenizer_config.json, where its class would have heeded it."""
    heeded = str(settings.get("tokenizer_class")).removesuffix("Fast") in HEEDED_BOS
    asked = settings.get("add_bos_token")
    return {"add_bos_token": asked} if heeded and isinstance(asked, bool) and settings.get("bos_token") else {}


def _model_file(model_path: str, name: str) -> Path | None:
    """A file beside the weights, in a directory or in the hub's cache; None where there is none."""
    from transformers.utils.hub import cached_file

    try:
        file = cached_file(model_path, name, _raise_exceptions_for_missing_entries=False)
    except OSError:  # neither a directory nor a name that the hub, or its cache, knows
        return None
    return Path(file) if file else None


def _eos_in(file: Path | None) -> list:
    ids = _json(file).get("eos_token_id") if file else None
    return ids if isinstance(ids, list) else [ids]


def _json(file: Path) -> dict:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{file}: cannot be read as JSON ({error}); mend it") from error
    if not isinstance(settings, dict):
        raise TokenizerError(f"{file}: should be an object of settings, is a {type(settings).__name__}; mend it")
    return settings


def _cannot_load(path: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    where = Path(path)
    if where.is_dir():
        files = ", ".join(sorted(p.name for p in where.iterdir())[:8]) or "nothing"
        return f"tokenizer {path}: cannot be loaded: {reason} (the directory has: {files})"
    return (
        f"tokenizer {path}: cannot be loaded: {reason} (no such directory, so it was taken as a hub name; "
        f"give a directory with tokenizer.json as model.tokenizer_name_or_path)"
    )
