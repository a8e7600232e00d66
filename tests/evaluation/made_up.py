"""Rows in the published form of each benchmark, all made up, with what should become of them."""

import json
from pathlib import Path

# kind: rows, then the reference answers
ROWS = {
    "gsm8k": (
        [
            {"question": "Ann has 2 hens and buys 3. How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
            {"question": "A farm of 1,200 hens buys 80. How many?", "answer": "1,280", "cot": "1,200 + 80"},
        ],
        ["5", "1280"],
    ),
    "math": (
        [
            {"problem": "Halve $1$.", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{\\frac12}$."},
            {"problem": "Solve $x^2=4$.", "solution": "One is $\\boxed{2}$, the other $\\boxed{-2}$."},
            {"problem": "Where is $x>1$?", "solution": "On $\\boxed{(1,\\infty)}$, so $\\boxed{(1, \\infty)}$."},
        ],
        ["\\frac12", "2, -2", "(1, \\infty)"],
    ),
    "math500": (
        [{"problem": "Add $1$ and $\\sqrt2$.", "answer": "1+\\sqrt{2}", "solution": "$\\boxed{1+\\sqrt{2}}$"}],
        ["1+\\sqrt{2}"],
    ),
    "ocw": (
        [
            {"problem": "Find the energy in erg. ", "solution": "$\\boxed{4.5e33}$", "answer": "4.5e33", "id": "0"},
            {"problem": "Find the angle.", "solution": "$\\boxed{np.arcsin(10/13)}$", "answer": "np.arcsin(10/13)"},
            {"problem": "Find the charge.", "solution": "$\\boxed{-2}$", "answer": "-2"},
            {"problem": "Give the equation.", "solution": "", "answer": "x^{2}+3 y=7"},
        ],
        ["4.5e33", "arcsin(10/13)", "-2", "x^{2}+3 y=7"],
    ),
    "sat": (
        [{"question": "Which is even?", "options": "A) 1 B) 2 C) 3 D) 5", "Answer": "B", "id": 0}],
        ["B"],
    ),
    "mmlu_stem": (
        [
            {"question": "Which is prime?", "options": ["4", "7", "9", "15"], "answer": "B", "topic": "x", "id": 0},
            {"question": "Which is odd?", "choices": [" 4", "6", "9", "None"], "answer": 2, "subject": "x"},
        ],
        ["B", "C"],
    ),
    "mgsm_zh": (
        [
            {"messages": [{"role": "user", "content": "安有两只鸡，再买三只。"}, {"role": "assistant", "content": ""}],
             "answer": "5"},
            {"question": "农场有 1,200 只鸡。", "answer": None, "answer_number": 1200},
        ],
        ["5", "1200"],
    ),
    "cmath": (
        [{"grade": 1, "question": "一共有多少？", "golden": "18", "reasoning_step": 1},
         {"grade": 6, "question": "占几分之几？", "golden": "1/3", "reasoning_step": 2}],
        ["18", "1/3"],
    ),
    "gaokao_mathcloze": (
        [
            {"question": "则 $a=(\\quad)$, $b=(\\quad)$", "answer": "$5$;$\\frac{1}{2}$", "label": None},
            {"question": "则区间为 $(\\quad)$", "answer": "$(0,1)$"},
        ],
        ["$5$;$\\frac{1}{2}$", "$(0,1)$"],
    ),
    "gaokao_mathqa": (
        [
            {"question": "则 $a=$ ($\\quad$)\\\\\n", "options": ["(A)1", "(B)2", "(C)3", "(D)4"], "label": "C"},
            {"question": "下列正确的是", "options": ["(A)1", "(B)2", "(C)3", "(D)4"], "label": "A C"},
        ],
        ["C", "AC"],
    ),
    "aime": (
        [{"id": 60, "problem": "Find $m+n$.", "answer": "033"}, {"Problem": "Find $k$.", "Answer": 204}],
        ["33", "204"],
    ),
    "svamp": (
        [{"Body": "Ed has 8 pens.", "Question": "How many are left if he gives away 3?", "Answer": "5.0"},
         {"Body": "If Jo runs 2.5 km a day", "Question": "how many in 1 day?", "Answer": 2.5}],
        ["5", "2.5"],
    ),
    "asdiv": (
        [{"body": "Seven apples and two pears.", "question": "How many fruits?", "answer": "9 (fruits)"}],
        ["9"],
    ),
}  # fmt: skip

QUESTIONS = {
    "sat": "Which is even?\nWhat of the following is the right choice? Explain your answer.\n(A) 1 (B) 2 (C) 3 (D) 5",
    "mmlu_stem": "Which is prime?\nWhat of the following is the right choice? Explain your answer.\n"
    "(A) 4, (B) 7, (C) 9, (D) 15",
    "gaokao_mathqa": "则 $a=$ ($\\quad$)\n从以下选项中选择:    (A)1 (B)2 (C)3 (D)4",
    "svamp": "Ed has 8 pens. How many are left if he gives away 3?",
    "asdiv": "Seven apples and two pears. How many fruits?",
    "ocw": "Find the energy in erg.",
}


def write_all(folder: Path) -> Path:
    """Write every benchmark's rows below a folder, as `<kind>.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (rows, _) in ROWS.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder
