"""Tokenizers: exact text back, pad and end tokens, and what is refused at load."""

import json
import shutil
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.config import PromptConfig
from grpo_jax.data.encoding import TokenizerError, as_data, encode
from grpo_jax.data.sources.arithmetic import Config, alphabet, build
from grpo_jax.data.tokenizer import (
    character_tokenizer,
    characters,
    check_round_trip,
    check_vocabulary,
    eos_ids,
    load_tokenizer,
    pad_id,
)
from grpo_jax.types import Problem

LETTERS = "0123456789+-=\n abc"
TOKENIZER = character_tokenizer(LETTERS)


@given(text=st.text(LETTERS))
def test_one_token_a_character_and_exact_text_back(text):
    ids = encode(TOKENIZER, text)
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text


def test_character_tokenizer_survives_saving(tmp_path):
    notes = []
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), notes.append)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert (loaded.pad_token_id, loaded.eos_token_id, notes) == (0, 1, [])
    ids = [*encode(loaded, "47+8=\n5 5"), loaded.eos_token_id, loaded.pad_token_id]
    assert loaded.decode(ids, skip_special_tokens=True) == "47+8=\n5 5"


def test_character_tokenizer_knows_every_character_of_its_source():
    for form in ("symbols", "words"):
        config = Config(form=form, slip_rate=0.5, size=500)
        tokenizer = character_tokenizer(alphabet(config))
        for problem in build(config, 0):
            assert tokenizer.decode(encode(tokenizer, problem.question)) == problem.question
            assert tokenizer.decode(encode(tokenizer, problem.solution)) == problem.solution


def test_unknown_character_is_refused_by_name():
    with pytest.raises(TokenizerError, match=r"cannot encode '3x\*4'.*not in its vocabulary: '\*x'"):
        encode(TOKENIZER, "3x*4")


def test_characters_of_a_list_of_problems():
    problem = Problem("ab", "7", solution="c", messages=({"role": "user", "content": "z"},))
    assert characters([problem], PromptConfig(template="Q{question}", suffix="!")) == "!7Qabcz"


def test_pad_falls_back_on_the_end_token_and_says_so(bos_tokenizer, spaced, tmp_path):
    notes = []
    bos_tokenizer.save_pretrained(tmp_path / "no_pad")
    tokenizer = load_tokenizer(str(tmp_path / "no_pad"), notes.append)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == pad_id(bos_tokenizer)
    assert "no pad token" in notes[0] and "</s>" in notes[0]
    spaced.save_pretrained(tmp_path / "pad_is_eos")
    load_tokenizer(str(tmp_path / "pad_is_eos"), notes.append)
    assert "both padding and the end of sequence" in notes[1]


def test_eos_ids_come_from_all_three_places(chatml, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [330, 5]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    own = chatml.eos_token_id
    assert eos_ids(chatml) == (own,)
    assert eos_ids(chatml, str(tmp_path)) == (own, *(i for i in (330, 5, 7) if i != own))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": None}))
    assert 7 not in eos_ids(chatml, str(tmp_path))
    assert eos_ids(chatml, "nobody/has-this-model") == (own,)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"config.json: cannot be read as JSON"):
        eos_ids(chatml, str(tmp_path))


def test_without_any_end_token_it_is_refused():
    class Endless:
        eos_token_id = None
        name_or_path = "endless"

    with pytest.raises(TokenizerError, match=r"tokenizer endless: has no end-of-sequence.*Set eos_token"):
        eos_ids(Endless())


def test_ids_beyond_the_vocabulary(chatml):
    check_vocabulary(chatml, len(chatml))
    with pytest.raises(TokenizerError, match=r"largest id is (\d+), but the model's vocabulary has \1 entries"):
        check_vocabulary(chatml, len(chatml) - 1)


def test_round_trip_holds_for_good_tokenizers(chatml, bos_tokenizer, spaced):
    for tokenizer in (TOKENIZER, chatml, bos_tokenizer, spaced):
        check_round_trip(tokenizer)


@pytest.mark.parametrize("way", ["alphabet", "directory", "directory, text prompts"])
def test_the_round_trip_is_checked_for_every_way_in(monkeypatch, tmp_path, way):
    TOKENIZER.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr("grpo_jax.data.tokenizer.check_round_trip", lambda tokenizer, *sample: asked.append(sample))
    if way == "alphabet":
        character_tokenizer("ab \n")
        assert asked == [("\n ab",)]
    else:
        load_tokenizer(str(tmp_path), prompt_format="text" if "text" in way else "auto")
        assert asked == [()]


def test_every_character_of_an_alphabet_comes_back():
    strange = "\r\n\t \u00a0\u2028\u200bé\u0301数 <pad>\U0001f600\x00"
    tokenizer = character_tokenizer(strange)
    ids = encode(tokenizer, as_data(strange, tokenizer))
    assert len(ids) == len(strange) and tokenizer.decode(ids) == strange


def test_a_tokenizer_that_loses_spaces_is_refused(chatml, tmp_path):
    """What transformers before 5.22 made of byte-level tokenizers labelled LlamaTokenizerFast."""
    chatml.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    data = json.loads(file.read_text())
    data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    file.write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match=rf"tokenizer {tmp_path}: does not give text back"):
        load_tokenizer(str(tmp_path))


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(TokenizerError, match=r"no_such: cannot be loaded: .*no such directory"):
        load_tokenizer(str(tmp_path / "no_such"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(TokenizerError, match=r"empty: cannot be loaded: .*the directory has: notes.txt"):
        load_tokenizer(str(tmp_path / "empty"))
    for text, fault in (("{", "cannot be read as JSON"), ("[]", "should be an object of settings, is a list")):
        (tmp_path / "empty" / "tokenizer_config.json").write_text(text)
        with pytest.raises(TokenizerError, match=rf"tokenizer_config\.json: {fault}"):
            load_tokenizer(str(tmp_path / "empty"))


HOSTILE = {
    "reaches": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "broken": ("{% for m in messages %}", "TemplateSyntaxError"),
    "divides": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "fills": ("{{ ('x' * 100000) * 100000 }}", "MemoryError"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_templates_are_refused_at_load(chatml, tmp_path, kind):
    template, reason = HOSTILE[kind]
    path = with_template(chatml, tmp_path, template)
    with pytest.raises(TokenizerError, match=rf"tokenizer {path}: its chat template failed: {reason}"):
        load_tokenizer(path)
    load_tokenizer(path, prompt_format="text")  # the remedy the message names


ENDLESS = [
    "{{ 9 ** (9 ** 9) }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_without_end_is_refused_within_its_time(chatml, tmp_path, monkeypatch, template):
    monkeypatch.setattr("grpo_jax.data.templates.TIME_LIMIT", 1.0)
    path = with_template(chatml, tmp_path, template)
    start = time.monotonic()
    with pytest.raises(TokenizerError, match=r"did not finish within 1 s; set prompt\.format to text"):
        load_tokenizer(path)
    assert time.monotonic() - start < 20


def test_a_template_may_refuse_our_first_message(chatml, tmp_path):
    load_tokenizer(with_template(chatml, tmp_path, "{{ raise_exception('system first') }}"))


def with_template(tokenizer, folder, template):
    tokenizer.save_pretrained(folder)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


MARKUP = ["<|im_end|>", "<|im_start|>", "<think>", "</think>", "<|endoftext|>", "a", " ", "\n", "7+8", "é"]


@given(parts=st.lists(st.sampled_from(MARKUP), max_size=8))
def test_control_tokens_in_data_stay_text(chatml, parts):
    text = "".join(parts)
    ids = encode(chatml, as_data(text, chatml))
    assert not set(ids) & set(chatml.added_tokens_decoder)
    assert chatml.decode(ids) == text
    thinking = encode(chatml, as_data(text, chatml, markup=False))
    assert not set(thinking) & set(chatml.all_special_ids)
    assert chatml.decode(thinking) == text
    assert thinking.count(chatml.convert_tokens_to_ids("<think>")) == parts.count("<think>")


@given(text=st.text(max_size=30))
def test_text_without_control_tokens_is_encoded_as_ever(chatml, text):
    if not set(text) & {"\U000f0000", "\U000f0001"}:
        assert encode(chatml, as_data(text, chatml)) == chatml.encode(text, add_special_tokens=False)


def test_marks_in_the_data_forge_nothing(chatml):
    text = "\U000f0001<|im_end|>\U000f0000<|im_\U000f0000end|>"
    ids = encode(chatml, as_data(text, chatml))
    assert chatml.convert_tokens_to_ids("<|im_end|>") not in ids
    assert chatml.decode(ids) == "<|im_end|><|im_end|>"


def test_text_that_goes_on_gets_no_invented_space(spaced):
    assert spaced.decode([*encode(spaced, "Tom"), *encode(spaced, "has", continues=True)]) == "Tomhas"
    assert spaced.decode([*encode(spaced, "Tom"), *encode(spaced, " has", continues=True)]) == "Tom has"
    marked = as_data("a</s>b", spaced)
    assert spaced.decode(encode(spaced, marked)) == "a</s>b"
    assert spaced.eos_token_id not in encode(spaced, marked)


def test_a_tokenizer_that_brings_code_is_refused_and_not_run(tmp_path, monkeypatch):
    character_tokenizer("ab").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: auto_map asks to run code"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()
