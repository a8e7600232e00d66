"""Small tokenizers of the kinds there are: with a chat template, with a BOS, SentencePiece-like."""

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Tom has 47 apples. He gets 8 more. How many apples does Tom have now?\n",
    "So the answer is $\\boxed{42}$.\n  x + y = 7, so\n\ty = 7 - x. system user assistant think\n",
] * 20

CHATML = """\
{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe right.<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

WITH_BOS = """\
{{- bos_token }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}
{%- else %}{{ raise_exception('only user and assistant') }}{% endif %}
{%- endfor %}"""


def byte_level(special, template=None, **kwargs):
    """A byte-level BPE with GPT-like splitting."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **kwargs)


@pytest.fixture(scope="session")
def chatml():
    """Like Qwen2.5: ChatML, several end tokens, no BOS, `<think>` added but not special."""
    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        CHATML,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tokenizer


@pytest.fixture(scope="session")
def bos_tokenizer():
    """Adds a BOS to plain text, has a template that writes it, and no pad token."""
    tokenizer = byte_level(["<s>", "</s>"], WITH_BOS, bos_token="<s>", eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def spaced():
    """Like SentencePiece: a space is invented before the first word; no chat template."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=names, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    # The byte pieces were special only for the trainer's sake.
    text = backend.to_str()
    backend = Tokenizer.from_str(_keep_added(text, {"<unk>", "<s>", "</s>"}))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


def _keep_added(text, names):
    import json

    data = json.loads(text)
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in names]
    return json.dumps(data)
