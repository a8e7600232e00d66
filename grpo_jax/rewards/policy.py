r"""Where opinion is possible: what this grader decides, as one table. Every row has pairs that are tested.

The reference is what the question asked for: it decides what may match. In doubt the grader is strict, since what is
wrongly right is learned by a policy that is trained against it, and what is wrongly wrong costs a sample.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Answer = Literal["right", "wrong", "ungradable"]


class Row(NamedTuple):
    """A question, its answer, and pairs of (prediction, gold, verdict) that show it; `sign` finds it in a pair."""

    question: str
    answer: str
    pairs: tuple[tuple[str, str, Answer], ...]
    sign: str = r"(?!)"


POLICY = (
    Row(
        "rounding",
        "a decimal stands for what it writes, except: a reference with 4 or more places and digits is met by"
        " what rounds to it; a prediction with 4 places and 6 digits may be a rounded reference; the last four of"
        " 12 or more digits"
        " may be floating-point noise",
        (("0.33", "1/3", "wrong"), ("0.3333", "1/3", "wrong"), ("0.333333", "1/3", "right"), (r"\pi", "3.1416",
        "right"),
         ("3.14", r"\pi", "wrong"), ("18.000000000000004", "18", "right"), ("1.6001", "1.6", "wrong")),
        r"[0-9]\.[0-9]",
    ),
    Row(
        "percent",
        "50% is 0.5, and is 50 where only one of the two has the sign; 0.5 and 50 differ",
        ((r"50\%", "0.5", "right"), ("50", r"50\%", "right"), ("0.5", "50", "wrong"), ("5%", "500", "wrong")),
        "%|percent|百分之",
    ),
    Row(
        "units",
        "the question asks for the unit, so it may be missing on one side; two units must agree, converted if they"
        " measure the same",
        (("5 cm", "5", "right"), ("100 cm", "1 m", "right"), ("5 kg", "5 cm", "wrong"), (r"\$5", "5", "right"),
         ("50 cents", r"\$0.50", "right"), ("7 apples", "7", "right"), ("24 protons", "24 neutrons", "wrong")),
        r"[0-9)}] ?(?:\\text|\\mathrm|\\,)?\{? ?[a-zA-Z]{2,}|\$",
    ),
    Row(
        "angles",
        r"30^\circ and 30 are one; degrees and a multiple of \pi are converted",
        ((r"30^\circ", "30", "right"), (r"60^\circ", r"\frac{\pi}{3}", "right"), (r"30^\circ", r"\frac{\pi}{3}",
        "wrong")),
        r"\\circ|°|degree",
    ),
    Row(
        "several boxes",
        "the last box counts; different boxes in the final paragraph are no answer",
        ((r"\boxed{3} so \boxed{5}", "5", "wrong"), ("\\boxed{3}\n\nNo: \\boxed{5}", "5", "right"),
         (r"\boxed{0.5}, that is \boxed{\frac12}", "0.5", "right")),
        r"boxed.*boxed",
    ),
    Row(
        "several answers",
        "a list must have all and no more, each as often as the reference, in any order; braces make a set, where"
        " repetition does not count; a list of words keeps its order",
        (("2, 1", "1, 2", "right"), ("1", "1, 2", "wrong"), ("1, 2, 3", "1, 2", "wrong"), ("1,1,2", "1,2", "wrong"),
         (r"\{1,1,2\}", r"\{1,2\}", "right"), ("True, False", "False, True", "wrong"), (r"\pm 2", "2, -2", "right"),
         ("5 or 6", "5", "wrong")),
        r",|;| or |\\pm|或",
    ),
    Row(
        "tuples and intervals",
        "order and brackets count; a bare list in the reference's order may stand for a tuple, x = 1, y = 2 for (1, 2)",
        (("(2,1)", "(1,2)", "wrong"), ("(1,2)", "[1,2]", "wrong"), ("1,2", "(1,2)", "right"), ("2,1", "(1,2)",
        "wrong"),
         ("(1,2)", "x=1, y=2", "right"), (r"(1,2)", r"\begin{pmatrix}1\\2\end{pmatrix}", "right")),
        r"^[(\[].*[)\]]$",
    ),
    Row(
        "intervals and inequalities",
        "one set of numbers in two forms; the letter counts where both name one",
        (("x<3", r"(-\infty,3)", "right"), (r"(1,3]", r"1<x\leq 3", "right"), ("x<3", "y<3", "wrong"), ("3", "x<3",
        "wrong"),
         (r"x\ne 1", r"(-\infty,1)\cup(1,\infty)", "right"), ("(1,3]", "(1,3)", "wrong")),
        r"<|>|\\leq|\\geq|\\infty|\\ne",
    ),
    Row(
        "equations and values",
        "x = 5 is 5, whatever the name on the left; an equation between formulas is met only by one that says the same,"
        " never by one of its sides",
        (("x=5", "5", "right"), ("5", "x=5", "right"), ("y=5", "x=5", "wrong"), ("2x=y", "y=2x", "right"),
         ("1", "x^2+y^2=1", "wrong"), ("x+5=7", "7", "wrong"), ("2+3=5", "5", "right"), ("81", "9+72=81", "wrong")),
        "=",
    ),
    Row(
        "form",
        "any form of the value will do: unreduced, unexpanded, a root below the line, a logarithm without a base as the"
        " natural or the decimal one",
        (("2/4", "1/2", "right"), ("(x+1)^2", "x^2+2x+1", "right"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}",
        "right"),
         (r"\log 100", "2", "right"), (r"\ln(x^2)", r"2\ln x", "right"), (r"\sqrt{x^2}", "x", "wrong")),
    ),
    Row(
        "work left to do",
        "a sum, product, limit or integral is no answer where the reference has none; arithmetic is done",
        ((r"\sum_{n=1}^{3} n", "6", "ungradable"), ("3*4", "12", "right")),
        r"\\(?:sum|prod|lim|int)",
    ),
    Row(
        "choices",
        "the letter counts, whatever its brackets and the text after it; of several letters, all and no more",
        (("(A)", "A", "right"), ("A. 18", "A", "right"), ("18", "A", "wrong"), ("A, B, D", "ABD", "right"), ("AB",
        "ABD", "wrong")),
        r"^\(?[A-H]",
    ),
    Row(
        "words",
        "compared word by word, without articles and case; never read as formulas",
        (("The sun", "sun", "right"), ("listen", "silent", "wrong"), ("more than 0", "0", "wrong"), ("not 5", "5",
        "wrong"),
         ("two hundred and five", "205", "right"), ("三分之一", "1/3", "right")),
        r"[a-z]{4,}|[\u4e00-\u9fff]",
    ),
    Row(
        "ratios, times, bases",
        "a ratio may be scaled; a time of day is compared figure by figure; a missing base is the reference's",
        (("2:4", "1:2", "right"), ("2:1", "1:2", "wrong"), ("2:15", "4:30", "wrong"), ("11", "11_8", "right"),
        ("11_9", "11_8", "wrong")),
        r"[0-9]:[0-9]|[0-9]_",
    ),
    Row(
        "ungradable",
        "what cannot be read, or exceeds the limits, is neither right nor wrong, with the reason; the reward decides"
        " what that is worth, and counts it",
        (("9^9^9^9", "5", "ungradable"), ("2 3", "6", "ungradable"), ("5", "", "ungradable"), ("", "5", "wrong")),
    ),
)  # fmt: skip


def policy_of(prediction: str, gold: str) -> list[Row]:
    """Return the rows that a pair may fall under, by the signs in it."""
    texts = (prediction[:1000].strip().strip("$"), gold[:1000].strip().strip("$"))
    return [row for row in POLICY if any(re.search(row.sign, text) for text in texts)]
