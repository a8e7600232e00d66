"""Small tokenizers that are made as those of well-known models are, each saved as such a model's directory.

What is like the model: how text is split and spaces are written, what adds the beginning of sequence, what the files
say of it, the control tokens and the chat template. Vocabularies are tiny.
"""

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Tom has 47 apples. He gets 8 more. How many apples does Tom have now?\n",
    "So the answer is $\\boxed{42}$.\n  x + y = 7, so\n\ty = 7 - x. system user assistant think\n",
    "User: Question: 7 + 8 = Answer: Assistant:\n\n",
] * 20


class Kind(NamedTuple):
    """A look-alike, and what it should turn out to be."""

    bos: str | None  # written before plain text
    eos: str
    control: tuple[str, ...]  # tokens that data must not become


KINDS = {
    "deepseek": Kind(
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    ),
    "llama2": Kind("<s>", "</s>", ("<s>", "</s>", "<unk>")),
    "llama3": Kind(
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "gemma": Kind("<bos>", "<eos>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<unk>")),
    "qwen": Kind(None, "<|im_end|>", ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>")),
}

DEEPSEEK_TEMPLATE = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}\
{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}\
{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}\
{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

LLAMA2_TEMPLATE = """\
{% for message in messages %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}\
{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}{% endfor %}"""

LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] | trim }}{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages if message['role'] != 'system' %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

GEMMA_TEMPLATE = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}\
{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

QWEN_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""


def save(kind: str, folder: Path) -> Path:
    """Write the directory of a look-alike; returns it."""
    MAKERS[kind](folder)
    return folder


def deepseek(folder: Path) -> None:
    """Byte-level BPE that calls itself LlamaTokenizerFast; the BOS is asked for in tokenizer_config.json alone."""
    bos, eos = KINDS["deepseek"].control
    split = [Regex(r"[\r\n]"), Regex(r"\s?\p{L}+"), Regex(r"\s?\p{P}+")]
    isolated = [pre_tokenizers.Split(pattern, "isolated") for pattern in split]
    backend = byte_level([*isolated, pre_tokenizers.Digits(individual_digits=True)], (bos, eos))
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    write(
        folder,
        backend,
        tokenizer_class="LlamaTokenizerFast",
        add_bos_token=True,
        add_eos_token=False,
        bos_token=token(bos),
        eos_token=token(eos),
        pad_token=token(eos),
        unk_token=None,
        legacy=True,
        sp_model_kwargs={},
        clean_up_tokenization_spaces=False,
        chat_template=DEEPSEEK_TEMPLATE,
    )


def llama2(folder: Path) -> None:
    """BPE over characters with `▁` for spaces and bytes for the unknown; no pad token."""
    backend = sentencepiece_like(["<unk>", "<s>", "</s>"])
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    opened_by(backend, "<s>")
    write(
        folder,
        backend,
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        add_eos_token=False,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token=None,
        chat_template=LLAMA2_TEMPLATE,
    )


def llama3(folder: Path) -> None:
    """Byte-level BPE whose post-processor writes the BOS; two ends; a template that writes today's date."""
    control = KINDS["llama3"].control
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated")
    backend = byte_level([split], control, ignore_merges=True)
    opened_by(backend, control[0], before=[processors.ByteLevel(trim_offsets=False)])
    write(
        folder,
        backend,
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=control[0],
        eos_token=control[-1],
        clean_up_tokenization_spaces=True,
        chat_template=LLAMA3_TEMPLATE,
    )
    ends = [backend.token_to_id("<|end_of_text|>"), backend.token_to_id("<|eot_id|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


def gemma(folder: Path) -> None:
    """Spaces are written `▁` and none is invented; turns end with a token that only the generation config names."""
    backend = sentencepiece_like(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"])
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    opened_by(backend, "<bos>")
    write(
        folder,
        backend,
        tokenizer_class="GemmaTokenizer",
        add_bos_token=True,
        add_eos_token=False,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        chat_template=GEMMA_TEMPLATE,
    )
    ends = [backend.token_to_id("<eos>"), backend.token_to_id("<end_of_turn>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


def qwen(folder: Path) -> None:
    """Byte-level BPE without BOS; thinking marks are added tokens that are not special."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated")
    backend = byte_level([split], special)
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    write(
        folder,
        backend,
        tokenizer_class="Qwen2Tokenizer",
        add_bos_token=False,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        chat_template=QWEN_TEMPLATE,
    )


MAKERS = {"deepseek": deepseek, "llama2": llama2, "llama3": llama3, "gemma": gemma, "qwen": qwen}


def byte_level(split: list, special: tuple[str, ...], *, ignore_merges: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return backend


def sentencepiece_like(special: list[str]) -> Tokenizer:
    """BPE with the special tokens and all bytes in front of its vocabulary; only the special ones are added tokens."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    names = [*special, *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=names, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    data = json.loads(backend.to_str())  # to the trainer the bytes were special, too
    data["added_tokens"] = [added for added in data["added_tokens"] if added["content"] in special]
    return Tokenizer.from_str(json.dumps(data))


def opened_by(backend: Tokenizer, bos: str, before: list | None = None) -> None:
    written = [(bos, backend.token_to_id(bos))]
    template = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=written)
    backend.post_processor = processors.Sequence([*before, template]) if before else template


def token(name: str) -> dict:
    return {
        "__type": "AddedToken",
        "content": name,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


def write(folder: Path, backend: Tokenizer, **settings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), "utf-8")
