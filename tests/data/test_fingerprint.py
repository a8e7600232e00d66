"""The fingerprint notices what was changed, at a bounded cost."""

import dataclasses

from grpo_jax.data import fingerprint as module
from grpo_jax.data.fingerprint import fingerprint
from grpo_jax.data.sources.arithmetic import Config, build

PROBLEMS = list(build(Config(size=50), 0))


def test_any_change_shows():
    base = fingerprint(PROBLEMS)
    assert base == fingerprint(list(build(Config(size=50), 0))) and len(base) == 16
    changed = [dataclasses.replace(PROBLEMS[7], **{f: "x"}) for f in ("question", "answer", "id", "solution")]
    lists = [[*PROBLEMS[:7], p, *PROBLEMS[8:]] for p in changed]
    lists += [PROBLEMS[:-1], [PROBLEMS[0], *PROBLEMS], PROBLEMS[::-1], []]
    assert len({base, *map(fingerprint, lists)}) == 1 + len(lists)


def test_the_cost_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 10)
    seen = []

    class Counted(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    base = fingerprint(Counted(PROBLEMS))
    assert len(seen) <= 10
    assert base != fingerprint(PROBLEMS[:-1]) and base != fingerprint([PROBLEMS[0], *PROBLEMS])
