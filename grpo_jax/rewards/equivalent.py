"""Is a predicted answer the reference answer? Right, wrong, or not to be said.

Three stages: what can be decided exactly and cheaply is decided here (`structure.decide`, thousands a second); what
exceeds the static limits is refused; the rest is algebra for a worker that is killed at its limit. Nothing that a
model wrote is evaluated at any stage.
"""

from __future__ import annotations

import atexit
import re
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache
from typing import Literal, NamedTuple

from grpo_jax.rewards import algebra, limits, symbolic
from grpo_jax.rewards.extract import MARKED, extract_answer, only_formula
from grpo_jax.rewards.normal import MAX_LENGTH, latex, normalise
from grpo_jax.rewards.probing import TooLargeError
from grpo_jax.rewards.quantity import read_quantity
from grpo_jax.rewards.structure import Leaf, decide
from grpo_jax.rewards.words import read_words
from grpo_jax.rewards.workers import Outcome, Workers

MEMORY = 512 << 20  # bytes of address space for one comparison; about 70 MiB of it are Python and sympy
TIME_LIMIT = 2.0  # seconds for one comparison; with the start of a worker below 5 s
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNFINISHED = re.compile(r"\\(?:sum|prod|int|iint|oint|lim|limsup|liminf)(?![a-z])")
TOTAL_LIMIT = 4.5  # seconds for one pair in `grade`, the start of a worker included


class Grade(Enum):
    """The three outcomes."""

    RIGHT = "right"
    WRONG = "wrong"
    UNGRADABLE = "ungradable"


RIGHT, WRONG, UNGRADABLE = Grade.RIGHT, Grade.WRONG, Grade.UNGRADABLE


class Verdict(NamedTuple):
    """A grade with its reason; `fault` says whether an ungradable answer met the time limit or killed its worker."""

    grade: Grade
    reason: str
    fault: Literal["", "timeout", "error"] = ""


def grade(prediction: str | None, gold: str, workers: Workers | None = None) -> Verdict:
    """Judge one answer against the reference; without `workers` a worker of this process is used, made at need.

    An empty or missing prediction is wrong, an empty reference makes everything ungradable. Takes at most TOTAL_LIMIT.
    """
    verdict = local_verdict(prediction, gold)
    return verdict or grade_all([(prediction, gold)], workers or _own_workers(), total=TOTAL_LIMIT)[0]


def grade_all(
    pairs: Sequence[tuple[str | None, str]],
    workers: Workers,
    *,
    time_limit: float = TIME_LIMIT,
    total: float | None = None,
) -> list[Verdict]:
    """Judge (prediction, gold) pairs; each different pair is judged once, the hard ones in parallel in the workers.

    Args:
        time_limit: seconds for one symbolic comparison.
        total: seconds for all of them together; what is not done then is ungradable.
    """
    verdicts = {pair: local_verdict(*pair) for pair in dict.fromkeys(pairs)}
    hard = [pair for pair, verdict in verdicts.items() if verdict is None]
    texts = [(_formula(prediction), _formula(gold)) for prediction, gold in hard]
    outcomes = workers.map(symbolic.compare, texts, time_limit=time_limit, memory=MEMORY, total=total) if hard else []
    verdicts.update(zip(hard, map(_symbolic_verdict, outcomes), strict=True))
    return [verdicts[pair] for pair in pairs]


def local_verdict(prediction: str | None, gold: str) -> Verdict | None:
    """Judge what needs no worker: by exact rules, by static limits, by value; None: it needs math-verify."""
    try:
        return exact_verdict(prediction, gold) or probed_verdict(prediction, gold)
    except TooLargeError:
        return Verdict(UNGRADABLE, "a value is too large to be compared")
    except Exception as error:  # a fault of the grader must not stop a run; it is counted
        return Verdict(UNGRADABLE, f"the grader raised {type(error).__name__}: {str(error)[:200]}", "error")


def exact_verdict(prediction: str | None, gold: str) -> Verdict | None:
    """Judge what exact rules can judge, in microseconds; what exceeds the static limits is refused here; else None."""
    if not gold or not gold.strip():
        return Verdict(UNGRADABLE, "the reference is empty")
    if prediction is None or not prediction.strip():
        return Verdict(WRONG, "no answer")
    prediction, gold = _answer(prediction), _answer(gold)
    if prediction is None:
        return Verdict(WRONG, "no answer: no box, or several different ones")
    if gold is None:
        return Verdict(UNGRADABLE, "the reference has several different boxes")
    if prediction.strip() == gold.strip():
        return Verdict(RIGHT, "the same text")
    if len(prediction) > MAX_LENGTH:
        return Verdict(UNGRADABLE, f"the prediction has {len(prediction)} characters, more than {MAX_LENGTH}")
    if _CONTROL.search(prediction):
        return Verdict(UNGRADABLE, "the prediction has control characters")
    prediction, gold = normalise(prediction), normalise(gold)
    if not prediction:
        return Verdict(WRONG, "no answer")
    verdict = _decided("equal", "different", prediction, gold)
    return verdict or _refused(prediction, gold, limits.refusal)


def probed_verdict(prediction: str, gold: str) -> Verdict | None:
    """Judge what our own grammar reads, by value, in milliseconds; None: it needs math-verify in a worker."""
    prediction, gold = normalise(_answer(prediction) or ""), normalise(_answer(gold) or "")
    verdict = _decided("equal in value", "different in value", prediction, gold, algebra.same)
    if verdict is None and (read_words(prediction) is None) != (read_words(gold) is None):
        return Verdict(UNGRADABLE, "one answer is in words, the other a formula")
    if verdict is None and _UNFINISHED.search(prediction) and not _UNFINISHED.search(gold):
        return Verdict(UNGRADABLE, "the prediction leaves a sum, product, limit or integral to be done")
    return verdict or _refused(prediction, gold, limits.misreading)


def _decided(equal: str, different: str, prediction: str, gold: str, leaf: Leaf | None = None) -> Verdict | None:
    same = decide(prediction, gold, leaf=leaf)
    if same is None:
        return None
    values = f"{prediction[:80]} and {gold[:80]}"
    return Verdict(RIGHT, f"{equal}: {values}") if same else Verdict(WRONG, f"{different}: {values}")


def _refused(prediction: str, gold: str, refusal: Callable[[str], str | None]) -> Verdict | None:
    for name, text in (("reference", gold), ("prediction", prediction)):
        if reason := refusal(text):
            return Verdict(UNGRADABLE, f"the {name} has {reason}")
    return None


def answer_key(answer: str) -> str:
    """Name the class of equal answers that an answer belongs to, as far as exact rules see it; for majority votes."""
    text = normalise(answer)
    quantity = read_quantity(text)
    if quantity is None or quantity.percent or quantity.unit not in ("", "dollar"):
        return text.casefold()
    return str(quantity.value)


def _answer(text: str) -> str | None:
    """Take an answer that is marked as such out of the text around it."""
    if "\\boxed" in text or "####" in text or MARKED.search(text):
        return extract_answer(text)
    return only_formula(text) or text


def _formula(text: str) -> str:
    """Give math-verify the answer as written, without what only wraps it: it has its own normal form."""
    return latex(_answer(text) or "")


def _symbolic_verdict(outcome: Outcome) -> Verdict:
    if outcome.kind == "value":
        name, reason = outcome.value
        return Verdict(Grade(name), reason)
    if outcome.kind == "timeout":
        return Verdict(UNGRADABLE, "the symbolic comparison took too long", "timeout")
    return Verdict(UNGRADABLE, f"the symbolic comparison failed: {outcome.text.strip()[-300:]}", "error")


@cache
def _own_workers() -> Workers:
    workers = Workers(max_workers=1).__enter__()
    atexit.register(workers.close)
    return workers
