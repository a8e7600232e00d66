"""The report: one file that stands alone, small, escaped, and made of whatever part of a run is there."""

import html.parser
import json
import os
import re
from pathlib import Path

import pytest
from synthetic_run import make_groups, make_run, rl_line, sft_line, write_lines

from grpo_jax.reporting import report as module
from grpo_jax.reporting.charts import layout, verdict
from grpo_jax.reporting.gather import gather, iterations
from grpo_jax.reporting.pictures import lines_over_k, table_rows
from grpo_jax.reporting.report import ReportError, main, write_report
from grpo_jax.reporting.rollouts import write_rollouts
from grpo_jax.reporting.selection import choose_rollouts, spread
from grpo_jax.reporting.series import curves

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028<!--"


class Parts(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data


def page_of(run) -> tuple[str, Parts, dict]:
    text = write_report(run).read_text("utf-8")
    parts = Parts(text)
    return text, parts, json.loads(parts.scripts[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "sums")


def test_the_page_stands_alone_and_is_small(run):
    text, parts, data = page_of(run)
    assert len(text.encode()) < 2_000_000
    for tag, attributes in parts.tags:
        assert tag not in ("img", "iframe", "object", "embed")
        assert not (attributes.get("src") or "") and "@import" not in text
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    assert not re.search(r"url\((?!#)", text)
    assert [stage["name"] for stage in data["stages"]] == ["sft", "rl"]
    assert len(data["rollouts"]) == 20 and data["rollouts"][-1]["step"] == 200
    for word in ("96.0%", "[93.0, 98.5]", "+72.0", "mean@8", "maj@8", "num_generations: 16", "0.10.2", "0123456789"):
        assert word in text, word
    assert "sft 900 of 900, rl 200 of 200" in text and "32 × 16 completions a step" in text


@pytest.mark.parametrize("backwards", [False, True])
def test_evaluations_are_in_order_where_the_clock_knows_none(tmp_path, monkeypatch, backwards):
    """Files of one tick of the disk's clock, whatever order the disk names them in."""
    run, listed = make_run(tmp_path / "run", steps=5, rollout_files=1, groups=1), Path.glob
    for path in (run / "evaluation").iterdir():
        os.utime(path, ns=(10**18, 10**18))
    monkeypatch.setattr(Path, "glob", lambda path, pattern: sorted(listed(path, pattern), reverse=backwards))
    assert [evaluation["name"] for evaluation in gather(run).evaluations] == ["before", "after"]


def test_only_the_script_of_the_page_may_run(run):
    import base64
    import hashlib

    _, parts, _ = page_of(run)
    policy = next(a["content"] for tag, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(parts.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert len(parts.scripts) == 2
    assert not any(name.startswith("on") for _, attributes in parts.tags for name in attributes)


def test_text_of_the_run_stays_text(tmp_path):
    run = make_run(tmp_path / "evil", steps=5, rollout_files=1, groups=1)
    groups = [json.loads(line) for line in (run / "rl/rollouts/step_000001.jsonl").read_text("utf-8").splitlines()]
    first = groups[0]["completions"][0]
    groups[0] |= {"question": EVIL, "prompt": "p" + EVIL, "answer": EVIL}
    first |= {"tokens": [EVIL, "\ud800"], "extracted": EVIL, "rewards": {EVIL: 1.0}}
    first |= {name: [0.0, -1.0] for name in ("logprobs", "trainer_logprobs", "ref_logprobs", "entropy")}
    write_rollouts(run / "rl", 1, groups)
    (run / "config.yaml").write_text(f"output_dir: '{EVIL}'\nmodel: {{model_name_or_path: '{EVIL}'}}\n")
    (run / "environment.json").write_text(json.dumps({"python": EVIL, "devices": {EVIL: 1}}))
    content = {"name": EVIL, "title": EVIL, "num_problems": EVIL, "metrics": {EVIL: {"value": 0.5}}}
    (run / "evaluation" / "before.json").write_text(json.dumps(content))
    write_lines(run / "rl" / "metrics.jsonl", [{"step": 1, "time": 0.0, EVIL: 1.0}])
    text, parts, data = page_of(run)
    assert len(parts.scripts) == 2 and not any(tag == "img" for tag, _ in parts.tags)
    assert "<script>alert" not in text and "<img" not in text
    assert data["rollouts"][0]["groups"][0]["question"] == EVIL
    tokens = [item["tokens"] for item in data["rollouts"][0]["groups"][0]["completions"]]
    assert [EVIL, "\ud800"] in tokens
    assert list(data["stages"][1]["series"]) == [EVIL]


@pytest.mark.parametrize("missing", ["config.yaml", "environment.json", "sft", "rl", "evaluation", "rl/rollouts"])
def test_a_missing_part_is_left_out(tmp_path, missing):
    import shutil

    run = make_run(tmp_path / "run", steps=6, rollout_files=2, groups=1)
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, parts, data = page_of(run)
    ids = {attributes.get("id") for _, attributes in parts.tags}
    assert ("evaluation" in ids) == (missing != "evaluation")
    assert ("rollouts" in ids) == (missing not in ("rl", "rl/rollouts"))
    assert len(data["stages"]) == (1 if missing in ("sft", "rl") else 2)


def test_an_empty_run_has_a_report(tmp_path):
    text, _, data = page_of(tmp_path)
    assert "Nothing has been measured" in text and data["stages"] == []


def test_files_that_are_cut_or_broken_are_named_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "run", steps=6, rollout_files=1, groups=1)
    for path, text in (("rl/metrics.jsonl", "garbage\n"), ("rl/rollouts/step_000001.jsonl", '{"completions": 3}\n')):
        with open(run / path, "a") as file:
            file.write(text)
    (run / "rl" / "rollouts" / "step_000009.jsonl").write_text("")
    (run / "evaluation" / "odd.json").write_text("[1]")
    (run / "config.yaml").write_text("a: [unclosed")
    (run / "environment.json").write_text("{")
    text, _, data = page_of(run)
    for word in ("rl/metrics.jsonl, line 7", "step_000001.jsonl, line 2", "evaluation/odd.json", "a: [unclosed"):
        assert word in text, word
    assert str(tmp_path) not in text
    assert len(data["stages"][1]["steps"]) == 6 and len(data["rollouts"][0]["groups"]) == 1


def test_a_long_run_with_long_completions_stays_below_5_mb(tmp_path):
    import numpy as np

    run, rng = tmp_path / "long", np.random.default_rng(0)
    write_lines(run / "sft" / "metrics.jsonl", [sft_line(rng, step) for step in range(2000)])
    lines = [rl_line(rng, step, 1500) | {f"other/{i}": rng.normal() for i in range(60)} for step in range(1500)]
    write_lines(run / "rl" / "metrics.jsonl", lines)
    groups = make_groups(rng, 1, 100, True, 2)
    for group in groups:  # 32 completions of 1200 tokens
        for item in group["completions"]:
            for name in ("tokens", "logprobs", "trainer_logprobs", "ref_logprobs", "entropy"):
                item[name] = (item[name] * 40)[:1200]
        group["completions"] = group["completions"] * 2
    for step in range(1, 11):
        write_rollouts(run / "rl", step, groups)
    text, _, data = page_of(run)
    assert 1_000_000 < len(text.encode()) < 5_000_000
    steps = [entry["step"] for entry in data["rollouts"]]
    assert steps[0] == 1 and steps[-1] == 10 and len(steps) == 8 and data["rollout_files"] == 10
    [group, *_] = data["rollouts"][0]["groups"]
    assert group["total"] == 32 and len(group["all_rewards"]) == 32
    assert len(group["completions"]) >= 4
    rewards = [item["reward"] for item in group["completions"]]
    assert rewards[0] == max(r for r in group["all_rewards"] if r is not None)
    gaps = [item["gap"] for item in group["completions"] if "gap" in item]
    assert gaps and all(gap["left_out"] > 0 for gap in gaps)


def test_the_command_line_makes_the_report_or_says_why_not(run, tmp_path, capsys):
    (run / "report.html").unlink(missing_ok=True)
    assert main([str(run)]) == 0
    assert (run / "report.html").stat().st_size > 100_000 and "report.html" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(ReportError):
        write_report(tmp_path / "nowhere")
    assert list(run.glob(".*.tmp")) == []


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "is_primary", lambda: False)
    assert not write_report(tmp_path).exists()


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", as WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast(scheme):
    blocks = re.findall(r":root \{(.*?)\}", module.read("report.css"), flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[scheme]))

    def contrast(a: str, b: str) -> float:
        dark, light = sorted((luminance(colours[a]), luminance(colours[b])))
        return (light + 0.05) / (dark + 0.05)

    texts = [(text, ground) for text in ("ink", "muted", "accent", "warn") for ground in ("paper", "card")]
    texts += [("ink", "accent-soft"), ("muted", "accent-soft"), ("accent", "accent-soft"), ("ink", "warn-soft")]
    assert {pair: contrast(*pair) for pair in texts if contrast(*pair) < 4.5} == {}
    lines = [(f"c{i}", ground) for i in range(7) for ground in ("card", "paper")]
    assert {pair: contrast(*pair) for pair in lines if contrast(*pair) < 3} == {}


def test_every_key_is_drawn_once_and_unknown_ones_in_other():
    import numpy as np

    keys = [key for key in rl_line(np.random.default_rng(0), 50, 200) if key not in ("step", "time")]
    sections = layout(["step", "time", "nonfinite", *keys], "rl")
    drawn = [one["key"] for section in sections for chart in section["charts"] for one in chart["series"]]
    assert sorted(drawn) == sorted(keys)
    assert [chart["title"] for chart in sections[-1]["charts"]] == ["filtered/duplicates"]
    for section in sections[:-1]:
        for chart in section["charts"]:
            assert chart["meaning"] and chart["healthy"], chart["title"]
            labels = [one["label"] for one in chart["series"]]
            assert len(set(labels)) == len(labels)


def test_loss_has_another_meaning_in_sft():
    [rl], [sft] = layout(["loss"], "rl"), layout(["loss"], "sft")
    assert "clipped" in rl["charts"][0]["meaning"] and "likelihood" in sft["charts"][0]["meaning"]


@pytest.mark.parametrize(("value", "outside"), [(0.1, False), (0.6, True), (None, False)])
def test_what_is_outside_the_usual_range_is_said(value, outside):
    [section] = layout(["completions/clipped_ratio"], "rl")
    records = [{"step": i, "completions/clipped_ratio": 0.0 if i < 90 else value} for i in range(100)]
    sentence = verdict(section["charts"][0], records)
    assert (sentence is not None) == outside
    if outside:
        assert "0.6" in sentence and "0.3" in sentence


def test_curves_of_long_runs_keep_mean_and_range():
    records = [{"step": i, "time": 0.0, "loss": float(i % 10)} for i in range(10_000)]
    records[5000]["loss"] = 1e6
    records[70] |= {"loss": None, "nonfinite": {"loss": "nan"}}
    drawn = curves(records)
    loss = drawn["series"]["loss"]
    assert len(drawn["steps"]) == 1000 and drawn["steps"][-1] == 9999 and drawn["every"] == 10
    assert max(loss["high"]) == 1_000_000 and loss["low"][0] == 0 and loss["mean"][0] == 4.5
    assert loss["broken"] == [70]


def test_curves_of_short_runs_are_as_they_are():
    drawn = curves([{"step": 1, "a": 0.123456789}, {"step": 2, "b": 3.0}, {"step": 4, "a": 2.0, "word": "x"}])
    assert drawn["steps"] == [1, 2, 4]
    assert drawn["series"] == {"a": {"mean": [0.12346, None, 2]}, "b": {"mean": [None, 3, None]}}
    assert curves([])["steps"] == []


def test_the_picture_of_the_table_is_to_scale():
    first = {"name": "before", "metrics": {"greedy": {"value": 0.25, "low": 0.2, "high": 0.3}, "length": 30.0}}
    last = {"name": "after", "metrics": {"greedy": {"value": 0.5}, "length": {"value": 25.5}}}
    greedy, length = table_rows([first, last])
    assert [(mark.kind, mark.at, mark.low, mark.high) for mark in greedy.marks] == [
        ("first", 25.0, 20.0, 30.0),
        ("last", 50.0, 50.0, 50.0),
    ]
    assert greedy.change == "+25.0" and length.change == "-4.5" and length.marks == []


def test_lines_over_k_need_two_k():
    metrics = {f"pass@{k}": {"value": 0.1 * k} for k in (1, 2, 8)}
    lines, places = lines_over_k([{"name": "before", "metrics": metrics}])
    assert [k for _, k in places] == [1, 2, 8] and len(lines) == 1 and len(lines[0].pieces) == 2
    xs = [dot.x for dot in lines[0].dots]
    assert xs[2] - xs[1] == pytest.approx(2 * (xs[1] - xs[0]), abs=0.05)  # log k
    assert lines_over_k([{"name": "before", "metrics": {"pass@1": {"value": 1.0}}}]) == ([], [])


def test_steps_are_spread_over_the_run():
    assert spread(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert spread([1, 2], 5) == [1, 2]
    assert choose_rollouts({}) == ([], [])


def test_a_folder_beside_the_iterations_costs_nothing(tmp_path):
    """Such as one that a user has put aside."""
    for name in ("iteration_10", "iteration_2", "iteration_1_old"):
        folder = tmp_path / "rl" / name / "reward_model"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("")
    assert [path.parts[-3] for path in iterations(tmp_path)] == ["iteration_2", "iteration_10"]
