"""launch/grade.py: one verdict by hand, and the study."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.evaluation.grading import study
from grpo_jax.evaluation.grading.explanations import explain
from grpo_jax.evaluation.grading.labelled import Pair, mutations, read_pairs
from grpo_jax.rewards.equivalent import RIGHT, grade_all
from grpo_jax.rewards.extract import extract_answer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def launcher():
    spec = importlib.util.spec_from_file_location("grade_launcher", ROOT / "launch/grade.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_as_a_command():
    done = subprocess.run(
        [sys.executable, "launch/grade.py", "--", "-5", "5"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrong\n", "")


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ((r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}"), "right"),
        ((r"so \boxed{5}", "6"), "wrong"),
        (("9^9^9^9", "6"), "ungradable"),
        (("--", "-5", "5"), "wrong"),
        (("0.5", "50"), "wrong"),
        (("0.5", "50", "--mode", "official"), "right"),
    ],
)
def test_a_verdict(launcher, capsys, arguments, printed):
    assert launcher.main(list(arguments)) == 0
    assert capsys.readouterr().out.strip() == printed


def test_an_explanation(launcher, capsys):
    assert launcher.main([r"so \boxed{50\%}", "0.5", "--explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "right"
    assert any("last box" in line for line in lines)
    assert any("exact rules" in line for line in lines)
    assert any(line.startswith("policy     percent") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("5",), "PREDICTION and GOLD"),
        (("5", "5", "--mode", "kind"), "--mode"),
        (("--study", "no/such/folder"), "no/such/folder"),
        (("5", "--study", "folder"), "--study takes no PREDICTION"),
    ],
)
def test_bad_input_is_refused(launcher, capsys, arguments, named):
    assert launcher.main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error


@pytest.mark.parametrize("gold", ["18", "1/2", "20%", "$[0,2]$", "$y=2x$", "0;3", "ABD", r"$\frac{2\pi}{3}$"])
def test_mutations_differ(gold, workers):
    others = mutations(gold)
    assert others
    assert gold not in others
    verdicts = grade_all([(other, gold) for other in others], workers)
    assert not [other for other, verdict in zip(others, verdicts, strict=True) if verdict.grade is RIGHT]


@pytest.mark.slow
def test_every_label_of_the_real_data(shared, workers):
    """Of 25,000 pairs, what differs from its label is options that are equal in value, each with its reason."""
    if not (shared / "data/tora").is_dir():
        pytest.skip("no shared data")
    pairs = read_pairs(shared / "data")
    asked = [(extract_answer(pair.text) if pair.completion else pair.text, pair.gold) for pair in pairs]
    verdicts = grade_all(asked, workers, time_limit=5.0)
    wrong = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if (verdict.grade is RIGHT) != pair.equal]
    assert len(pairs) > 25_000
    assert {pair.source for pair in wrong} <= {"MMLU-STEM options"}
    missed = [pair for pair in wrong if pair.equal]
    same = [pair for pair in wrong if not pair.equal]
    assert len(missed) <= 4, missed
    assert len(same) <= 13, same
    assert {explain(pair, ours=True, other=False) for pair in same} <= {
        "a list in another order: the question asks for an order",
        "the same value in another form: the question asks for a form",
    }


def test_the_study_reports_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "read_pairs", lambda folder: PAIRS)
    monkeypatch.setattr(study, "ATTACKS", study.ATTACKS[:2])
    monkeypatch.setattr(study, "REFERENCES", ("5",))
    (tmp_path / "equal.txt").write_text("# roots\n\\sqrt{16} :: 4\n", "utf-8")
    (tmp_path / "differ.txt").write_text("# roots\n\\sqrt{16} :: 5\n", "utf-8")
    text = "\n".join(study.run(tmp_path, tmp_path))
    assert re.search(r"roots +2 +1.0000 / 1.0000 / 1.0000 ", text)
    assert "1 disagreements of ours with the labels" in text
    assert "strict wrong  official right  official forgives a factor of 100" in text
    assert "held 2 of 2" in text
    assert "easy verdicts a second" in text


PAIRS = [
    Pair("GSM8K solutions", "so 5\nA: 5", "5", True, True),
    Pair("GSM8K solutions", "so 5\nA: 5", "5", False, True),
    Pair("ToRA outputs", r"\boxed{50}", "0.5", False, True),
]
