"""Reinforcement with a tool as a whole: what is logged, what is kept, what the run record says, and what is learnt."""

import contextlib
import json
import os
import signal
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from small_runs import (
    EVALUATION,
    SUMS,
    assert_equal_leaves,
    ledger,
    metrics,
    on_few_devices,
    rollouts,
    run,
    steps,
    write_settings,
)

from grpo_jax.configure import load
from grpo_jax.data.sources.arithmetic import Config, alphabet
from grpo_jax.data.tokenizer import character_tokenizer
from grpo_jax.reporting.metrics import read_metrics
from grpo_jax.reporting.report import write_report
from grpo_jax.sampler import pauses
from grpo_jax.stages import pipeline
from grpo_jax.tools import python
from grpo_jax.tools.results import SandboxError, ToolResult
from grpo_jax.training.interrupt import Interrupted
from tests.sandboxes import entered

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = {**SUMS, "tool_rate": 1.0}
SAID, HEARD, ANSWER = "```python\n1+2\n```", "\n```output\n3\n```\n", "3"


def settings(path, evaluation=None, **rl):
    tools = {"kind": "python", "max_output_tokens": 4, "workers": 2}
    lengths = {"sampling": {"max_completion_length": 40}, "head_chunk": 16, "rewards": [{"kind": "accuracy"}]}
    rl = {"source": SOURCE, "tools": tools, "max_steps": 2, **lengths, **rl}
    return write_settings(path, sft=None, rl=rl, evaluation=evaluation)


@pytest.fixture(scope="module")
def sandboxed():
    with entered("auto", 1):
        yield


def scripted(logits, keys, t, distribution):
    """Each row writes the same program and answer, with the log-probability that it has."""
    ids = character_tokenizer(alphabet(Config(tool_rate=1.0)))(SAID + HEARD + ANSWER + "<eos>")["input_ids"]
    token = jnp.asarray(ids + [0] * 40, jnp.int32)[t]
    return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1)[:, 0]


def test_a_run_with_a_tool(tmp_path, workers, sandboxed):
    file = settings(tmp_path / "run.yaml")
    with mock.patch.object(pauses, "draw", scripted):
        run(file, tmp_path / "run", workers)
    lines = read_metrics(tmp_path / "run" / "rl" / "metrics.jsonl")
    assert len(lines) == 2
    for line in lines:
        assert line["tools/calls"] == 1 and line["tools/failed"] == line["tools/cut"] == 0
        assert line["tools/output_tokens"] == len(HEARD)
        assert line["completions/mean_length"] == len(SAID + ANSWER) + 1, "|o| is what the policy chose"
        assert line["logprob_gap/max"] < 1e-4, "the trainer sees what the sampler saw, the output included"
        assert line["completions/clipped_ratio"] == 0
    assert lines[1]["compiles"] == lines[0]["compiles"]
    (first, *_) = map(json.loads, (tmp_path / "run/rl/rollouts/step_000001.jsonl").read_text().splitlines())
    completion = first["completions"][0]
    assert completion["text"] == SAID + HEARD + ANSWER and completion["extracted"] == "3"
    told = [token for token, own in zip(completion["tokens"], completion["logprobs"], strict=True) if own is None]
    assert "".join(told) == HEARD
    record = json.loads((tmp_path / "run" / "environment.json").read_text())["tools"]["rl"]
    assert record["backend"] in ("bubblewrap", "namespaces")
    assert len(record["attacks"]) > 50 and set(record["attacks"].values()) == {"contained"}
    page = Path(write_report(tmp_path / "run")).read_text()
    assert f"{record['backend']}, {len(record['attacks'])} attacks and controls passed" in page
    assert '"tools/calls"' in page and "Programs" in page


def test_the_programs_of_all_rounds_are_told_of(tmp_path, workers, monkeypatch):
    """Every group is dead, so that each step samples a further batch, whose programs all fail."""
    asked = []

    def ask(program, earlier):
        asked.append(program)
        answer = Future()
        answer.set_result(ToolResult("ok" if (len(asked) - 1) % 32 < 16 else "error", "3"))
        return answer

    monkeypatch.setattr(pauses, "draw", scripted)
    monkeypatch.setattr(python, "build", lambda c: contextlib.nullcontext(SimpleNamespace(record={})))
    monkeypatch.setattr(python, "asking", lambda built, c: ask)
    file = settings(tmp_path / "run.yaml", dead_groups="refill", refill_rounds=1)
    run(file, tmp_path / "run", workers)
    lines = metrics(tmp_path / "run", "rl")
    assert len(lines) == 2 and len(asked) == 2 * 32
    for line in lines:
        assert line["refill/rounds"] == 1 and line["tools/calls"] == 1 and line["tools/failed"] == 0.5
    counts = ledger(tmp_path / "run")["stages"]["rl"]["counts"]
    assert counts["completions"] == 2 * 32 and counts["tool_tokens"] == 2 * 32 * len(HEARD)
    assert counts["generated_tokens"] == 2 * 32 * (len(SAID + ANSWER) + 1)


def varied(logits, keys, t, distribution):
    """As `scripted`, with an answer that is right or wrong by the row's noise."""
    right, _ = scripted(logits, keys, t, distribution)
    wrong = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)
    token = jnp.where((t == len(SAID + HEARD)) & wrong, right - 1, right)
    return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], 1)[:, 0]


TOOL = {"kind": "python", "max_output_tokens": 4}
MEASURED = {**EVALUATION, "source": {**SOURCE, "split": "test", "size": 8}, "tools": TOOL, "num_samples": 1, "k": [1]}


@pytest.mark.parametrize(
    ("call", "saved", "draw", "rl", "evaluation"),
    [
        pytest.param(3, [], varied, {}, None, id="first", marks=pytest.mark.slow),
        pytest.param(19, [1], varied, {}, None, id="next"),
        pytest.param(
            *(35, [1], scripted, {"dead_groups": "refill", "refill_rounds": 1}, None),
            id="refill",
            marks=pytest.mark.slow,
        ),
        pytest.param(35, [1], varied, {"eval_steps": 1}, MEASURED, id="evaluation"),
    ],
)
def test_a_stop_while_programs_run(call, saved, draw, rl, evaluation, tmp_path, workers, monkeypatch):
    """Their rollout is given up, however long they take; the last finished step is saved, and the rest made again."""
    asked = []

    def ask(program, earlier):
        asked.append(program)
        answer = Future()
        if len(asked) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            answer.set_result(ToolResult("ok", "3"))
        return answer

    monkeypatch.setattr(pauses, "draw", draw)
    monkeypatch.setattr(python, "build", lambda c: contextlib.nullcontext(SimpleNamespace(record={})))
    monkeypatch.setattr(python, "asking", lambda built, c: ask)
    if evaluation:
        evaluation = {**evaluation, "sampling": {"max_completion_length": 40}}
    file = settings(tmp_path / "run.yaml", evaluation=evaluation, rollout_steps=1, **rl)
    with pytest.raises(Interrupted) as stopped:
        run(file, tmp_path / "run", workers, "--only", "rl")
    assert stopped.value.exit_code == 143
    assert (steps(tmp_path / "run", "rl") if saved else []) == saved
    said = f"after step {saved[-1]}" if saved else "while programs of completions ran"
    assert said in str(stopped.value)
    for name in ("run", "unbroken"):
        run(file, tmp_path / name, workers, "--only", "rl")
    assert_equal_leaves(tmp_path / "run", tmp_path / "unbroken", "rl")
    ours, theirs = (
        [{k: v for k, v in line.items() if k[:6] != "tools/"} for line in metrics(tmp_path / n, "rl")]
        for n in ("run", "unbroken")
    )
    assert ours == theirs
    assert rollouts(tmp_path / "run") == rollouts(tmp_path / "unbroken")


def test_without_a_sandbox_a_run_is_refused(tmp_path, workers):
    """Before anything is computed, with the way out; no run goes on without one."""
    file = settings(tmp_path / "run.yaml", tools={"kind": "python", "sandbox": "bubblewrap"})
    with mock.patch("shutil.which", return_value=None), pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        run(file, tmp_path / "run", workers)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_tools_of_sections(tmp_path):
    """Equal settings share a tool; what is not wanted is not started."""
    started = []

    class Built:
        def __init__(self, c):
            self.c, self.record = c, {"backend": c.sandbox}

        def __enter__(self):
            started.append(self.c)
            return self

        def __exit__(self, *_):
            started.remove(self.c)

    flags = ["--rl.tools.kind", "python", "--evaluation.tools.kind", "python", "--evaluation.tools.sandbox", "auto"]
    config = load([str(ROOT / "configs" / "tiny_tools.yaml"), *flags]).config
    other = load([str(ROOT / "configs" / "tiny_tools.yaml"), "--evaluation.tools.workers", "3"]).config
    with mock.patch("grpo_jax.tools.python.build", Built):
        for c, wanted, count in [(config, ("rl", "evaluation"), 1), (other, ("rl", "evaluation"), 2)]:
            with pipeline.open_tools(c, wanted) as (tools, records):
                assert set(tools) == set(records) == {"rl", "evaluation"} and len(started) == count
                assert tools["rl"].max_rounds == 2
            assert not started
        for wanted, sections in [(("sft",), set()), (("rl",), {"rl"}), (("evaluation",), {"evaluation"})]:
            with pipeline.open_tools(config, wanted) as (tools, _):
                assert set(tools) == sections


@pytest.mark.slow
def test_a_policy_learns_to_call_the_tool(tmp_path, workers, sandboxed):
    """configs/tiny_tools.yaml: the sums are too long for its head, and programs are right."""
    file = str(ROOT / "configs" / "tiny_tools.yaml")
    command = load([file, "--output_dir", str(tmp_path / "run"), "--evaluation.source.size", "64"])
    with mock.patch.object(pipeline, "make_mesh", on_few_devices):
        pipeline.run(command, workers)
    lines = read_metrics(tmp_path / "run" / "rl" / "metrics.jsonl")
    calls, rewards = ([line[name] for line in lines] for name in ("tools/calls", "reward"))
    assert sum(calls[:2]) / 2 < 0.7 and sum(calls[-5:]) / 5 > 0.9
    assert sum(rewards[-5:]) / 5 > sum(rewards[:2]) / 2 + 0.2
    before, after = (
        json.loads((tmp_path / "run" / "evaluation" / f"{name}.json").read_text())["metrics"]["mean@4"]["value"]
        for name in ("before", "after")
    )
    assert after > before + 0.2 and after > 0.7
