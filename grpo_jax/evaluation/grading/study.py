"""One report on the grader: scores on labelled real data beside two others, hostile answers, speed, disagreements."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from grpo_jax.evaluation.grading.contenders import CONTENDERS, MOST
from grpo_jax.evaluation.grading.explanations import explain
from grpo_jax.evaluation.grading.hostile import ATTACKS, REFERENCES
from grpo_jax.evaluation.grading.labelled import Pair, read_pairs
from grpo_jax.rewards.equivalent import MEMORY, RIGHT, UNGRADABLE, exact_verdict, grade
from grpo_jax.rewards.extract import extract_answer
from grpo_jax.rewards.workers import Workers

SECONDS = 5.0  # a hostile answer may take
SHOWN = 12  # disagreements of a kind that are printed in full
EASY = 20_000  # verdicts that are timed


def run(folder: Path, table: Path | None = None) -> Iterator[str]:
    """Yield the lines of the report as they come.

    Args:
        folder: with the data of `labelled.FILES`.
        table: a folder with equal.txt and differ.txt, each of lines "prediction :: reference" under lines "# kind".

    Raises:
        FileNotFoundError: a file of the data is missing.
    """
    pairs = read_pairs(folder)
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    own = _own_cases(table) if table else []
    with Workers(max_workers=2) as workers:
        verdicts = {name: contender(pairs + own, workers) for name, contender in CONTENDERS.items()}
        yield from _scores(
            "labelled real data", pairs, {name: v[: len(pairs)] for name, v in verdicts.items()}, sources
        )
        if own:
            kinds = list(dict.fromkeys(pair.source for pair in own))
            yield from _scores("own table", own, {name: v[len(pairs) :] for name, v in verdicts.items()}, kinds)
        yield from _disagreements(pairs, {name: v[: len(pairs)] for name, v in verdicts.items()})
        yield from _hostile(workers)
    yield from _speed(pairs)


def _own_cases(table: Path) -> list[Pair]:
    return [
        Pair(kind, prediction, gold, path.stem == "equal", False)
        for path in (table / "equal.txt", table / "differ.txt")
        for kind, prediction, gold in read_cases(path)
    ]


def read_cases(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the kind, prediction and reference of each line of a file of cases."""
    kind = ""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("# "):
            kind = line[2:]
        elif " :: " in line:
            prediction, _, gold = line.partition(" :: ")
            yield kind, prediction, gold


def _scores(title: str, pairs: Sequence[Pair], verdicts: dict[str, list[bool]], sources: list[str]) -> Iterator[str]:
    names = "".join(f"{name:>27}" for name in verdicts)
    yield f"== {title}: share judged as labelled (all / pairs that are equal / pairs that differ)"
    yield f"{'':28}{'pairs':>7}{names}"
    for source in [*sources, "all"]:
        chosen = [i for i, pair in enumerate(pairs) if source in (pair.source, "all")]
        cells = (_shares([(pairs[i].equal, found[i]) for i in chosen]) for found in verdicts.values())
        yield f"{source:28}{len(chosen):>7}" + "".join(f"{cell:>27}" for cell in cells)
    yield f"(math-verify: of a source at most {MOST} pairs, every k-th)\n"


def _shares(judged: list[tuple[bool, bool | None]]) -> str:
    judged = [j for j in judged if j[1] is not None]
    groups = [judged, [j for j in judged if j[0]], [j for j in judged if not j[0]]]
    return " / ".join(f"{sum(a == b for a, b in g) / len(g):.4f}" if g else "-" for g in groups)


def _disagreements(pairs: Sequence[Pair], verdicts: dict[str, list[bool]]) -> Iterator[str]:
    """List our disagreements with the labels, each explained, and count where the two modes differ, by reason."""
    ours, official = verdicts["ours"], verdicts["official"]
    labels = Counter(
        (p.source, ours[i], explain(p, ours=ours[i], other=p.equal)) for i, p in enumerate(pairs) if ours[i] != p.equal
    )
    for source in ("GSM8K solutions", "ToRA outputs"):
        count = sum(n for (name, *_), n in labels.items() if name == source)
        yield f"== {source}: {count} disagreements of ours with the labels"
    yield "== every disagreement of ours with a label"
    for i, pair in enumerate(pairs):
        if ours[i] != pair.equal:
            yield _line(pair, ours[i]) + f" -- {explain(pair, ours=ours[i], other=pair.equal)}"
    differing = [i for i in range(len(pairs)) if ours[i] != official[i]]
    reasons = Counter((ours[i], explain(pairs[i], ours=ours[i], other=official[i])) for i in differing)
    yield f"\n== strict and official differ on {len(differing)} of {len(pairs)} pairs"
    for (right, reason), count in reasons.most_common():
        yield f"{count:6}  strict {'right' if right else 'wrong':6} official {'wrong' if right else 'right':6} {reason}"
    shown: Counter = Counter()
    for i in differing:
        reason = explain(pairs[i], ours=ours[i], other=official[i])
        shown[reason] += 1
        if shown[reason] <= SHOWN:
            yield "        " + _line(pairs[i], ours[i]) + f" -- {reason}"
    yield ""


def _line(pair: Pair, right: bool) -> str:
    answer = extract_answer(pair.text) if pair.completion else pair.text
    return f"[{pair.source}] {str(answer)[:60]!r} for {pair.gold[:60]!r}: {'right' if right else 'not right'}"


def _hostile(workers: Workers) -> Iterator[str]:
    """Grade every attack against every reference, one after another, the way a reward does."""
    limits = f"{SECONDS:.0f} s, {MEMORY >> 20} MiB"
    yield f"== hostile answers: {len(ATTACKS)} texts, each for {len(REFERENCES)} references, {limits}"
    yield f"{'family':28}{'texts':>6}{'held':>6}{'right':>7}{'ungradable':>12}{'killed':>8}{'slowest':>10}"
    held = 0
    for family in dict.fromkeys(attack.family for attack in ATTACKS):
        texts = [attack.text for attack in ATTACKS if attack.family == family]
        taken = {text: [_timed(text, gold, workers) for gold in REFERENCES] for text in texts}
        all_taken = [one for ones in taken.values() for one in ones]
        good = sum(all(s <= SECONDS and verdict.grade is not RIGHT for s, verdict in ones) for ones in taken.values())
        held += good
        counts = Counter(verdict.grade for _, verdict in all_taken)
        killed = sum(verdict.fault != "" for _, verdict in all_taken)
        slowest = max(seconds for seconds, _ in all_taken)
        numbers = f"{len(texts):>6}{good:>6}{counts[RIGHT]:>7}{counts[UNGRADABLE]:>12}{killed:>8}{slowest:>8.2f} s"
        yield f"{family:28}{numbers}"
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    memory = f"this process {own} MiB at its peak, workers {MEMORY >> 20} MiB each by limit"
    yield f"held {held} of {len(ATTACKS)}; {memory}\n"


def _timed(text: str, gold: str, workers: Workers):
    start = time.perf_counter()
    verdict = grade(text, gold, workers)
    return time.perf_counter() - start, verdict


def _speed(pairs: Sequence[Pair]) -> Iterator[str]:
    """Time the verdicts that need no worker, extraction included, on one core and with nothing remembered."""
    from grpo_jax.rewards.normal import normalise
    from grpo_jax.rewards.quantity import read_quantity
    from grpo_jax.rewards.words import read_words

    chosen = [pair for pair in pairs if pair.completion][:EASY]
    for remembered in (normalise, read_quantity, read_words):
        remembered.cache_clear()
    start = time.perf_counter()
    decided = sum(exact_verdict(extract_answer(pair.text), pair.gold) is not None for pair in chosen)
    elapsed = time.perf_counter() - start
    rate = len(chosen) / elapsed
    yield f"== speed: {rate:.0f} easy verdicts a second on one core; {decided} of {len(chosen)} need no more than that"
