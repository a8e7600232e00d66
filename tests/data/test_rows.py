"""Rows of files: the forms that are read, and what is refused by file, line and field."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.data.rows import (
    Fields,
    RowConfig,
    RowError,
    check_answers,
    gsm8k_answer,
    gsm8k_solution,
    problem_from_row,
    problems_from_rows,
)
from grpo_jax.data.sources import jsonl
from grpo_jax.types import Problem

GSM8K = {"question": "How many?", "answer": "He has 1,000*2 = <<1000*2=2000>>2,000.\nSo 2,000.\n#### 2,000"}


def mapped(row, **settings):
    return problem_from_row(row, RowConfig(**settings), "f", "f:1")


def read(tmp_path, content, name="data.jsonl", **settings):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return jsonl.build(jsonl.Config(path=str(path), **settings), 0)


def test_gsm8k_form():
    problem = mapped(GSM8K)
    steps = "He has 1,000*2 = 2,000.\nSo 2,000.\nSo the answer is $\\boxed{2000}$."
    assert (problem.answer, problem.solution) == ("2000", steps)
    assert mapped(GSM8K, form="gsm8k") == problem
    assert mapped(GSM8K, form="plain").answer == GSM8K["answer"]


def test_gsm8k_form_with_the_rationale_in_a_field_of_its_own():
    row = {"question": "q", "answer": "1,800", "cot": "a <<3*600=1800>>1800 b"}
    problem = mapped(row, form="gsm8k", fields=Fields(solution="cot"))
    assert (problem.answer, problem.solution) == ("1800", "a 1800 b\nSo the answer is $\\boxed{1800}$.")
    assert "cot" not in problem.columns
    with pytest.raises(RowError, match=r"f:1: form gsm8k: expected an answer like 'rationale #### 18'"):
        mapped({"question": "q", "answer": "18"}, form="gsm8k")


@given(st.lists(st.text("ab1<>= "), max_size=4), st.integers(-(10**9), 10**9))
def test_gsm8k_form_is_taken_apart_and_put_together(lines, number):
    text = "\n".join(lines)
    rationale, answer = gsm8k_answer(f"{text}\n#### {number:,}")
    solution = gsm8k_solution(rationale, answer)
    assert answer == str(number) and solution.endswith(f"So the answer is $\\boxed{{{number}}}$.")
    assert gsm8k_solution(solution, answer) == solution
    assert gsm8k_answer(text) is None


@pytest.mark.parametrize("name, size", [("train", 7473), ("test", 1319)])
def test_gsm8k_files(shared, name, size):
    problems = jsonl.build(jsonl.Config(path=str(shared / "data" / "gsm8k" / f"{name}.jsonl")), 0)
    assert len(problems) == size == len({p.id for p in problems})
    for problem in problems:
        assert float(problem.answer) == int(problem.answer)
        assert "<<" not in problem.solution and "####" not in problem.solution
        assert problem.solution.splitlines()[-1] == f"So the answer is $\\boxed{{{problem.answer}}}$."
        assert len(problem.solution.splitlines()) >= 2
    assert problems[0].id == f"{name}.jsonl:1"


def test_mean_steps_of_gsm8k_are_the_papers(shared):
    problems = jsonl.build(jsonl.Config(path=str(shared / "data" / "gsm8k" / "train.jsonl")), 0)
    steps = [len(problem.solution.splitlines()) - 1 for problem in problems]
    assert round(sum(steps) / len(steps), 2) == 3.58


def test_other_files_of_the_authors(shared):
    def load(*parts, **fields):
        path = shared.joinpath("data", *parts)
        return jsonl.build(jsonl.Config(path=str(path), fields=Fields(**fields)), 0)

    mgsm = load("deepseek_math_eval", "mgsm_zh", "mgsm_zh.jsonl")
    assert len(mgsm) == 250 and mgsm[0].answer == "18"
    assert [m["role"] for m in mgsm[0].messages] == ["user"]  # the empty place for the answer is left out
    assert mgsm[0].question == mgsm[0].messages[0]["content"]
    cmath = load("deepseek_math_eval", "cmath", "test.jsonl", answer="golden")
    assert cmath[0].answer == "18" and cmath[0].columns["grade"] == 1
    tora = load("tora", "examples.jsonl", answer="gt")
    assert len(tora) == 30 and all(p.messages[-1]["role"] == "assistant" and p.answer for p in tora)


def test_prompt_and_completion_as_text_and_as_messages():
    plain = mapped({"prompt": "1+1=", "completion": "2"})
    assert (plain.question, plain.solution, plain.answer, plain.messages) == ("1+1=", "2", "", None)
    user, assistant = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}
    for completion in ([assistant], "2"):
        chat = mapped({"prompt": [user], "completion": completion, "level": 3})
        assert chat.messages == (user, assistant) and chat.question == "1+1=" and chat.columns == {"level": 3}
    assert mapped({"messages": [user, assistant]}).messages == (user, assistant)
    assert mapped({"prompt": [user], "answer": 2}).answer == "2"


def test_own_field_names_and_numbers():
    row = {"problem": "p", "label": 18, "work": "w", "source": "amc"}
    problem = mapped(row, fields=Fields(question="problem", answer="label", solution="work"))
    assert (problem.question, problem.answer, problem.solution) == ("p", "18", "w")
    assert problem.columns == {"source": "amc"}
    assert mapped({"question": "q", "answer": 0}).answer == "0"


BAD_ROWS = [
    ({"answer": "1"}, r"f:1: missing field 'question' \(or 'prompt' or 'messages'\); the row has 'answer'"),
    ({"question": "q"}, r"f:1: has neither 'answer' nor 'solution' or 'completion'; the row has 'question'"),
    ({"question": "q", "answer": None}, r"f:1: field 'answer': expected text or a number, found None"),
    ({"question": "q", "answer": "  "}, r"f:1: field 'answer' is empty"),
    ({"question": "", "answer": "1"}, r"f:1: field 'question' is empty"),
    ({"question": "q", "answer": True}, r"f:1: field 'answer': expected text or a number, found True"),
    ({"question": "q", "answer": ["1", "2"]}, r"f:1: field 'answer': .*found \['1', '2'\]"),
    ({"question": "q", "answer": float("nan")}, r"f:1: field 'answer': nan is no number"),
    ({"messages": {"role": "user", "content": "x"}}, r"f:1: field 'messages': expected a list of messages"),
    ({"messages": {"role": ["user"], "content": []}}, r"f:1: field 'messages': expected a list of messages"),
    ({"messages": []}, r"f:1: field 'messages': expected a list of messages, found \[\]"),
    ({"messages": [{"role": "user"}]}, r"f:1: field 'messages', message 1: expected \{role, content\}"),
    (
        {"messages": [{"role": "assistant", "content": "x"}]},
        r"f:1: the conversation has no message",
    ),
    ({"messages": [{"role": "user", "content": "x"}]}, r"f:1: has neither 'answer'"),
    (["q", "a"], r"f:1: expected an object with named fields, found \['q', 'a'\]"),
]


@pytest.mark.parametrize("row, message", BAD_ROWS)
def test_bad_rows_are_named(row, message):
    with pytest.raises(RowError, match=message):
        mapped(row)


GOOD = b'{"question": "1+1=", "answer": "2"}'
BAD_LINES = {
    b'{"question": "1+1=", "answer": 2': r"data.jsonl:2: broken JSON at column 33",
    b'{"question": "1+1=", "answer": NaN}': r"data.jsonl:2: NaN is no JSON",
    b'{"question": "1+1=", "answer": -Infinity}': r"data.jsonl:2: -Infinity is no JSON",
    b'{"question": "\xff", "answer": "2"}': r"data.jsonl:2: not UTF-8 at byte 15",
    b'{"question": "1+1="}': r"data.jsonl:2: has neither 'answer'",
    b'"text"': r"data.jsonl:2: expected an object",
    b"[" * 100_000: r"data.jsonl:2: broken JSON",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_lines_are_named_or_skipped_by_count(tmp_path, capsys, line):
    content = b"\n".join([GOOD, line, GOOD, GOOD])
    with pytest.raises(RowError, match=str(tmp_path / BAD_LINES[line])):
        read(tmp_path, content)
    problems = read(tmp_path, content, bad_rows="skip")
    assert [p.id for p in problems] == ["data.jsonl:1", "data.jsonl:3", "data.jsonl:4"]
    assert "left out 1 of 4 rows: " in capsys.readouterr().out


def test_a_giant_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_jax.data.json_lines.LONGEST_LINE", 100)
    with pytest.raises(RowError, match=r"data.jsonl:1: the line has \d+ bytes, more than 100"):
        read(tmp_path, json.dumps({"question": "x" * 200, "answer": "1"}))


def test_too_many_bad_rows_are_not_skipped(tmp_path):
    with pytest.raises(RowError, match=r"2 of 3 rows are bad, too many to skip: .*data.jsonl:1: broken"):
        read(tmp_path, b"{\n{\n" + GOOD, bad_rows="skip")


def test_byte_order_mark_crlf_blank_lines_and_line_separators(tmp_path):
    rows = [{"question": "1\u20282", "answer": "1"}, {"question": "b", "answer": "2"}]
    text = "\ufeff" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n"
    problems = read(tmp_path, text)
    assert [(p.question, p.id) for p in problems] == [("1\u20282", "data.jsonl:1"), ("b", "data.jsonl:3")]


def test_limit_reads_no_further(tmp_path):
    assert len(read(tmp_path, GOOD + b"\n" + GOOD + b"\nbroken", limit=2)) == 2


def test_empty_and_missing_files(tmp_path):
    with pytest.raises(RowError, match=r"data.jsonl: has no rows"):
        read(tmp_path, "\n \n")
    with pytest.raises(RowError, match=r"gone.jsonl: no such file; check source.path \(.* has: data.jsonl\)"):
        jsonl.build(jsonl.Config(path=str(tmp_path / "gone.jsonl")), 0)
    with pytest.raises(RowError, match=r"is a directory; give one file, such as data.jsonl"):
        jsonl.build(jsonl.Config(path=str(tmp_path)), 0)
    with pytest.raises(RowError, match=r"no such file, and no directory .*nowhere"):
        jsonl.build(jsonl.Config(path=str(tmp_path / "nowhere" / "x.jsonl")), 0)


def test_a_json_file_with_a_list(tmp_path):
    rows = [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]
    problems = read(tmp_path, json.dumps(rows, indent=1), "list.json")
    assert [(p.question, p.id) for p in problems] == [("a", "list.json:entry 1"), ("b", "list.json:entry 2")]
    with pytest.raises(RowError, match=r"list.json:2: broken JSON at column 1: Expecting value; mend it"):
        read(tmp_path, "[\n}", "list.json")
    with pytest.raises(RowError, match=r"list.json:2: .*Extra data; name a file of JSON lines .jsonl"):
        read(tmp_path, GOOD + b"\n" + GOOD, "list.json")
    with pytest.raises(RowError, match=r"list.json: expected a list of objects, found a dict"):
        read(tmp_path, GOOD, "list.json")
    with pytest.raises(RowError, match=r"list.json:entry 2: missing field 'question'"):
        read(tmp_path, json.dumps([rows[0], {}]), "list.json")


def test_stages_that_need_answers_ask_for_them():
    check_answers([Problem("q", "0")])
    with pytest.raises(RowError, match=r"d.jsonl:7 of d: no reference answer; set source.fields.answer"):
        check_answers([Problem("q", "0"), Problem("q", "", source="d", id="d.jsonl:7")])


def test_notes_name_a_few_rows_only():
    notes = []
    rows = [(str(i), {"question": "q", "answer": None if i % 2 else "1"}) for i in range(20)]
    problems_from_rows(rows, RowConfig(bad_rows="skip"), "s", note=notes.append)
    assert notes[0].startswith("s: left out 10 of 20 rows: s:1: ") and notes[0].count("None") == 3
