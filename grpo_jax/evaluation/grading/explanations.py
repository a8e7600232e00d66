"""Why two judgements of one pair differ: a category, computed from the texts."""

from __future__ import annotations

import re

from grpo_jax.evaluation.grading.labelled import Pair
from grpo_jax.rewards import official, official_extract
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.rewards.normal import normalise
from grpo_jax.rewards.quantity import read_quantity


def explain(pair: Pair, *, ours: bool, other: bool) -> str:
    """Name the reason why ours and another judgement (of the label, or of the official rules) differ on a pair."""
    found = (extract_answer(pair.text) if pair.completion else pair.text) or ""
    published = official_extract.last_answer(pair.text) if pair.completion else official.normalise(pair.text)
    given, wanted = normalise(found), normalise(pair.gold)
    if not ours and other:
        return _too_strict(given, wanted, published, pair)
    return _too_lenient(given, wanted, published, pair)


def _too_strict(given: str, wanted: str, published: str, pair: Pair) -> str:
    a, b = read_quantity(given), read_quantity(wanted)
    if a is not None and b is not None:
        ratio = abs(a.value / b.value) if b.value else None
        if ratio in (100, 1) or (ratio and 1 / ratio == 100):
            return (
                "official forgives a factor of 100, or a sign in its list of numbers"
                if ratio != 1
                else "another sign or unit"
            )
        if abs(a.value - b.value) < 0.2:
            return "official takes numbers within 0.001, and percent within 0.1 points, for one"
        return "official reads another number out of the text than ours"
    if given.casefold().replace(" ", "") == wanted.casefold().replace(" ", ""):
        return "official ignores case, as of genotypes"
    if published.replace(",", "").lstrip("0") == wanted.replace(",", "").lstrip("0"):
        return "official deletes commas: 0,1 is 1"
    if re.sub(r"[\[\]()]", "", given) == re.sub(r"[\[\]()]", "", wanted):
        return "official ignores the kind of bracket"
    if re.search(r"[^\x20-\x7e]", given + wanted) or "{" in given + wanted:
        return "a text with braces or letters that have no grammar here"
    return "official reads another answer out of the text than ours"


def _too_lenient(given: str, wanted: str, published: str, pair: Pair) -> str:
    if given.replace(" ", "").casefold() == wanted.replace(" ", "").casefold():
        if not published:
            return "official finds no answer in this form"
        return "official compares what its normal form has left of the text"
    if re.sub(r"[^0-9]", "", given) and sorted(re.findall("[0-9.]+", given)) == sorted(re.findall("[0-9.]+", wanted)):
        if re.search(r"[,;]", given):
            return "a list in another order: the question asks for an order"
        return "the same value in another form: the question asks for a form"
    if re.search(r"[a-zA-Z]{3,}|[\u4e00-\u9fff]", wanted):
        return "official compares words letter by letter"
    if pair.equal:
        return "official does not read this form"
    return "the same value in another form: the question asks for a form"
