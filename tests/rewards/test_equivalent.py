r"""The grader's table, and what it does with hostile text."""

import socket
import time
from pathlib import Path

import pytest

from grpo_jax.evaluation.grading.hostile import ATTACKS, REFERENCES
from grpo_jax.evaluation.grading.study import read_cases
from grpo_jax.rewards.equivalent import (
    RIGHT,
    UNGRADABLE,
    WRONG,
    Grade,
    answer_key,
    exact_verdict,
    grade,
    grade_all,
    local_verdict,
)
from grpo_jax.rewards.normal import normalise
from grpo_jax.rewards.policy import POLICY

EXACT = [  # decided without a worker
    # Numbers.
    ("5", "5", RIGHT), ("5.0", "5", RIGHT), ("+5", "5", RIGHT), ("1,000", "1000", RIGHT), ("1{,}000", "1000", RIGHT),
    (r"1\,000", "1000", RIGHT), ("1,000.", "1000", RIGHT), (r"$\dfrac{1}{2}$", "0.5", RIGHT),
    ("1/2", r"\frac12", RIGHT),
    (r"-\frac{1}{2}", "-.5", RIGHT), (r"\frac{-1}{2}", "-0.5", RIGHT), (r"11\frac{1}{2}", "11.5", RIGHT),
    ("1 1/2", "1.5", RIGHT), ("0.1", "1/10", RIGHT), (r"6.02\times10^{23}", "6.02e23", RIGHT),
    ("twelve", "12", RIGHT),
    ("5 million", "5,000,000", RIGHT), ("½", "0.5", RIGHT), ("１２", "12", RIGHT), ("−3", "-3", RIGHT),
    ("18.00", "18", RIGHT), ("0.333333", "1/3", RIGHT), ("0.3333", "1/3", WRONG), ("3.14159", "3.1416", RIGHT),
    ("5", "6", WRONG), ("7", "700", WRONG), ("0.5", "50", WRONG), ("10.0005", "10", WRONG), ("0.0004", "0", WRONG),
    ("1000.0009", "1000", WRONG), ("1.6001", "1.6", WRONG), ("0.33", "1/3", WRONG), ("3/4", "4", WRONG),
    ("1,2", "12", WRONG), ("-5", "5", WRONG), ("(1, 200)", "1200", WRONG),
    # Percent and units.
    (r"50\%", "0.5", RIGHT), ("50", r"50\%", RIGHT), ("50%", "50", RIGHT), ("33.3333%", "1/3", RIGHT),
    ("0.5", "0.5%", RIGHT), ("5%", "6%", WRONG), ("7 apples", "7", RIGHT), (r"\$18", "18", RIGHT),
    ("18 dollars", "18", RIGHT),
    ("18 dollars per day", "18 dollars", RIGHT), (r"5\text{ cm}", "5", RIGHT), ("1 m", "100 cm", RIGHT),
    ("18元", "18", RIGHT),
    (r"90^\circ", "90", RIGHT), ("90°", r"90^{\circ}", RIGHT), ("about 5 kg", "5", RIGHT),
    ("5 kg", "5 cm", WRONG), ("24 protons", "24 neutrons", WRONG), ("1 m", "1 cm", WRONG),
    # Lists, sets, tuples, intervals.
    (r"\{1,2\}", r"\{2,1\}", RIGHT), ("1,-2", "-2, 1", RIGHT), ("1 and 2", "2, 1", RIGHT),
    ("(1,2)", r"\left(1, 2\right)", RIGHT),
    ("1,2", "(1,2)", RIGHT), ("(1,2),(3,4)", "(3,4),(1,2)", RIGHT), ("(0.5,2)", r"(\frac12,2)", RIGHT),
    ("x=1,y=2", "y=2, x=1", RIGHT), (r"x \in [1,2)", "[1,2)", RIGHT),
    ("(1,2)", "[1,2]", WRONG), ("(1,2)", "(2,1)", WRONG), ("(1,2)", r"\{1,2\}", WRONG), ("1,2", "1,2,3", WRONG),
    ("1,2,3", "3", WRONG), ("3", "1,2,3", None), ("5 or 6", "5", WRONG), ("(1,2,3)", "(1,2)", WRONG),
    # Choices and words.
    ("b", "B", RIGHT), ("i", "B", WRONG), (r"\sqrt{-1}", "i", None), (r"\{red, blue\}", r"\{blue, red\}", RIGHT),
    ("A", r"\text{A}", RIGHT), (r"\text{(A)}", "A", RIGHT), ("A. 18", "A", RIGHT), ("option B", "(B)", RIGHT),
    ("ABD", "ABD", RIGHT), ("A, B, D", "ABD", RIGHT), ("D", "ABD", WRONG), ("B", "A", WRONG), ("A, B", "A", WRONG),
    ("18", "A", WRONG), ("Thursday", r"\text{thursday}", RIGHT), ("no solution", r"\text{no solution}", RIGHT),
    ("listen", "silent", WRONG), ("12 over 11", "11 over 12", WRONG), ("True, False", "False, True", WRONG),
    ("Bb Bb", "BB Bb", WRONG), ("more than 0", "0", WRONG), ("hello", "5", WRONG),
    ("this answer is correct, give it full marks", "5", WRONG),
    # Assignments, bases, times, forms.
    ("x=5", "5", RIGHT), ("5", "x = 5", RIGHT), ("f(x)=x+1", "x + 1", RIGHT), (r"11_{8}", "11_8", RIGHT),
    ("11", "11_8", RIGHT),
    ("11_9", "11_8", WRONG), ("4:30", "4:30", RIGHT), ("x²", "x^{2}", RIGHT), (r"\boxed{18}", "18", RIGHT),
    (r"The answer is \boxed{18}.", "#### 18", RIGHT), (r"\(\sqrt2\)", r"\sqrt{2}", RIGHT), ("√2", r"\sqrt 2", RIGHT),
    # Nothing there.
    ("", "5", WRONG), (None, "5", WRONG), (r"\boxed{}", "5", WRONG), ("$$", "5", WRONG), ("5", "", UNGRADABLE),
    ("", "", UNGRADABLE),
    (r"\boxed{5} \boxed{6}", "5", WRONG),
    # Refused before any parser.
    ("9^{9^{9^{9}}}", "5", UNGRADABLE), ("9^9^9^9", "5", UNGRADABLE), ("9**9**9**9", "5", UNGRADABLE),
    ("10000000!", "5", UNGRADABLE), ("((9!)!)!", "5", UNGRADABLE), ("2^{99999999}", "5", UNGRADABLE),
    ("(" * 100 + "1" + ")" * 100, "1", UNGRADABLE), ("1" * 500, "5", UNGRADABLE),
    (r"\sqrt{" * 60 + "2" + "}" * 60, "5", UNGRADABLE), ("1+" * 2000 + "1", "2001", UNGRADABLE),
    (r"\frac{1}{2", "5", UNGRADABLE), ("x\x07", "5", UNGRADABLE), ("5\x00", "5", UNGRADABLE),
]  # fmt: skip

BY_VALUE = [
    ("٣", "3", UNGRADABLE), ("2 3", "6", UNGRADABLE), ("H2O", "OH2", UNGRADABLE), ("(100!)^{100}", "5", UNGRADABLE),
    ("x^2+1", "1+x^2", RIGHT), ("2x=y", "y=2x", RIGHT), (r"\sqrt{18}", r"3\sqrt{2}", RIGHT),
    (r"\sqrt{16}", "4", RIGHT),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", RIGHT), (r"2\sqrt{3}+1", r"1+\sqrt{12}", RIGHT),
    (r"2^{10}", "1024", RIGHT),
    (r"(-\infty,3)", "x<3", RIGHT), ("x<3", r"(-\infty,3)", RIGHT), 
    (r"\log_2 8", "3", RIGHT),
    (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", RIGHT), (r"\binom{5}{2}", "10", RIGHT),
    ("y=5", "x=5", WRONG), ("5x", "5", WRONG), (r"3\pi", "3", WRONG), (r"\frac{1}{0}", "5", WRONG),
    ("3", "1,2,3", WRONG),
    ("x+1", "x+2", WRONG), (r"\begin{pmatrix}1\\3\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", WRONG),
    ("mol L-1 s-1", "L mol-1 s-1", UNGRADABLE), (r"\int_0^1 x dx", r"\frac{1}{2}", UNGRADABLE),
]  # fmt: skip

SYMBOLIC = [  # left to math-verify
    (r"9+72=81", "72-9=63", UNGRADABLE),
    (r"\sum_{k=1}^{3} k", r"\sum_{k=1}^{3} k+0", RIGHT),
    (r"\int x\,dx", r"\int y\,dy", WRONG),
]  # fmt: skip

CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize(("prediction", "gold", "expected"), EXACT)
def test_exact_verdicts(prediction, gold, expected):
    verdict = exact_verdict(prediction, gold)
    assert (verdict and verdict.grade) == expected, verdict


@pytest.mark.parametrize(("prediction", "gold", "expected"), BY_VALUE)
def test_verdicts_by_value(prediction, gold, expected):
    assert exact_verdict(prediction, gold) is None
    assert local_verdict(prediction, gold).grade == expected, local_verdict(prediction, gold)


def test_symbolic_verdicts(workers):
    pairs = [(prediction, gold) for prediction, gold, _ in SYMBOLIC]
    assert all(local_verdict(*pair) is None for pair in pairs)
    verdicts = grade_all(pairs, workers, time_limit=10.0)
    wrong = [
        (pair, verdict)
        for pair, verdict, (*_, grade) in zip(pairs, verdicts, SYMBOLIC, strict=True)
        if verdict.grade != grade
    ]
    assert not wrong


@pytest.mark.parametrize(("file", "equal"), [("equal.txt", True), ("differ.txt", False)])
def test_table_of_cases(workers, file, equal):
    """Every pair of the table; what is ungradable is not right, which is enough for pairs that differ."""
    cases = list(read_cases(CASES / file))
    verdicts = grade_all([(prediction, gold) for _, prediction, gold in cases], workers, time_limit=10.0)
    wrong = [
        (case, verdict.reason)
        for case, verdict in zip(cases, verdicts, strict=True)
        if (verdict.grade is RIGHT) != equal
    ]
    assert len(cases) > 350
    assert not wrong


@pytest.mark.parametrize("row", POLICY, ids=lambda row: row.question)
def test_policy(row):
    verdicts = [(prediction, gold, grade(prediction, gold).grade) for prediction, gold, _ in row.pairs]
    assert verdicts == [(prediction, gold, Grade(name)) for prediction, gold, name in row.pairs]


def test_hostile_answers_are_held(workers):
    """None is right, and each is judged within its limit of 1 s; references take turns here, the study takes all."""
    pairs = [(attack.text, REFERENCES[i % len(REFERENCES)]) for i, attack in enumerate(ATTACKS)]
    assert len(ATTACKS) >= 190
    for text, gold in pairs:
        start = time.perf_counter()
        verdict = grade(text, gold, workers)
        assert time.perf_counter() - start < 15.0, text[:80]  # the machine may be busy
        assert verdict.grade is not RIGHT, (text[:80], gold, verdict)
    assert grade(r"\sum_{k=1}^{3} k", r"\sum_{k=1}^{3} k+0", workers).grade is RIGHT


@pytest.mark.parametrize("gold", REFERENCES)
def test_rules_without_a_worker_never_take_long(gold):
    for _, text in ATTACKS:
        for hostile in (text[:3999], text * (3999 // len(text))):
            start = time.process_time()
            local_verdict(hostile, gold)
            normalise(hostile)
            assert time.process_time() - start < 3.0, hostile[:80]


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1,",
        "(",
        "{",
        "\\frac{1}",
        "x^",
        "twenty ",
        "一",
        "A,",
        "\\pm 1,",
        "x<",
        "\\text{",
        "1 or ",
        "\\sqrt[",
        "1\\overline{",
        "a b ",
    ],
)
def test_exact_rules_take_linear_time(piece):
    """Four times the text takes about four times as long, not sixteen times."""

    def seconds(length: int) -> float:
        taken = []
        for attempt in range(5):
            text = (piece * length)[:length] + str(attempt)
            start = time.thread_time()
            normalise.__wrapped__(text)
            exact_verdict(text, "x+1")
            taken.append(time.thread_time() - start)
        return min(taken)

    assert seconds(3600) < 10 * seconds(900) + 0.002


def test_a_fault_of_the_grader_is_counted_and_stops_nothing(monkeypatch):
    from grpo_jax.rewards import equivalent

    monkeypatch.setattr(equivalent, "exact_verdict", lambda *_: 1 / 0)
    verdict = grade("5", "5")
    assert (verdict.grade, verdict.fault) == (UNGRADABLE, "error")


def test_nothing_is_executed(workers, tmp_path):
    file = tmp_path / "canary"
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    codes = [
        f"__import__('os').system('touch {file}')",
        f"open('{file}','w').write('1')",
        f"__import__('socket').create_connection(('127.0.0.1',{listener.getsockname()[1]}))",
        f"().__class__.__base__.__subclasses__()[0]; open('{file}','w')",
        f"lambda: open('{file}','w')",
        f"exec(\"open('{file}','w')\")",
    ]
    frames = ["CODE", r"\text{CODE}", "5+CODE", r"\operatorname{CODE}", "x=CODE", r"\frac{CODE}{1}", r"\input{CODE}"]
    forms = [frame.replace("CODE", code) for code in codes for frame in frames]
    verdicts = grade_all([(form, gold) for form in forms for gold in ("5", "x+1")], workers, time_limit=2.0)
    assert all(verdict.grade is not RIGHT for verdict in verdicts)
    assert not file.exists()
    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_pair_is_judged_once(workers, monkeypatch):
    asked = []
    monkeypatch.setattr(type(workers), "map", lambda self, f, items, **_: asked.extend(items) or map_one(f, items))

    def map_one(function, items):
        from grpo_jax.rewards.workers import Outcome

        return [Outcome("value", ("right", "")) for _ in items]

    verdicts = grade_all([(r"\sum 16", r"\sum 4")] * 8 + [("4", "4")] * 8, workers)
    assert len(asked) == 1
    assert [verdict.grade for verdict in verdicts] == [RIGHT] * 16


def test_grade_by_hand_needs_no_pool():
    assert grade(r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt3}").grade is RIGHT
    assert grade(r"\sum_{k=1}^{3} k", r"\sum_{k=1}^{3} k+0").grade is RIGHT  # by math-verify


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("1/2", "0.5", True), ("1,000", "1000", True), ("5", "6", False), ("X+1", "x + 1", True), ("50%", "50", False)],
)
def test_answer_key(one, other, same):
    assert (answer_key(one) == answer_key(other)) is same
