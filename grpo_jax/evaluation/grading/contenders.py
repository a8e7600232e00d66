"""The graders that are compared: ours, math-verify as its users call it, and DeepSeek-Math's published rules.

Each takes pairs and says for each whether it takes the two for equal; what is ungradable, late or failed is not equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from grpo_jax.evaluation.grading.labelled import Pair
from grpo_jax.rewards import official, official_extract
from grpo_jax.rewards.equivalent import MEMORY, RIGHT, grade_all
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.rewards.workers import Workers

MOST = 600  # pairs of one source that math-verify judges
TIME_LIMIT = 5.0  # seconds for one comparison of math-verify

Contender = Callable[[Sequence[Pair], Workers], Sequence[bool | None]]


def ours(pairs: Sequence[Pair], workers: Workers) -> list[bool]:
    """Extract and grade strictly."""
    asked = [(extract_answer(pair.text) if pair.completion else pair.text, pair.gold) for pair in pairs]
    return [verdict.grade is RIGHT for verdict in grade_all(asked, workers, time_limit=TIME_LIMIT)]


def math_verify(pairs: Sequence[Pair], workers: Workers) -> list[bool | None]:
    """Parse the text and the reference, both boxed where they are bare, and verify; None: not among the judged.

    It takes milliseconds a pair, so of a large source every k-th pair is judged, MOST at the most.
    """
    sizes, seen = Counter(pair.source for pair in pairs), Counter()
    asked = []
    for pair in pairs:
        taken = seen[pair.source] % -(-sizes[pair.source] // MOST) == 0
        seen[pair.source] += 1
        asked.append((pair.text if pair.completion else _boxed(pair.text), _boxed(pair.gold)) if taken else None)
    different = list(dict.fromkeys(filter(None, asked)))
    chunks = [different[i : i + 64] for i in range(0, len(different), 64)]
    verdicts: dict = {}
    for chunk, outcome in zip(chunks, workers.map(verify_all, chunks, time_limit=64.0, memory=2 * MEMORY), strict=True):
        if outcome.kind == "value":
            verdicts |= dict(zip(chunk, outcome.value, strict=True))
        else:
            alone = workers.map(verify_all, [[pair] for pair in chunk], time_limit=TIME_LIMIT, memory=2 * MEMORY)
            verdicts |= {pair: one.kind == "value" and one.value[0] for pair, one in zip(chunk, alone, strict=True)}
    return [None if pair is None else verdicts[pair] for pair in asked]


def published(pairs: Sequence[Pair], workers: Workers) -> list[bool]:
    """Extract and grade by DeepSeek-Math's rules for sets with one answer."""
    return [
        official.same(
            official_extract.last_answer(pair.text) if pair.completion else official.normalise(pair.text),
            official.normalise(pair.gold),
        )
        for pair in pairs
    ]


CONTENDERS: dict[str, Contender] = {"ours": ours, "math-verify": math_verify, "official": published}


def _boxed(text: str) -> str:
    return text if "\\boxed" in text else rf"\boxed{{{text.strip().strip('$')}}}"


def verify_all(pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Run math-verify on (text, reference) pairs, in a worker."""
    import math_verify as library

    found = []
    for text, gold in pairs:
        wanted = library.parse(gold, parsing_timeout=None)
        given = library.parse(text, parsing_timeout=None)
        found.append(bool(library.verify(wanted, given, timeout_seconds=None)))
    return found
