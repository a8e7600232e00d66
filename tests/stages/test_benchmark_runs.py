"""Benchmarks in training: the same tasks as launch/evaluate.py, in the log and before and after."""

import contextlib
import json
from concurrent.futures import Future
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from small_runs import EVALUATION, SUMS, metrics, run, write_settings

from grpo_jax.configure import ConfigError
from grpo_jax.data.sources.arithmetic import Config, alphabet
from grpo_jax.data.tokenizer import character_tokenizer
from grpo_jax.evaluation.prompts import Prompting
from grpo_jax.sampler import pauses, sample
from grpo_jax.stages import evaluation
from grpo_jax.tools import python
from grpo_jax.tools.results import ToolResult


def with_benchmarks(folder, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"problem": f"{a}+{b}=", "answer": str(a + b)} for a, b in ((11, 2), (14, 3), (25, 4))]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = {"kind": "aime", "data": str(folder / "sums.jsonl")} | settings
    return {**EVALUATION, "benchmarks": [benchmark]}


def test_in_the_log_and_before_and_after(tmp_path, workers):
    evaluation = with_benchmarks(tmp_path)
    file = write_settings(tmp_path / "run.yaml", rl={"max_steps": 2, "eval_steps": 2}, evaluation=evaluation)
    run(file, tmp_path / "run", workers)
    after = json.loads((tmp_path / "run" / "evaluation" / "after.json").read_text())
    last = metrics(tmp_path / "run", "rl")[-1]
    for name in ("greedy", "mean@2", "pass@2", "maj@2", "aime/greedy", "aime/mean@2", "aime/maj@2"):
        assert last[f"eval/{name}"] == pytest.approx(after["metrics"][name]["value"])
    assert not any("official" in name for name in after["metrics"])  # the style as_run has no published rules
    rows = (tmp_path / "run" / "evaluation" / "after.aime.samples.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == ["aime/0", "aime/1", "aime/2"]
    assert (tmp_path / "run" / "evaluation" / "after.samples.jsonl").is_file()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"style": "tool"}, "style tool runs programs, and evaluation.tools is absent"),
        ({"style": "few_shot"}, "there is no such prompt"),
        ({"data": "no_such_folder"}, "no_such_folder does not exist"),
    ],
)
def test_refused_before_training(settings, words, tmp_path, workers):
    file = write_settings(tmp_path / "run.yaml", evaluation=with_benchmarks(tmp_path, **settings))
    with pytest.raises((ConfigError, ValueError), match=words):
        run(file, tmp_path / "run", workers)
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.parametrize(
    ("style", "runs"), [("zero_shot", False), ("few_shot", False), ("tool", True), ("as_run", True)]
)
def test_styles_that_read_what_programs_print(style, runs, tmp_path, workers, monkeypatch):
    """With `evaluation.tools`, a block of a style that does not ask for programs is text like any other."""
    said, asked = "```python\n1+2\n```", []
    ids = character_tokenizer(alphabet(Config(tool_rate=1.0)))(said + "\n```output\n3\n```\n3<eos>")["input_ids"]

    def draw(logits, keys, t, distribution):
        token = jnp.asarray(ids + [0] * 40, jnp.int32)[t]
        return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1)[:, 0]

    def ask(program, earlier):
        asked.append(program)
        answer = Future()
        answer.set_result(ToolResult("ok", "9"))
        return answer

    for module in (pauses, sample):
        monkeypatch.setattr(module, "draw", draw)
    monkeypatch.setattr(python, "build", lambda c: contextlib.nullcontext(SimpleNamespace(record={})))
    monkeypatch.setattr(python, "asking", lambda built, c: ask)
    # The alphabet of sums has no words to ask in.
    monkeypatch.setattr(evaluation, "prompting", lambda benchmark, style, base, **_: Prompting(base))
    settings = with_benchmarks(tmp_path, style=style) | {"tools": {"kind": "python", "max_output_tokens": 4}}
    settings |= {"source": None, "reward": None, "sampling": {"max_completion_length": 40}}
    source = {**SUMS, "tool_rate": 1.0}
    file = write_settings(tmp_path / "run.yaml", sft=None, rl={"source": source}, evaluation=settings)
    run(file, tmp_path / "run", workers, "--only", "evaluation")
    lines = (tmp_path / "run" / "evaluation" / "before.aime.samples.jsonl").read_text().splitlines()
    texts = {one["text"] for line in lines for one in json.loads(line)["samples"]}
    assert texts == {f"{said}\n```output\n{9 if runs else 3}\n```\n3"}
    assert set(asked) == ({"1+2"} if runs else set())


@pytest.mark.slow
def test_a_reward_model_scores_the_samples(tmp_path, workers):
    """The run's own in training, and by launch/evaluate.py the same one: best of k, and votes worth their scores."""
    from test_evaluate_models import evaluated, result

    model = {"labels": {"kind": "arithmetic", "slip_rate": 0.5, "size": 60}, "max_steps": 2, "batch_size": 8}
    evaluation = {**EVALUATION, "scorer": {"kind": "learned"}, "sampling": {"max_completion_length": 4}}
    file = write_settings(
        tmp_path / "run.yaml",
        reward_model={**model, "max_length": 24},
        rl={"max_steps": 1, "eval_steps": 1},
        evaluation=evaluation,
    )
    run(file, tmp_path / "run", workers)
    after = json.loads((tmp_path / "run" / "evaluation" / "after.json").read_text())["metrics"]
    assert after["best@1"] == after["mean@2"] and {"best@2", "weighted@2"} < after.keys()
    last = metrics(tmp_path / "run", "rl")[-1]
    assert last["eval/weighted@2"] == pytest.approx(after["weighted@2"]["value"])
    evaluated(tmp_path / "run", "--scorer", tmp_path / "run", "--out", tmp_path / "out", "--stage", "rl")
    assert result(tmp_path / "out", "held_out")["metrics"] == after
    lines = (tmp_path / "out" / "held_out" / "samples.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    assert all(0 <= score <= 1 for score in scores) and len(set(scores)) > 1


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"kind": "accuracy"}, "accuracy is no reward model"),
        ({"kind": "learned", "value": "logit", "unfinished": None}, "with value logit and unfinished None scores may"),
        ({"kind": "learned", "unfinished": -1.0}, "with value probability and unfinished -1.0 scores may be negative"),
    ],
)
def test_a_scorer_that_cannot_vote_is_refused(scorer, message, tmp_path, workers):
    file = write_settings(tmp_path / "run.yaml", evaluation={**EVALUATION, "scorer": scorer})
    with pytest.raises(ValueError, match=rf"evaluation\.scorer: {message}"):
        run(file, tmp_path / "run", workers)
