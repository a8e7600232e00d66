"""The page of an evaluation, its figure and its table, from files as launch/evaluate.py leaves them."""

import io
import json
import re
import xml.etree.ElementTree as xml

import pytest
from browser import Page, find_chromium
from rich.console import Console

from grpo_jax.reporting.evaluation_page import LONGEST, write_page
from grpo_jax.reporting.evaluation_table import print_results
from grpo_jax.reporting.over_k import figure

N = 4
SHARES = {"pass@1": 0.5, "pass@2": 0.75, "pass@4": 1.0, "maj@1": 0.5, "maj@2": 0.5, "maj@4": 0.25, "greedy": 0.5}
EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


def entry(value):
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


def result_of(name, against=False):
    counted = {"samples": 8, "right": 4, "ungradable": 1, "unanswered": 0, "truncated": 2, "prompt too long": 0}
    result = {
        "name": name,
        "title": "runs/a/model",
        "num_problems": 2,
        "num_samples": N,
        "temperature": 0.7,
        "counts": {"greedy": counted | {"ungradable": 0, "truncated": 0}, "sampled": counted},
        "metrics": {key: entry(value) for key, value in SHARES.items()},
    }
    if against:
        paired = {key: entry(0.1) | {"p": 0.25} for key in SHARES}
        result["against"] = {"title": "runs/b", "metrics": result["metrics"], "paired": paired}
    return result


def line(i, g, grade, text):
    answer = None if grade == "none" else f"{g}"
    grade = "wrong" if grade == "none" else grade
    fields = {"index": i, "sample": g, "text": text, "length": 3, "finished": g != 2, "answer": answer, "grade": grade}
    return json.dumps({"id": f"x/{i}", **fields, "reason": "so", "official": None, "score": None}) + "\n"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    for name, against in (("gsm8k", False), ("cmath", True)):
        task = folder / name
        task.mkdir()
        (task / "result.json").write_text(json.dumps(result_of(name, against)))
        problems = [{"id": f"x/{i}", "question": f"Question {i}? {EVIL}", "answer": str(i)} for i in range(2)]
        votes = [["right", "right", "7", None], ["7", "7", "7", "right"]]
        (task / "problems.json").write_text(json.dumps({"problems": problems, "votes": votes}))
        grades = [["right", "right", "wrong", "none"], ["wrong", "ungradable", "wrong", "right"]]
        rows = [line(i, g, grade, EVIL * 100) for i, of in enumerate(grades) for g, grade in enumerate(of)]
        (task / "samples.jsonl").write_text("".join(rows))
        (task / "greedy.jsonl").write_text(line(0, 0, "right", "yes") + line(1, 0, "wrong", EVIL))
    return folder


def test_the_figure_has_a_line_for_each_family_and_run():
    root = xml.fromstring(figure([result_of("gsm8k"), result_of("cmath", against=True)]))
    lines = root.findall(".//{*}polyline")
    assert len(lines) == 2 + 4 and sum("stroke-dasharray" in one.attrib for one in lines) == 2
    assert len(root.findall(".//{*}circle")) == 3 * 6
    titles = [one.text for one in root.findall(".//{*}title")]
    assert "Pass@K, K = 2: 75.0 % [65.0, 85.0]" in titles and "Maj@K, K = 4: 25.0 % [15.0, 35.0]" in titles
    heights = [float(point.split(",")[1]) for point in lines[0].attrib["points"].split()]
    assert heights == sorted(heights, reverse=True)  # pass@k rises
    words = [one.text for one in root.findall(".//{*}text")]
    assert "gsm8k" in words and "cmath" in words and words.count("4") == 2


def test_no_figure_of_a_single_k():
    result = result_of("gsm8k")
    result["metrics"] = {"greedy": entry(0.5), "pass@1": entry(0.5), "maj@1": entry(0.5)}
    assert figure([result]) == "" == figure([])


def test_the_page_is_one_file_and_text_of_models_is_data(out):
    page = write_page(out).read_text()
    assert page.count("<script") == 2 and EVIL not in page and "https:" not in page
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    task = data["tasks"][1]
    assert [task["name"] for task in data["tasks"]] == ["cmath", "gsm8k"]
    assert [problem["grades"] for problem in task["problems"]] == ["rrwn", "wuwr"]
    first = task["problems"][0]
    assert first["votes"] == [["right", 2], ["7", 1]] and [one["sample"] for one in first["shown"]] == [0, 0, 2, 3]
    assert all(len(one["text"]) <= LONGEST + 20 for one in first["shown"])
    assert (out / "maj_pass_at_k.svg").is_file()


def test_the_table_on_the_terminal():
    text = io.StringIO()
    results = [result_of("gsm8k"), result_of("cmath", against=True)]
    print_results(results, console=Console(file=text, width=200))
    said = text.getvalue()
    assert "75.0% [65.0, 85.0]" in said and "+10.0 [+0.0, +20.0] p 0.25" in said and "1 of 8" in said
    narrow = io.StringIO()
    print_results([result_of(f"b{i}") for i in range(5)], console=Console(file=narrow, width=100))
    assert narrow.getvalue().count("pass@4") == 2  # two tables


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no chromium here")
def test_in_a_browser(out):
    with Page() as page:
        page.open(write_page(out))
        cards = "document.querySelectorAll('.card').length"
        choose = "(i, v) => {{ const s = document.querySelectorAll('select')[i]; s.value = v; s.onchange; "
        choose += "s.dispatchEvent(new Event('change')); }}"
        assert page.evaluate(cards) == 2
        for place, value, number in ((1, "right", 1), (1, "ungradable", 1), (1, "all", 2), (2, "outvoted", 1)):
            page.evaluate(f"({choose.replace('{{', '{').replace('}}', '}')})({place}, '{value}')")
            assert page.evaluate(cards) == number, value
        page.evaluate("document.querySelector('.card').open = true")
        page.settle()
        assert EVIL in page.evaluate("document.querySelector('.card').textContent")
        assert page.evaluate("document.title").startswith(out.name)
        assert not page.complaints and not [url for url in page.requests if not url.startswith("file:")]
