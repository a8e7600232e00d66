"""Chat templates: what transformers writes, within limits of time and memory, on a date that stands still."""

import copy
import os
import signal
import time
from datetime import datetime
from pathlib import Path

import lookalikes
import pytest

from grpo_jax.config import PromptConfig
from grpo_jax.data import templates
from grpo_jax.data.demonstrations import demonstration
from grpo_jax.data.encoding import TokenizerError
from grpo_jax.data.prompts import prompt_ids, prompt_text, usable
from grpo_jax.data.templates import render
from grpo_jax.data.tokenizer import load_tokenizer
from grpo_jax.types import Problem

TURNS = [
    {"role": "user", "content": '7 + 8 =\n"quoted" <b> é 数 \U000f0000 \u2028 {{ 1 }}'},
    {"role": "assistant", "content": "15"},
    {"role": "user", "content": "why?"},
]
SPINS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def asked(content):
    return [{"role": "user", "content": content}]


def with_template(tokenizer, template):
    other = copy.copy(tokenizer)
    other.chat_template = template
    return other


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(templates, "TIME_LIMIT", 1.0)


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("kind", ["deepseek", "llama2", "gemma", "qwen"])
def test_it_is_what_transformers_writes(tmp_path, kind, generate):
    tokenizer = load_tokenizer(str(lookalikes.save(kind, tmp_path)), lambda note: None)
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=generate)
    assert render(tokenizer, TURNS, generate=generate) == expected


def test_everything_that_transformers_offers_to_templates_is_there(chatml):
    template = """\
{%- set ns = namespace(seen=0) %}{% for m in messages %}{% set ns.seen = ns.seen + 1 %}
{%- if loop.last %}{% break %}{% endif %}{% generation %}{{ m | tojson(indent=1) }}{% endgeneration %}{% endfor %}
{{- ns.seen }}{{ dict(a=1) }}{{ eos_token }}{{ tools is none }}{{ bos_token is defined }}"""
    tokenizer = with_template(chatml, template)
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert render(tokenizer, TURNS, generate=True) == expected


def test_a_template_that_hangs_on_a_certain_content_is_stopped_and_named(chatml, hurried):
    tokenizer = with_template(
        chatml, "{% if 'x' in messages[0].content %}" + SPINS + "{% endif %}{{ messages[0].content }}"
    )
    assert render(tokenizer, asked("7"), generate=True) == "7"
    start = time.monotonic()
    with pytest.raises(
        TokenizerError, match=r"template did not finish within 1 s, for a conversation of user; change the messages"
    ):
        render(tokenizer, asked("x"), generate=True)
    assert time.monotonic() - start < 20
    assert render(tokenizer, asked("8"), generate=True) == "8"  # the next one is not its victim


def test_one_that_is_stuck_in_arithmetic_is_stopped_before_training_begins(chatml, hurried):
    """`9 ** 9 ** 9` is one instruction, which no signal handler of Python interrupts."""
    tokenizer = with_template(chatml, "{{ (9 ** (9 ** messages[0].content | length)) % 10 }}")
    problems = [Problem("1+1", "2", id="p.jsonl:1"), Problem("1+1+1+1+1", "5", id="p.jsonl:2")]
    usable(problems[:1], PromptConfig(), tokenizer)
    with pytest.raises(TokenizerError, match="did not finish within 1 s"):
        usable(problems, PromptConfig(), tokenizer)


@pytest.mark.parametrize("bomb", ["{{ ('x' * 100000) * 100000 }}", "{{ 'x' * 20000000 }}", "{{ '%9999999999d' % 1 }}"])
def test_one_that_fills_the_memory_on_a_certain_content_is_refused(chatml, bomb):
    tokenizer = with_template(chatml, "{% if 'x' in messages[0].content %}" + bomb + "{% endif %}ok")
    with pytest.raises(TokenizerError, match=r"failed: (MemoryError|OverflowError).*, for a conversation of user"):
        render(tokenizer, asked("x"), generate=True)
    assert render(tokenizer, asked("8"), generate=True) == "ok"


def test_the_process_is_started_again_whatever_ended_it(chatml):
    text = render(chatml, asked("7"), generate=True)
    first = templates._RENDERER._process
    os.kill(first.pid, signal.SIGTERM)  # a cluster signals every process of a job, and the run has yet to save
    os.kill(first.pid, signal.SIGINT)
    assert render(chatml, asked("7"), generate=True) == text and templates._RENDERER._process is first
    os.kill(first.pid, signal.SIGKILL)
    assert render(chatml, asked("7"), generate=True) == text and templates._RENDERER._process is not first


def test_an_interrupted_answer_is_not_taken_for_the_next(chatml, monkeypatch):
    class Interrupted(BaseException):
        pass

    class Pipe:
        def __init__(self, pipe):
            self.pipe = pipe

        def readline(self):
            raise Interrupted

        def close(self):
            self.pipe.close()

    render(chatml, asked("7"), generate=True)
    process = templates._RENDERER._process
    process.stdout = Pipe(process.stdout)
    with pytest.raises(Interrupted):
        render(chatml, asked("first"), generate=True)
    assert "second" in render(chatml, asked("second"), generate=True)


def test_nothing_of_the_environment_is_at_hand(chatml, monkeypatch):
    templates._RENDERER.close()
    monkeypatch.setenv("HF_TOKEN", "secret")
    render(chatml, asked("7"), generate=True)
    environ = Path(f"/proc/{templates._RENDERER._process.pid}/environ")
    if environ.is_file():
        assert b"HF_TOKEN" not in environ.read_bytes()


def test_the_date_is_that_of_the_settings_on_every_day(tmp_path):
    notes = []
    tokenizer = load_tokenizer(str(lookalikes.save("llama3", tmp_path)), notes.append)
    assert "its chat template writes today's date; prompts have prompt.date instead" in notes[0]
    problem = Problem("1+1=", "2")
    assert "Today Date: 26 Jul 2024\n" in prompt_text(problem, PromptConfig(), tokenizer)
    assert "Today Date: 01 Feb 2027\n" in prompt_text(problem, PromptConfig(date="2027-02-01"), tokenizer)
    today = tokenizer.apply_chat_template(asked("1+1="), tokenize=False, add_generation_prompt=True)
    dated = prompt_text(problem, PromptConfig(date=datetime.now().strftime("%Y-%m-%d")), tokenizer)
    assert dated == today
    problem = Problem("1+1=", "2", solution="2")
    config = PromptConfig(date="2027-02-01")
    example = demonstration(problem, config, tokenizer, (tokenizer.eos_token_id,))
    prompt = prompt_ids(problem, config, tokenizer)
    assert example.tokens[: len(prompt)].tolist() == prompt


def test_a_template_without_date_is_not_announced(chatml, tmp_path):
    notes = []
    chatml.save_pretrained(tmp_path)
    load_tokenizer(str(tmp_path), notes.append)
    assert not notes


def test_what_a_template_draws_is_drawn_alike_each_time(chatml):
    tokenizer = with_template(chatml, "{{ range(100000) | random }} {{ lipsum(1) }} {{ messages[0].content }}")
    first = render(tokenizer, asked("7"), generate=True)
    render(tokenizer, asked("8"), generate=True)
    assert render(tokenizer, asked("7"), generate=True) == first
    templates._RENDERER.close()
    assert render(tokenizer, asked("7"), generate=True) == first


def test_several_templates_without_a_default_are_refused(chatml, tmp_path):
    chatml.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "additional_chat_templates").mkdir(exist_ok=True)
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("{{ 2 }}")
    with pytest.raises(TokenizerError, match=r"its chat template cannot be chosen: .*prompt\.format to text"):
        load_tokenizer(str(tmp_path))
    load_tokenizer(str(tmp_path), prompt_format="text")


def test_a_date_that_is_none_is_said(chatml):
    with pytest.raises(TokenizerError, match=r"Invalid isoformat string: 'today'"):
        prompt_text(Problem("1", "1"), PromptConfig(date="today"), chatml)


def test_a_template_that_doubles_the_bos_is_refused(bos_tokenizer):
    tokenizer = with_template(bos_tokenizer, "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}")
    with pytest.raises(TokenizerError, match=r"its chat template begins with '<s>' twice; remove one"):
        render(tokenizer, asked("7"), generate=True)
