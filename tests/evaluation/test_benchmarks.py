"""Benchmarks: published rows become problems, prompts are the paper's byte for byte, and gold scores 100 %."""

import json
from unittest import mock

import pytest
from made_up import QUESTIONS, ROWS, write_all

from grpo_jax.config import PromptConfig
from grpo_jax.configure import ConfigError, kind_class
from grpo_jax.configure.kinds import names
from grpo_jax.data import prepared
from grpo_jax.data.prompts import prompt_text
from grpo_jax.data.rows import RowError
from grpo_jax.data.tokenizer import character_tokenizer
from grpo_jax.evaluation.ceilings import ceilings
from grpo_jax.evaluation.judging import before_stop, judge_benchmark
from grpo_jax.evaluation.prompts import REQUESTS, prompting
from grpo_jax.evaluation.reading import open_benchmark, read_problems
from grpo_jax.rewards.workers import Workers
from grpo_jax.types import Problem

SIZES = {"gsm8k": 1319, "cmath": 1098, "mgsm_zh": 250, "mmlu_stem": 3018, "gaokao_mathcloze": 118, "gaokao_mathqa": 351}
PROMPTS = "prompts/deepseek_math_prompts.json"


TOKENIZER = character_tokenizer("x")  # without a chat template; prompts in text need no more of it


def opened(kind, **settings):
    config = kind_class("evaluation.benchmarks", kind)(**settings)
    benchmark = open_benchmark(kind, config)
    return benchmark, read_problems(benchmark, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def workers():
    with Workers(max_workers=1) as workers:
        yield workers


def test_every_benchmark_has_rows_here():
    assert sorted(ROWS) == sorted(names("evaluation.benchmarks"))


@pytest.mark.parametrize("kind", ROWS)
def test_rows_become_problems(kind, folder):
    _, problems = opened(kind, data=str(folder))
    assert [problem.answer for problem in problems] == ROWS[kind][1]
    assert [problem.id for problem in problems] == [f"{kind}/{i}" for i in range(len(problems))]
    assert problems[0].question == QUESTIONS.get(kind, problems[0].question)
    assert opened(kind, data=str(folder / f"{kind}.jsonl"), limit=1)[1] == problems[:1]


@pytest.mark.parametrize("kind", ROWS)
def test_gold_of_made_up_rows(kind, folder, workers):
    benchmark, problems = opened(kind, data=str(folder))
    found = list(ceilings(benchmark, problems, workers))
    assert {c.style for c in found} == {"zero_shot", *(["few_shot"] if benchmark.few_shot else [])}
    for ceiling in found:
        assert not ceiling.missed and ceiling.right == len(problems)


@pytest.mark.parametrize("kind", SIZES)
def test_gold_of_the_published_files(kind, shared, workers):
    benchmark, problems = opened(kind, data=str(shared / "data"))
    assert len(problems) == SIZES[kind] == benchmark.size
    for ceiling in ceilings(benchmark, problems, workers):
        assert not ceiling.missed, (ceiling.style, ceiling.missed[:3])
        if ceiling.official is not None:  # the published rules' own ceilings; of the cloze set their code misses 21
            wrong = {"cmath": 31, "gaokao_mathqa": 7, "gaokao_mathcloze": 22}.get(kind, 0)
            assert ceiling.problems - ceiling.official == (wrong if ceiling.style == "few_shot" else 0)


@pytest.mark.parametrize("kind", ROWS)
def test_a_wrong_answer_is_wrong(kind, folder, workers):
    """The reference of another problem, or a changed one, does not pass."""
    benchmark, problems = opened(kind, data=str(folder))
    others = {"sat": "C", "mmlu_stem": "D", "gaokao_mathqa": "B", "gaokao_mathcloze": "$5$;$7$"}
    text = f"So the answer is $\\boxed{{{others.get(kind, '987654')}}}$."
    for one in judge_benchmark(benchmark, "zero_shot", (), problems, [text] * len(problems), workers):
        assert one.grade == "wrong"


def test_blanks_count_in_their_order(folder, workers):
    benchmark, problems = opened("gaokao_mathcloze", data=str(folder))

    def grade(answer):
        return judge_benchmark(benchmark, "few_shot", (), problems[:1], [f"答案是 {answer}"], workers)[0].grade

    assert grade("$\\frac{1}{2}$;$5$") == "wrong"
    assert grade("$5$，$0.5$") == "right"
    assert grade("5") == "wrong"


@pytest.mark.parametrize(
    ("kind", "style"), [(kind, "few_shot") for kind in ROWS] + [("gsm8k", "program"), ("math", "program")]
)
def test_few_shot_prompts_are_the_papers(kind, style, shared, folder):
    """Byte for byte: the published text with the question in its place, stripped at its right end."""
    benchmark, problems = opened(kind, data=str(shared / "data" if kind in SIZES else folder), limit=5)
    shots = str(shared / "data" / PROMPTS)
    wanted = benchmark.program if style == "program" else benchmark.few_shot
    if wanted is None:
        with pytest.raises(ConfigError, match="there is no such prompt"):
            prompting(benchmark, style, PromptConfig(), shots=shots, chat=False)
        return
    entry = json.loads((shared / "data" / PROMPTS).read_text("utf-8"))[wanted.key]
    prompt, stop = prompting(benchmark, style, PromptConfig(), shots=shots, chat=True)
    assert list(stop) == entry["stop_words"]
    for problem in problems:
        expected = entry["format_example"].replace("{QUESTION}", problem.question).rstrip()
        assert prompt_text(problem, prompt, TOKENIZER) == expected


def test_zero_shot_prompts_are_the_papers(shared, folder):
    texts = json.loads((shared / "data" / PROMPTS).read_text("utf-8"))["zero_shot"]
    for (style, language), request in REQUESTS.items():
        name = {"zero_shot": "cot", "tool": "tool"}[style]
        assert texts[f"{name}_{language}"] == "{question}\n" + request
    problem = Problem(question="What is {1+1}?", answer="2")
    for kind, language in (("gsm8k", "en"), ("cmath", "zh")):
        benchmark, _ = opened(kind, data=str(folder))
        for style in ("zero_shot", "tool"):
            prompt, stop = prompting(benchmark, style, PromptConfig(), shots=None, chat=False)
            content = problem.question + "\n" + REQUESTS[style, language]
            assert prompt_text(problem, prompt, TOKENIZER) == texts["chat"].replace("{content}", content)
            assert stop == ()


def test_zero_shot_uses_a_chat_template_or_the_runs_own():
    benchmark = open_benchmark("gsm8k", kind_class("evaluation.benchmarks", "gsm8k")())
    chat = prompting(benchmark, "zero_shot", PromptConfig(), shots=None, chat=True).prompt
    assert chat.format == "auto" and chat.template == "{question}" and chat.suffix.startswith("\nPlease reason")
    own = PromptConfig(format="text", template="Q {question} A")
    assert prompting(benchmark, "zero_shot", own, shots=None, chat=False).prompt.template == "Q {question} A"
    assert prompting(benchmark, "as_run", own, shots=None, chat=False).prompt == own


def test_what_follows_the_stop_string_is_not_read(folder, workers):
    assert before_stop("5\nQ: next\nQ:", ("\nQ:", "Q: ")) == "5" and before_stop("5", ("Q",)) == "5"
    benchmark, problems = opened("gsm8k", data=str(folder), limit=1)
    text = "The answer is 5.\n\n\nQ: Another?\nA: The answer is 7."
    judged = [judge_benchmark(benchmark, "few_shot", stop, problems, [text], workers)[0] for stop in (("\nQ:",), ())]
    assert [one.grade for one in judged] == ["right", "wrong"]
    assert judged[0].official is True


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        ("gsm8k", {"prompt": "x"}, ("gsm8k.jsonl:1", "'answer'", "the row has 'prompt'")),
        ("aime", {"problem": "x", "answer": "1/2"}, ("aime.jsonl:1", "no integer")),
        ("math", {"problem": "x", "solution": "no box"}, ("math.jsonl:1", "\\boxed")),
        ("mmlu_stem", {"question": "x", "options": ["1"], "answer": "A"}, ("four options",)),
        ("mmlu_stem", {"question": "x", "options": list("1234"), "answer": "E"}, ("none of the choices",)),
        ("gaokao_mathqa", {"question": "x", "options": ["(A)1"], "label": "E"}, ("none of A, B, C, D",)),
        ("sat", {"question": "x", "options": "1) 2", "Answer": "A"}, ("not with A)",)),
    ],
)
def test_bad_rows_are_named(kind, row, words, tmp_path):
    (tmp_path / f"{kind}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RowError) as error:
        opened(kind, data=str(tmp_path))
    for word in words:
        assert word in str(error.value)


def test_places_that_do_not_have_it(tmp_path, shared, monkeypatch):
    for settings, words in (
        ({"data": str(tmp_path)}, "has none of deepseek_math_eval/gsm8k/test.jsonl"),
        ({"data": str(tmp_path / "no")}, "does not exist"),
        ({"data": "hub"}, "datasets"),
    ):
        with pytest.raises(RowError, match=words):
            opened("gsm8k", **settings)
    with pytest.raises(RowError, match="not on the hub"):
        opened("sat", data="hub")
    with pytest.raises(RowError, match="TFDS has no such data set"):
        opened("cmath", data="tfds")
    nowhere = prepared.NotPreparedError("set source.data_dir", "/here/gsm8k")
    monkeypatch.setattr(prepared, "read_split", mock.Mock(side_effect=nowhere))
    with pytest.raises(RowError, match=r"benchmark gsm8k: data: tfds: nothing is prepared in /here/gsm8k; give the"):
        opened("gsm8k", data="tfds")
    benchmark = open_benchmark("gsm8k", kind_class("evaluation.benchmarks", "gsm8k")())
    for shots, words in ((None, "not shipped"), (str(tmp_path / "no.json"), "cannot be read")):
        with pytest.raises(ConfigError, match=words):
            prompting(benchmark, "few_shot", PromptConfig(), shots=shots, chat=False)
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ConfigError, match="CoTGSMPrompt"):
        prompting(benchmark, "few_shot", PromptConfig(), shots=str(tmp_path / "empty.json"), chat=False)
