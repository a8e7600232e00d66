"""One verdict with its reasons, for a person: how the two answers were read, and which rule decided."""

from __future__ import annotations

from grpo_jax.rewards import official, official_extract
from grpo_jax.rewards.equivalent import RIGHT, WRONG, Verdict, exact_verdict, grade, local_verdict
from grpo_jax.rewards.extract import MARKED, extract
from grpo_jax.rewards.normal import normalise
from grpo_jax.rewards.policy import policy_of
from grpo_jax.rewards.quantity import read_quantity


def official_verdict(prediction: str, gold: str) -> Verdict:
    """Judge by DeepSeek-Math's published rules; a completion is searched for its answer by them first."""
    found = official_extract.last_answer(prediction) if _is_completion(prediction) else official.normalise(prediction)
    wanted = official.normalise(gold)
    if not found:
        return Verdict(WRONG, "no answer by the official rules")
    same = official.same(found, wanted)
    return Verdict(
        RIGHT if same else WRONG, f"{'equal' if same else 'different'} by the official rules: {found} and {wanted}"
    )


def explained(prediction: str, gold: str, *, mode: str = "strict") -> tuple[str, list[str]]:
    """Return the name of the grade, and lines that explain it."""
    if mode == "official":
        verdict = official_verdict(prediction, gold)
        return verdict.grade.value, [f"reason     {verdict.reason}"]
    verdict = grade(prediction, gold)
    lines = [f"reason     {verdict.reason}", f"stage      {_stage(prediction, gold)}"]
    for name, text in (("prediction", prediction), ("gold", gold)):
        if _is_completion(text):
            answer, rule = extract(text)
            lines.append(f"{name:10} found {answer!r} by the rule: {rule}")
            text = answer or ""
        normal = normalise(text)
        quantity = read_quantity(normal)
        lines.append(
            f"{name:10} {normal[:200]}" + (f"  = {quantity.value} {quantity.unit}".rstrip() if quantity else "")
        )
    lines += [f"policy     {row.question}: {row.answer}" for row in policy_of(prediction, gold)]
    return verdict.grade.value, lines


def _is_completion(text: str) -> bool:
    return "\\boxed" in text or "####" in text or bool(MARKED.search(text)) or "```output" in text


def _stage(prediction: str, gold: str) -> str:
    if exact_verdict(prediction, gold) is not None:
        return "exact rules and static limits"
    return "by value" if local_verdict(prediction, gold) is not None else "math-verify, in a worker"
