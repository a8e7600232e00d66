"""From text to token ids, where what came from data never becomes a control token.

A chat template and the user's own prompt template may write control tokens such as `<|im_end|>`; a question
may not: it would forge turns. `as_data` wraps the control tokens of a data string in two private-use
characters, which survive rendering, and `encode` encodes what they wrap as plain text. (transformers has the
same idea behind `apply_chat_template(sanitize_control_tokens=True)`; here one path serves templates, plain
text and demonstrations.)
"""

from __future__ import annotations

import functools
import re

START, END = "\U000f0000", "\U000f0001"


class TokenizerError(ValueError):
    """A tokenizer that cannot do what was asked; the message names it, and the remedy."""


def tokenizer_name(tokenizer) -> str:
    """Return the name a user knows the tokenizer by."""
    return getattr(tokenizer, "name_or_path", "") or "(made here)"


def as_data(text: str, tokenizer, *, markup: bool = True) -> str:
    """Mark the control tokens in a string that came from data, so that `encode` takes them as plain text.

    Control tokens are the tokenizer's special tokens and, with `markup`, its other added tokens of the form
    `<...>` or `[...]` (`<think>`, `<tool_call>`). Demonstrations leave `markup` out: a policy that thinks in
    `<think>` learns it.
    """
    text = unmarked(text)
    control = _control_pattern(tokenizer, len(tokenizer), markup)
    if len(control.findall(_normalized(tokenizer, text))) > len(control.findall(text)):
        return f"{START}{text}{END}"  # a normalizer makes one of, say, full-width characters
    return control.sub(f"{START}\\g<0>{END}", text)


def unmarked(text: str) -> str:
    """Return the text as a reader should see it."""
    return text.replace(START, "").replace(END, "")


def encode(tokenizer, text: str, *, continues: bool = False) -> list[int]:
    """Return the ids of a text, with nothing added; marked parts (`as_data`) give no control token.

    `continues` says that other text stands before it, so that SentencePiece adds no space in front. Raises
    `TokenizerError` if a character is not in the vocabulary, or a control token cannot be written as text.
    """
    ids: list[int] = []
    for i, piece in enumerate(_MARKED.split(text)):
        if piece:
            one = _encode_data if i % 2 else _encode_normally
            ids += _in_context(tokenizer, piece, one, bool(continues or ids))
    return ids


def encode_answer(tokenizer, text: str) -> list[int]:
    """Return the ids that a policy which continues a prompt would write for a reference answer, as plain text."""
    return encode(tokenizer, as_data(text, tokenizer, markup=False), continues=True)


_MARKED = re.compile(f"{START}([^{START}{END}]*){END}|[{START}{END}]")
_MARKUP = re.compile(r"<.+>|\[.+\]", re.DOTALL)


@functools.lru_cache(maxsize=32)
def _control_pattern(tokenizer, size: int, markup: bool) -> re.Pattern:
    del size  # the key of the cache: a tokenizer may have grown
    added = tokenizer.added_tokens_decoder.values()
    names = [t.content for t in added if t.special or (markup and _MARKUP.fullmatch(t.content))]
    longest_first = sorted({*names, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _in_context(tokenizer, piece: str, one, continues: bool) -> list[int]:
    """The ids of a piece; where it continues a text, what stands between is written before it and taken off again."""
    for anchor, ids_of_anchor in _anchors(tokenizer, len(tokenizer)) if continues else ():
        ids = one(tokenizer, anchor + piece)
        if tuple(ids[: len(ids_of_anchor)]) == ids_of_anchor:  # else the two have merged
            return ids[len(ids_of_anchor) :]
    return one(tokenizer, piece)


@functools.lru_cache(maxsize=16)
def _anchors(tokenizer, size: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Texts after which no space is invented, with their ids; none for a tokenizer that never invents one."""
    del size
    try:
        alone, after = _encode_normally(tokenizer, "a"), _encode_normally(tokenizer, "\na")
    except TokenizerError:  # a vocabulary of a few characters
        return ()
    if after[-len(alone) :] == alone:
        return ()
    return tuple((anchor, tuple(_encode_normally(tokenizer, anchor))) for anchor in ("\n", "\x02"))


def _normalized(tokenizer, text: str) -> str:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return text if normalizer is None else normalizer.normalize_str(text)


def _encode_normally(tokenizer, text: str) -> list[int]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        if backend is not None:  # four times as fast as through transformers; `load_tokenizer` took off truncation
            return backend.encode(text, add_special_tokens=False).ids
        return tokenizer.encode(text, add_special_tokens=False, verbose=False)
    except Exception as error:  # the Rust library raises bare exceptions
        raise TokenizerError(_unknown(tokenizer, text, error)) from error


def _encode_data(tokenizer, text: str) -> list[int]:
    """Run normalizer, pre-tokenizer and model, but not the search for added tokens that comes before them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    else:
        ids = _without_added_tokens(tokenizer, backend, text)
    forged = [t.content for i, t in tokenizer.added_tokens_decoder.items() if i in ids and t.content in text]
    if forged:
        raise TokenizerError(
            f"tokenizer {tokenizer_name(tokenizer)}: {forged[0]!r} stands in the data as text, "
            f"and this tokenizer can only write it as a control token; remove it from the data"
        )
    return ids


def _without_added_tokens(tokenizer, backend, text: str) -> list[int]:
    try:
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words = [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
        return [token.id for word in words for token in backend.model.tokenize(word)]
    except Exception as error:
        raise TokenizerError(_unknown(tokenizer, text, error)) from error


def _unknown(tokenizer, text: str, error: Exception) -> str:
    vocabulary = tokenizer.get_vocab()
    strange = sorted({character for character in text if character not in vocabulary})
    shown = text if len(text) <= 80 else text[:77] + "..."
    return (
        f"tokenizer {tokenizer_name(tokenizer)}: cannot encode {shown!r} ({error}); "
        f"not in its vocabulary: {''.join(strange)!r}. Use a tokenizer that knows these characters "
        f"(model.tokenizer_name_or_path), or change the text"
    )
