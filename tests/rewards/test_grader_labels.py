"""The grader on real answers: labelled model solutions, and references against themselves."""

import json
import time

import pytest

from grpo_jax.rewards.equivalent import RIGHT, WRONG, exact_verdict, grade_all
from grpo_jax.rewards.extract import extract_answer


def rows(path):
    if not path.is_file():
        pytest.skip(f"no {path}")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_labels_of_real_gsm8k_solutions(shared):
    """All 5,276 published labels of four models' solutions follow from the text (paper.md, c.19)."""
    data = rows(shared / "data/gsm8k/example_model_solutions.jsonl")
    cases = [
        (solution["solution"], extract_answer(row["ground_truth"]), solution["is_correct"])
        for row in data
        for solution in row.values()
        if isinstance(solution, dict)
    ]
    start = time.perf_counter()
    verdicts = [exact_verdict(extract_answer(text), gold) for text, gold, _ in cases]
    elapsed = time.perf_counter() - start
    differ = [case for case, verdict in zip(cases, verdicts, strict=True) if (verdict.grade is RIGHT) != case[2]]
    print(f"{len(cases)} verdicts, extraction included, at {len(cases) / elapsed:.0f} a second")
    assert len(cases) == 5276
    assert not differ


def test_tool_integrated_outputs(shared, workers):
    """What the extractor finds in ToRA's outputs is judged as the published predictions are."""
    data = rows(shared / "data/tora/outputs_tora-code-34b_gsm8k_test.jsonl")
    ours = grade_all([(extract_answer(row["code"][0]), row["gt"]) for row in data], workers)
    published = grade_all([(row["pred"][0], row["gt"]) for row in data], workers)
    assert len(data) == 1319
    assert [verdict.grade for verdict in ours] == [verdict.grade for verdict in published]
    assert sum(verdict.grade is RIGHT for verdict in ours) == 1062


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("cmath/test.jsonl", "golden"),
        ("mgsm_zh/mgsm_zh.jsonl", "answer"),
        ("gsm8k/test.jsonl", "answer"),
        ("agieval/gaokao-mathcloze.jsonl", "answer"),
        ("agieval/gaokao-mathqa.jsonl", "label"),
    ],
)
def test_references_are_right_in_every_form(shared, workers, file, key):
    golds = [str(row[key]) for row in rows(shared / "data/deepseek_math_eval" / file)]
    forms = ["{}", "The answer is {}.", "so $\\boxed{{{}}}$", "#### {}", "答案是{}"]
    answers = [(gold if form == "{}" else extract_answer(form.format(gold)), gold) for gold in golds for form in forms]
    wrong = [
        pair
        for pair, verdict in zip(answers, grade_all(answers, workers, time_limit=10.0), strict=True)
        if verdict.grade is not RIGHT
    ]
    assert not wrong


def test_options_of_one_question_differ(shared):
    """Options of a multiple choice are different answers: those that exact rules decide are told apart."""
    data = rows(shared / "data/deepseek_math_eval/mmlu_stem/test.jsonl")
    pairs = [(str(a), str(b)) for row in data for a, b in zip(row["options"], row["options"][1:], strict=False)]
    same = [(a, b) for a, b in pairs if a != b and (verdict := exact_verdict(a, b)) and verdict.grade is RIGHT]
    wrong = sum((verdict := exact_verdict(a, b)) is not None and verdict.grade is WRONG for a, b in pairs)
    print(f"{len(pairs)} pairs, {wrong} told apart without algebra, {len(same)} taken for equal: {same}")
    assert len(same) <= 6  # questions that ask for an order: "-9, -6, -3" against "-3, -6, -9"
