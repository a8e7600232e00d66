"""Real answers with labels: pairs of a prediction and a reference, and whether they are equal by the data's own word.

| set | equal pairs | pairs that differ |
|---|---|---|
| GSM8K solutions | published solutions of four models with `is_correct` | the same |
| ToRA outputs | published outputs whose published prediction is the reference's number | all others |
| references | each reference in a box, and after "The answer is" | each reference against mutations of it |
| MMLU-STEM options | an option against itself in another form | two options of one question |

A mutation changes the value and nothing else: off by one, the sign, the bracket, a part less, another letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from grpo_jax.rewards.extract import extract_answer

FILES = {
    "GSM8K": ("deepseek_math_eval/gsm8k/test.jsonl", "answer"),
    "CMATH": ("deepseek_math_eval/cmath/test.jsonl", "golden"),
    "MGSM-zh": ("deepseek_math_eval/mgsm_zh/mgsm_zh.jsonl", "answer"),
    "Gaokao cloze": ("deepseek_math_eval/agieval/gaokao-mathcloze.jsonl", "answer"),
    "Gaokao choice": ("deepseek_math_eval/agieval/gaokao-mathqa.jsonl", "label"),
    "MMLU-STEM": ("deepseek_math_eval/mmlu_stem/test.jsonl", "answer"),
}
SOLUTIONS = "gsm8k/example_model_solutions.jsonl"
TORA = "tora/outputs_tora-code-34b_gsm8k_test.jsonl"
FORMS = (r"so $\boxed{{{}}}$", "The answer is {}.")  # that all three graders know
NUMBER = re.compile(r"(?<![0-9.])[0-9]+(?![0-9.])")


class Pair(NamedTuple):
    """A text to be graded (a completion, or an answer as it stands), its reference, and the label."""

    source: str
    text: str
    gold: str
    equal: bool
    completion: bool  # whether the answer is to be found in the text first


def read_pairs(folder: Path) -> list[Pair]:
    """Read all labelled pairs of a data folder.

    Raises:
        FileNotFoundError: a file is missing; its path and what it is are named.
    """
    pairs = [*_solutions(folder), *_tora(folder), *_options(folder)]
    for source, (file, key) in FILES.items():
        golds = [_reference(row[key]) for row in _rows(folder / file)]
        for gold in golds:
            pairs += [Pair(source, form.format(gold), gold, True, True) for form in FORMS]
        for gold in dict.fromkeys(golds):
            pairs += [Pair(source, other, gold, False, False) for other in mutations(gold)]
    return pairs


def _rows(path: Path) -> list[dict]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; --study takes the folder with gsm8k, tora and deepseek_math_eval")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _reference(value: object) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _solutions(folder: Path) -> Iterator[Pair]:
    for row in _rows(folder / SOLUTIONS):
        gold = extract_answer(row["ground_truth"])
        for solution in row.values():
            if isinstance(solution, dict):
                yield Pair("GSM8K solutions", solution["solution"], gold, solution["is_correct"], True)


def _tora(folder: Path) -> Iterator[Pair]:
    for row in _rows(folder / TORA):
        yield Pair("ToRA outputs", row["code"][0], row["gt"], _same_number(row["pred"][0], row["gt"]), True)


def _same_number(prediction: str, gold: str) -> bool:
    try:
        return abs(float(prediction.replace(",", "")) - float(gold.replace(",", ""))) < 1e-6
    except ValueError:
        return False


def _options(folder: Path) -> Iterator[Pair]:
    for row in _rows(folder / FILES["MMLU-STEM"][0]):
        options = list(dict.fromkeys(map(str, row["options"])))
        for option, other in pairwise(options):
            yield Pair("MMLU-STEM options", f" {option}.", option, True, False)
            yield Pair("MMLU-STEM options", option, other, False, False)


def mutations(gold: str) -> list[str]:
    r"""Return answers that differ from a reference in its value only, e.g. of (1,2] : (2,2], (1,3], [1,2], (1,2).

    A reference that a mutation leaves as it was is not among them.
    """
    found = []
    for match in list(NUMBER.finditer(gold))[:4]:
        before, after = gold[: match.start()], gold[match.end() :]
        found += [f"{before}{int(match[0]) + 1}{after}", f"{before}{match[0]}0{after}" if int(match[0]) else gold]
    plain = gold.strip("$")
    if re.fullmatch(r"[0-9./,%]+|\\.*", plain):
        found.append("-" + plain)
    if re.fullmatch(r"[A-D]{1,4}", gold):
        found += [letter for letter in "ABCD" if letter != gold]
    for a, b in (("[", "("), ("(-", "[-"), ("+", "-"), (r"\cup", r"\cap"), (";", ";1;"), ("=", r"\ne "), ("x", "y")):
        if a in plain:
            found.append(plain.replace(a, b, 1))
    if ";" in plain:
        found.append(gold.split(";")[0])
    return [other for other in dict.fromkeys(found) if other != gold]
