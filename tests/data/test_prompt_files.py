"""Prompts as data: template and few-shot files, read with the settings, kept in the record, compared on resume."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.config import PromptConfig, with_files_read
from grpo_jax.configure import ConfigError, check_resume, dump, load
from grpo_jax.data.prompts import PromptError, prompt_text
from grpo_jax.data.tokenizer import character_tokenizer, characters
from grpo_jax.types import Problem

SETTINGS = """\
output_dir: out
model: {architecture: {}}
rl: {source: {kind: arithmetic}, algorithm: {kind: grpo}, rewards: [{kind: accuracy}]}
prompt: {format: text}
"""
PROBLEM = Problem(r"\frac{1}{2} of {x}?", "0")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(SETTINGS)
    Path("t.txt").write_text("So \\boxed{1}.\nQ: {question}\nA:\n")
    write_examples("shots.jsonl", ((r"1{\over}2", "{answer}"), ("2", "3")))
    return tmp_path


def write_examples(name, pairs):
    lines = (json.dumps({"question": question, "answer": answer}) for question, answer in pairs)
    Path(name).write_text("\n".join(lines) + "\n\n")


def settings(*flags):
    return load(["run.yaml", *flags]).config


def test_the_text_of_the_file_is_the_template(here, chatml):
    prompt = settings("--prompt.template_file", "t.txt").prompt
    assert (prompt.template, prompt.template_file) == ("So \\boxed{1}.\nQ: {question}\nA:", None)
    assert prompt_text(PROBLEM, prompt, chatml) == "So \\boxed{1}.\nQ: \\frac{1}{2} of {x}?\nA:"


def test_line_breaks_and_byte_order_marks_of_other_systems(here):
    Path("windows.txt").write_bytes(b"\xef\xbb\xbfQ: {question}\r\nA:\r\n")
    assert settings("--prompt.template_file", "windows.txt").prompt.template == "Q: {question}\nA:"
    Path("two.txt").write_bytes(b"Q: {question}\n\n")
    assert settings("--prompt.template_file", "two.txt").prompt.template == "Q: {question}\n"


def test_examples_stand_before_the_question(here, chatml):
    prompt = settings("--prompt.template", "Q: {question}\nA:", "--prompt.examples_file", "shots.jsonl").prompt
    assert prompt.examples == ((r"1{\over}2", "{answer}"), ("2", "3")) and prompt.examples_file is None
    expected = "Q: 1{\\over}2\nA: {answer}\n\nQ: 2\nA: 3\n\nQ: \\frac{1}{2} of {x}? Now.\nA:"
    assert prompt_text(PROBLEM, PromptConfig(**vars(prompt) | {"suffix": " Now."}), chatml) == expected
    form = settings("--prompt.examples_file", "shots.jsonl", "--prompt.example", "{answer} <- {question}\n").prompt
    assert prompt_text(PROBLEM, form, chatml).startswith("{answer} <- 1{\\over}2\n3 <- 2\n\\frac")
    inline = settings("--prompt.template", "Q: {question}\nA:", "--prompt.examples", "2", "3").prompt
    assert prompt_text(Problem("4", ""), inline, chatml) == "Q: 2\nA: 3\n\nQ: 4\nA:"


@given(
    question=st.text(st.sampled_from("{}question answer\\"), max_size=20),
    shown=st.text(st.sampled_from("{}question answer\\"), max_size=20),
)
def test_nothing_but_the_marker_is_replaced(question, shown):
    alphabet = character_tokenizer("{}question answer\\Q: A\nS")
    markers = ("{question}", "{answer}", "{question}{answer}", question)
    for text in markers:
        prompt = PromptConfig(
            template="{answer} Q: {question}", example="S{answer}\n{question}\n", examples=((text, shown),)
        )
        assert prompt_text(Problem(question, ""), prompt, alphabet) == f"S{shown}\n{text}\n{{answer}} Q: {question}"


@pytest.mark.parametrize(
    ("key", "content", "expected"),
    [
        ("template_file", None, "cannot be read: No such file"),
        ("template_file", b"Q:", "has 0 times {question}; write it once"),
        ("template_file", b"{question} {question}", "has 2 times {question}; write it once"),
        ("template_file", b"{question} \xff", "is not UTF-8 at byte 12"),
        ("examples_file", None, "cannot be read: No such file"),
        ("examples_file", b"\n", "has no examples"),
        ("examples_file", b'{"question": "1", "answer": "2"}\n{', "has no JSON in line 2"),
        ("examples_file", b'{"question": "1", "answer": 2}', "has no texts 'question' and 'answer' in line 1"),
        ("examples_file", b'["1", "2"]', "has no texts 'question' and 'answer' in line 1"),
    ],
)
def test_a_file_that_will_not_do_is_named_with_the_place_that_names_it(here, key, content, expected):
    if content is not None:
        Path("bad.txt").write_bytes(content)
    for argv in (["run.yaml", f"--prompt.{key}", "bad.txt"], ["run.yaml", "more.yaml"]):
        Path("more.yaml").write_text(f"prompt:\n  {key}: bad.txt\n")
        with pytest.raises(ConfigError) as error:
            load(argv)
        place = "more.yaml:2: " if len(argv) == 2 else "--"
        assert str(error.value).startswith(f'{place}prompt.{key} is "bad.txt"; it {expected}')
    assert not Path("out").exists()


def test_two_templates_are_refused_with_the_way_to_take_one_back(here):
    for flags, remedy in (
        (["--prompt.template", "X {question}", "--prompt.template_file", "t.txt"], "template '{question}', or"),
        (["--prompt.examples", "1", "2", "--prompt.examples_file", "shots.jsonl"], "examples (), or examples_file"),
    ):
        with pytest.raises(ConfigError) as error:
            settings(*flags)
        assert f"take one back ({remedy}" in str(error.value)
    Path("run.yaml").write_text(SETTINGS.replace("format: text", "format: text, template: 'X {question}'"))
    taken_back = settings("--prompt.template", "{question}", "--prompt.template_file", "t.txt").prompt
    assert taken_back.template.startswith("So")


def test_other_settings_are_checked(here):
    for flags, expected in (
        (["--prompt.example", "{question}"], r"prompt.example is .*has 0 times \{answer\}"),
        (["--prompt.date", "26 Jul 2024"], r"prompt.date is .*is no date; write year-month-day"),
        (["--prompt.date", "2024-02-30"], r"prompt.date is .*is no date"),
    ):
        with pytest.raises(ConfigError, match=expected):
            settings(*flags)


def test_the_record_holds_the_text_and_stands_alone(here):
    config = settings("--prompt.template_file", "t.txt", "--prompt.examples_file", "shots.jsonl")
    Path("kept.yaml").write_text(dump(config))
    for name in ("t.txt", "shots.jsonl"):
        Path(name).unlink()
    assert load(["kept.yaml"]).config == config
    assert check_resume(Path("kept.yaml"), load(["kept.yaml"]).config) == []


@pytest.mark.parametrize("name", ["t.txt", "shots.jsonl"])
def test_a_changed_file_is_noticed_when_a_run_goes_on_and_a_moved_one_is_not(here, name):
    flags = ["--prompt.template_file", "t.txt", "--prompt.examples_file", "shots.jsonl"]
    saved = Path("kept.yaml")
    saved.write_text(dump(settings(*flags)))
    Path("moved").mkdir()
    moved = Path(name).rename(Path("moved", name))
    elsewhere = [str(moved) if flag == name else flag for flag in flags]
    assert check_resume(saved, settings(*elsewhere)) == []
    moved.write_text(moved.read_text().replace("2", "5").replace("boxed", "fbox"))
    with pytest.raises(ConfigError, match=r"started with other settings.*\n  prompt\.(template|examples): "):
        check_resume(saved, settings(*elsewhere))


def test_settings_made_in_python_are_read_on_request(here, chatml):
    unread = PromptConfig(format="text", template_file="t.txt")
    with pytest.raises(PromptError, match="with_files_read"):
        prompt_text(PROBLEM, unread, chatml)
    assert prompt_text(PROBLEM, with_files_read(unread), chatml).startswith("So \\boxed{1}.")
    with pytest.raises(ValueError, match="has 0 times"):
        Path("t.txt").write_text("no place")
        with_files_read(unread)


def test_a_template_is_not_passed_over_for_the_chat_template(chatml):
    for given_ in ({"template": "Q: {question}"}, {"examples": (("1", "2"),)}):
        with pytest.raises(PromptError, match=r"\(made here\).*set prompt\.format to text"):
            prompt_text(PROBLEM, PromptConfig(**given_), chatml)
    with pytest.raises(PromptError, match=r"prompt\.examples: format text writes them"):
        prompt_text(PROBLEM, PromptConfig(format="chat", examples=(("1", "2"),)), chatml)
    chosen = PromptConfig(format="chat", template="Q: {question}")
    assert prompt_text(PROBLEM, chosen, chatml).startswith("<|im_start|>")


def test_characters_of_the_examples_are_in_the_alphabet():
    plain = PromptConfig(template="Q{question}", examples=(("a", "b"),))
    assert characters([Problem("7", "8")], plain) == "\n 78Qab"
    form = PromptConfig(template="Q{question}", examples=(("a", "b"),), example="<{question}>{answer}")
    assert characters([Problem("7", "8")], form) == "78<>Qab"


@pytest.mark.parametrize("name", ["CoTGSMPrompt", "MinervaMathPrompt"])
def test_the_papers_few_shot_prompts_byte_for_byte(shared, chatml, here, name):
    entry = json.loads((shared / "data" / "prompts" / "deepseek_math_prompts.json").read_text("utf-8"))[name]
    Path("paper.txt").write_text(entry["format_example"].replace("{QUESTION}", "{question}") + "\n", "utf-8")
    prompt = settings("--prompt.template_file", "paper.txt").prompt
    for question in (PROBLEM.question, "How many {question}s?", r"$\boxed{}$"):
        expected = entry["format_example"].replace("{QUESTION}", question)
        assert prompt_text(Problem(question, ""), prompt, chatml) == expected


def test_few_shot_prompts_of_the_shared_data_as_files_of_examples(shared, chatml, here):
    """The GSM8K prompt again, from questions and answers: the two ways give the same bytes."""
    entry = json.loads((shared / "data" / "prompts" / "deepseek_math_prompts.json").read_text("utf-8"))["CoTGSMPrompt"]
    pairs = [shot.removeprefix("Q: ").split("\nA: ") for shot in entry["shots_text"].split("\n\n\n")]
    write_examples("gsm8k.jsonl", pairs)
    form = '"Q: {question}\\nA: {answer}\\n\\n\\n"'
    Path("more.yaml").write_text(
        f'prompt: {{template: "Q: {{question}}\\nA:", example: {form}, examples_file: gsm8k.jsonl}}'
    )
    prompt = load(["run.yaml", "more.yaml"]).config.prompt
    assert len(prompt.examples) == 8
    expected = entry["format_example"].replace("{QUESTION}", PROBLEM.question)
    assert prompt_text(PROBLEM, prompt, chatml) == expected
