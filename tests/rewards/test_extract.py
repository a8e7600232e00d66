r"""Where the final answer of a completion is found."""

import time

import pytest

from grpo_jax.rewards.extract import extract, extract_answer, find_boxes

FOUND = [
    # The last box, by brace matching.
    (r"so $\boxed{18}$.", "18"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{a\}b}", r"a\}b"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\fbox{7}", "7"),
    (r"\boxed 5", "5"),
    ("first \\boxed{3}\n\nbut then \\boxed{5}", "5"),
    (r"\boxed{0.5}, that is \boxed{\frac12}", r"\frac12"),
    (r"I put it in \boxed{}. The answer is 4.", "4"),
    (r"cut off: 12, so \boxed{1", "1"),
    # Hedging.
    (r"\boxed{3} or \boxed{5}", None),
    (r"\boxed{1}\boxed{2}\boxed{3}", None),
    # GSM8K.
    ("x = <<2*9=18>>18\n#### 18", "18"),
    ("#### 1,000\n", "1,000"),
    ("so 26\nA: 26", "26"),
    # Phrases.
    ("The answer is 7 apples.", "7 apples"),
    (r"The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
    ("The answer is that she makes 18 dollars.", "18"),
    ("The answer is 18 because 9*2=18.", "18"),
    ("The answer is (C).", "(C)"),
    ("The answer is 2 or 3.", "2 or 3"),
    ("The answer is: x = 5", "x = 5"),
    (r"The answer is 2\sqrt{3}.", r"2\sqrt{3}"),
    ("The answer is 1;$\\frac{8}{9}$.", "1;$\\frac{8}{9}$"),
    ("the answer is 3.\nThe answer is 4.", "4"),
    ("**Final Answer:** 42", "42"),
    ("**Answer**: $42$ dollars", "42"),
    ("最终答案为：36 个", "36 个"),
    ("答案是 5。", "5"),
    ("答案是 $5$，$7$", "$5$，$7$"),
    # The last line or number.
    ("52;47", "47"),
    ("3;-4", "-4"),
    ("so 16-3=13", "13"),
    ("16 - 3 - 4", "4"),
    ("x = -3", "-3"),
    ("3/4 is the result", "3/4"),
    ("he got 12% off", "12%"),
    ("1,000.", "1,000"),
    ("24 1/2", "24 1/2"),
    ("$5$", "$5$"),
    ("$-5", "$-5"),
    ("= .5 of it", ".5"),
    ("<think>it is \\boxed{3}</think> It is 7", "7"),
    ("nothing here", None),
    ("", None),
]


@pytest.mark.parametrize(("completion", "answer"), FOUND)
def test_extract(completion, answer):
    assert extract_answer(completion) == answer, extract(completion).rule


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "\\boxed{1}", "{", "}", "1", "1,", ",000", "the answer is ", "$", "$a ", "answer is \\(", " ", "-",
     "1/", "\\", "\n", "#", "\nA:", "1 ", "1.", "answer **", "\\boxed{1} \\boxed{2}", "</think>", "0,000 ", "答案是"],
)  # fmt: skip
def test_long_texts_take_linear_time(piece):
    text = (piece * (200_000 // len(piece) + 1))[:200_000]
    start = time.process_time()
    extract(text)
    extract("the answer is " + text)
    assert time.process_time() - start < 10.0  # 0.2 s; by squares it would be hours


def test_nested_boxes_take_linear_time():
    assert extract_answer("\\boxed{" * 20_000 + "1" + "}" * 20_000) == "1"
    assert find_boxes(r"\boxed{a\boxed{b}}") == [(0, r"a\boxed{b}"), (8, "b")]
