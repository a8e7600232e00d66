"""launch/evaluate.py with scripted models: results, resume, comparison, the page, and what is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up import ROWS, write_all

from launch.evaluate import main

ROOT = Path(__file__).resolve().parents[2]
N = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("data"))


def answer(kind, gold, g):
    """Sample g of a problem: the first two right, then wrong, then without an answer."""
    if g == 3:
        return "I do not know."
    wrong = {"sat": "C", "mmlu_stem": "D", "gaokao_mathqa": "B"}.get(kind, "987654")
    return f"So the answer is $\\boxed{{{gold if g < 2 else wrong}}}$."


def write_script(path, kinds, better=0):
    lines = []
    for kind in kinds:
        for i, gold in enumerate(ROWS[kind][1]):
            bare = gold.strip("$") if gold.count("$") == 2 else gold
            samples = [answer(kind, bare, max(0, g - better)) for g in range(N)]
            lines.append({"id": f"{kind}/{i}", "greedy": answer(kind, bare, 2 - better), "samples": samples})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(script, kinds, data, out, *more):
    return [
        *(f"scripted:{script}", "--benchmarks", ",".join(kinds), "--data", str(data)),
        *("--samples", str(N), "--k", "1,2,4", "--out", str(out), *more),
    ]


def evaluated(*words):
    assert main(list(words)) == 0
    out = Path(words[words.index("--out") + 1])
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/result.json")}


def records(out):
    return {str(path.relative_to(out)): path.read_text() for path in sorted(Path(out).glob("*/*.jsonl"))}


def test_every_benchmark(data, tmp_path, capfd):
    script = write_script(tmp_path / "a.jsonl", ROWS)
    found = evaluated(*command(script, ROWS, data, tmp_path / "out"))
    assert sorted(found) == sorted(ROWS)
    for kind, result in found.items():
        metrics = {name: entry["value"] for name, entry in result["metrics"].items()}
        assert result["num_problems"] == len(ROWS[kind][0]) and metrics["greedy"] == 0.0
        assert metrics["mean@4"] == metrics["pass@1"] == 0.5 and metrics["pass@4"] == 1.0
        assert metrics["pass@2"] == pytest.approx(5 / 6)
        assert metrics["maj@4"] == 1.0 and metrics["maj@1"] == pytest.approx(0.5)
        counts = result["counts"]["sampled"]
        assert counts["samples"] == 4 * result["num_problems"] and counts["unanswered"] == result["num_problems"]
        assert counts["ungradable"] == counts["truncated"] == counts["prompt too long"] == 0
    printed = capfd.readouterr().out
    assert "maj@4" in printed and f"report: {tmp_path / 'out' / 'report.html'}" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "gaokao_mathcloze" in page and "Maj@K" in page and (tmp_path / "out" / "maj_pass_at_k.svg").is_file()
    lines = (tmp_path / "out" / "gsm8k" / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["id"], row["sample"]) for row in rows] == [(f"gsm8k/{i}", g) for i in range(2) for g in range(N)]
    assert [row["grade"] for row in rows[:N]] == ["right", "right", "wrong", "wrong"]


def test_against_another_run(data, tmp_path, capfd):
    """In pairs: the better script is right in one more sample, and greedily."""
    kinds = ("gsm8k", "ocw")
    for name, better in (("a", 0), ("b", 1)):
        script = write_script(tmp_path / f"{name}.jsonl", kinds, better)
        more = ("--against", str(tmp_path / "a")) if better else ()
        found = evaluated(*command(script, kinds, data, tmp_path / name, *more))
    paired = found["ocw"]["against"]["paired"]
    assert paired["greedy"] | {"p": 0} == {"value": 1.0, "low": 1.0, "high": 1.0, "p": 0}
    assert paired["mean@4"]["value"] == pytest.approx(0.25) and 0 < paired["mean@4"]["p"] <= 1
    assert "+25.0 [+25.0, +25.0]" in capfd.readouterr().out
    assert (tmp_path / "b" / "maj_pass_at_k.svg").read_text().count("stroke-dasharray") >= 4


def test_scores_of_another_model(data, tmp_path, capfd):
    """A scorer that likes the second sample and the wrong third one; negative scores cannot be votes."""
    script = write_script(tmp_path / "a.jsonl", ["gsm8k"])
    scores = tmp_path / "scores.jsonl"
    values = {0: 0.1, 1: 0.6, 2: 0.8, 3: 0.0}
    lines = [{"id": f"gsm8k/{i}", "sample": g, "score": value} for i in range(2) for g, value in values.items()]
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluated(*command(script, ["gsm8k"], data, tmp_path / "out", "--scores", str(scores)))["gsm8k"]["metrics"]
    assert found["best@4"]["value"] == 0.0 and found["weighted@4"]["value"] == 0.0 and found["maj@4"]["value"] == 1.0
    assert found["best@1"]["value"] == pytest.approx(0.5) and "is left out" not in capfd.readouterr().out
    lower = [line | {"score": line["score"] - 1.0} for line in lines]
    scores.write_text("".join(json.dumps(line) + "\n" for line in lower))
    again = evaluated(*command(script, ["gsm8k"], data, tmp_path / "out", "--scores", str(scores)))["gsm8k"]["metrics"]
    assert again == {name: entry for name, entry in found.items() if name != "weighted@4"}
    assert "the least score of gsm8k is -1" in capfd.readouterr().out
    scores.write_text(scores.read_text().splitlines()[0] + "\n")
    assert main(command(script, ["gsm8k"], data, tmp_path / "out", "--scores", str(scores))) == 2


def test_same_command_makes_nothing_twice(data, tmp_path):
    """Neither of a finished evaluation, nor where lines were lost or one was cut in the middle."""
    script = write_script(tmp_path / "a.jsonl", ["gsm8k", "ocw"])
    words = command(script, ["gsm8k", "ocw"], data, tmp_path / "out")
    first, kept = evaluated(*words), records(tmp_path / "out")
    assert evaluated(*words) == first and records(tmp_path / "out") == kept
    path = tmp_path / "out" / "ocw" / "samples.jsonl"
    for cut in (1, 300, 700):
        path.write_text(kept["ocw/samples.jsonl"][:-cut])
        assert evaluated(*words) == first
        assert records(tmp_path / "out") == kept


# The command, which rests behind every batch of samples: after the first there are seconds for a kill on any machine.
AT_LEISURE = """
import runpy, sys, time
from grpo_jax.stages.evaluation_store import Store
keep = Store.keep
Store.keep = lambda store, made: (keep(store, made), time.sleep(0.05 * (store.path.name == "samples.jsonl")))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_and_gone_on(data, tmp_path):
    """kill -9 at a random moment; the same command then ends with the records and results of the unbroken one."""
    problems = 400
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(problems)]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = tmp_path / "a.jsonl"
    texts = [[f"It is \\boxed{{{i + 1 + g % 2}}}." for g in range(N)] for i in range(problems)]
    lines = [{"id": f"gsm8k/{i}", "greedy": row[0], "samples": row} for i, row in enumerate(texts)]
    script.write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = ("--evaluation.batch_prompts", "2")
    whole = evaluated(*command(script, ["gsm8k"], folder, tmp_path / "whole", *more))
    words = [sys.executable, "-c", AT_LEISURE, "launch/evaluate.py"]
    words += command(script, ["gsm8k"], folder, tmp_path / "out", *more)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    made = tmp_path / "out" / "gsm8k" / "samples.jsonl"
    while process.poll() is None and not (made.is_file() and made.stat().st_size):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.3))
    process.kill()
    said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, said
    before = made.read_text()
    assert 0 < before.count("\n") < problems * N
    assert evaluated(*command(script, ["gsm8k"], folder, tmp_path / "out", *more)) == whole
    assert records(tmp_path / "out") == records(tmp_path / "whole")
    assert made.read_text().startswith(before[: before.rfind("\n") + 1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scripted:no.jsonl", "--benchmarks", "gsm8k"], "no.jsonl: no such file"),
        (["no/such/model", "--benchmarks", "gsm8k"], "model.model_name_or_path: 'no/such/model' does not exist"),
        (["MODEL"], "--benchmarks: none is given"),
        (["MODEL", "--benchmarks", "gms8k"], "no 'gms8k' in grpo_jax/evaluation/benchmarks"),
        (["MODEL", "--benchmarks", "held_out"], "has no held-out problems"),
        (["MODEL", "--benchmarks", "gsm8k", "--sampels", "4"], "--sampels: no such setting"),
        (["MODEL", "--benchmarks", "gsm8k", "--samples", "0"], "'0' is no whole number from 1"),
        (["MODEL", "--benchmarks", "gsm8k", "--step", "4"], "--stage and --step choose a checkpoint of a run"),
        (["gold"], "gold: name some --benchmarks"),
        (["gold", "--benchmarks", "gsm8k", "--data", "no_such"], "no_such does not exist"),
    ],
)
def test_refused(words, message, tmp_path, monkeypatch, capfd, data):
    monkeypatch.chdir(tmp_path)
    script = write_script(tmp_path / "a.jsonl", ["gsm8k"])
    assert main([f"scripted:{script}" if word == "MODEL" else word for word in words]) == 2
    said = capfd.readouterr().err
    assert message in said and "Traceback" not in said


def test_refused_where_other_records_are(data, tmp_path, capfd):
    script = write_script(tmp_path / "a.jsonl", ["gsm8k"])
    words = command(script, ["gsm8k"], data, tmp_path / "out")
    evaluated(*words)
    assert main([*words, "--seed", "5"]) == 2
    assert "seed: 0 -> 5" in capfd.readouterr().err
    write_script(script, ["gsm8k"], better=1)
    assert main(words) == 2
    assert "model.script" in capfd.readouterr().err
    assert main(command(script, ["gsm8k"], data, tmp_path / "b", "--against", str(tmp_path / "no"))) == 2
    assert "has no finished evaluation of gsm8k" in capfd.readouterr().err
    other = command(script, ["gsm8k"], data, tmp_path / "b", "--limit", "1", "--against", str(tmp_path / "out"))
    assert main(other) == 2
    assert "was of other problems (2 then, 1 now)" in capfd.readouterr().err
    path = tmp_path / "out" / "gsm8k" / "samples.jsonl"
    path.write_text("{}\n" + path.read_text())
    write_script(script, ["gsm8k"])
    assert main(words) == 2
    assert "samples.jsonl:1: is no record of a sample" in capfd.readouterr().err


def test_gold_by_the_command(data, tmp_path, capfd):
    assert main(["gold", "--benchmarks", "gsm8k,ocw,sat", "--data", str(data)]) == 0
    out = capfd.readouterr().out
    assert out.count("100.00%") == 9 and "ocw               few_shot            4  100.00%         -" in out
    (tmp_path / "ocw.jsonl").write_text(json.dumps({"problem": "x", "answer": "5. Then 7"}) + "\n")
    assert main(["gold", "--benchmarks", "ocw", "--data", f"ocw={tmp_path / 'ocw.jsonl'}"]) == 1
    assert "ocw/0" in capfd.readouterr().out
