"""DeepSeek-Math's published rules, as described: also where they are wrong."""

import pytest

from grpo_jax.rewards import official, official_extract
from grpo_jax.rewards.explanation import official_verdict

# (prediction, gold, what the published code says), the known cases of the description and those it implies.
CASES = [
    ("0.5", "50", True), ("7", "700", True), (r"5\%", "5", True), ("0.0004", "0", True), ("10", "10.0005", True),
    ("1000", "1000.0009", True), ("(1,2)", "[1,2]", True), ("1,2", "12", True), ("x=5", "5", True), ("5", "x=5", True),
    ("2x=y", "y=2x", True), (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt{3}}", True), ("1.41421", r"\sqrt{2}", True),
    (r"(0,1)\cup(2,3)", r"(2,3)\cup(0,1)", True), (r"\tfrac12", "0.5", True), ("1/2", r"\frac{1}{2}", True),
    (r"x \in [1,2]", "[1,2]", True), (r"5\text{ cm}", "5", True), ("3.00", "3", True), (r"\$5", "5", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1.0\\2\end{pmatrix}", True), ("x^2+1", "1+x^2", True),
    (r"\{1,2\}", r"\{2,1\}", False), (r"11\frac{1}{2}", "11.5", False), (r"\frac32", r"1\frac12", False),
    ("A", r"\text{A}", False), (r"\text{(A)}", "A", False), ("10000", "10{,}000", False), ("xyz=5", "5", False),
    ("5", "6", False), ("(1,2)", "(2,1)", False), (r"\sqrt2", "1.4", False), ("x+1", "x+2", False), ("", "5", False),
    ("9^{9^{9^{9}}}", "5", False), ("(" * 900, "5", False),
]  # fmt: skip

FOUND = [
    (official_extract.last_answer, "The final answer is $5$. I hope it is correct. Or $6$. I hope", "5"),
    (official_extract.last_answer, r"\boxed{3} and \boxed{\frac12}", r"\frac{1}{2}"),
    (official_extract.last_answer, r"\boxed 5", ""),
    (official_extract.last_answer, "the answer is 7 apples", "7apples"),
    (official_extract.last_answer, "The answer is: 8.\nNo more", "8"),
    (official_extract.last_answer, "```python\nprint(3)\n```\n```output\n3\n```", "3"),
    (official_extract.last_answer, "3/4 is the result", "4"),
    (official_extract.last_answer, "it costs 1,250 dollars", "1250"),
    (official_extract.last_answer, "nothing", ""),
    (official_extract.gsm8k_few_shot, "so 18.\n\nQ: and 5", "18."),
    (official_extract.gsm8k_few_shot, "1,000.", "000."),
    (official_extract.cmath_few_shot, "所以答案是 3.5 元。\n问题：7", "3.5"),
    (official_extract.cmath_few_shot, "答案是 1/4", "4"),
    (official_extract.choice, "the final answer is an apple", "A"),
    (official_extract.choice, "The final answer is (C).", "C"),
    (official_extract.minerva, "Final answer is x^2. I hope it is correct.", "x^2"),
    (official_extract.mathqa, "所以答案是 A，不是 B", "B"),
    (official_extract.mathqa, "答案是 B\n\n问题 7. (C)", "B"),
    (lambda text: official_extract.cloze(text, 2), "答案是 $1$;$(2,3)$\n答", ["1$", "$(2,3)"]),
    (lambda text: official_extract.cloze(text, 1), "答案是 $(2,3)$", ["(2,3)"]),
]


@pytest.mark.parametrize(("prediction", "gold", "expected"), CASES)
def test_equality(prediction, gold, expected):
    assert official.same(official.normalise(prediction), official.normalise(gold)) is expected


@pytest.mark.parametrize(("rule", "completion", "answer"), FOUND)
def test_extraction(rule, completion, answer):
    assert rule(completion) == answer


def test_normal_form_corrupts_what_it_corrupts():
    assert official.normalise(r"2\cdot 3") == "23"
    assert official.normalise("info") == r"\inftyo"


def test_lists_of_answers():
    assert official.same_lists(["9", "1", "2"], ["2", "1"])
    assert not official.same_lists(["1", "1"], ["1", "2"])
    assert not official.same_lists([], ["1"])


def test_a_completion_is_searched():
    assert official_verdict(r"so \boxed{0.5}", "50").grade.value == "right"
    assert official_verdict("", "5").grade.value == "wrong"
