"""launch/evaluate.py on runs and model directories: the numbers of training's own evaluation, whatever stops it."""

import json
import os
import signal
from unittest import mock

import pytest
from small_runs import EVALUATION, on_few_devices, quick_compilation, run, write_settings

from grpo_jax.stages import evaluation, pipeline
from grpo_jax.stages.evaluation_store import Store
from launch.evaluate import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory, workers):
    """A finished run with evaluations before and after."""
    folder = tmp_path_factory.mktemp("trained")
    file = write_settings(folder / "run.yaml", rl={"max_steps": 2}, evaluation={**EVALUATION, "batch_prompts": 4})
    run(file, folder / "run", workers)
    return folder / "run"


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    rows = [{"problem": f"{a}+{b}=", "answer": str(a + b)} for a, b in ((11, 2), (14, 3), (25, 4), (30, 5), (41, 7))]
    path = tmp_path_factory.mktemp("sums") / "aime.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(*words, code=0):
    with quick_compilation(), mock.patch.object(pipeline, "make_mesh", on_few_devices):
        assert main(list(map(str, words))) == code


def result(out, task):
    return json.loads((out / task / "result.json").read_text())


def records(out):
    return {str(path.relative_to(out)): path.read_text() for path in sorted(out.glob("*/*.jsonl"))}


def test_a_run_gives_the_numbers_of_its_own_evaluation(trained, tmp_path, capfd):
    """The same problems, noise and rules: the newest checkpoint is "after"; the one of sft is "before"."""
    for name, more in (("after", ()), ("before", ("--stage", "sft"))):
        evaluated(trained, "--out", tmp_path / name, *more)
        found, own = (
            result(tmp_path / name, "held_out"),
            json.loads((trained / "evaluation" / f"{name}.json").read_text()),
        )
        assert found["metrics"] == own["metrics"] and found["num_problems"] == own["num_problems"]
        assert found["mean_length"] == own["mean_length"]
        rows = [
            json.loads(line) for line in (trained / "evaluation" / f"{name}.samples.jsonl").read_text().splitlines()
        ]
        lines = [json.loads(line) for line in (tmp_path / name / "held_out" / "samples.jsonl").read_text().splitlines()]
        texts = [sample["text"] for row in rows for sample in row["samples"]]
        assert [line["text"] for line in lines] == texts
    evaluated(trained, "--out", tmp_path / "compared", "--against", tmp_path / "before")
    assert set(result(tmp_path / "compared", "held_out")["against"]["paired"]) == set(found["metrics"])
    assert "difference" in capfd.readouterr().out


def test_a_run_and_its_export_are_one_model(trained, sums, tmp_path):
    words = ("--benchmarks", "aime", "--data", sums, "--samples", 4, "--max-tokens", 4, "--temperature", 1)
    evaluated(trained, *words, "--out", tmp_path / "run")
    evaluated(trained / "hf", *words, "--out", tmp_path / "hf")
    assert records(tmp_path / "run") == records(tmp_path / "hf")
    assert result(tmp_path / "run", "aime")["metrics"].keys() >= {"greedy", "mean@4", "pass@4", "maj@4"}


@pytest.mark.parametrize("way", ["killed", "asked to stop"])
def test_broken_off_and_gone_on(way, trained, sums, tmp_path, capfd):
    """After some batches; the same command then has the unbroken one's records, no sample twice, and loads no more."""
    words = (trained, "--benchmarks", "aime,held_out", "--data", sums, "--samples", 4, "--max-tokens", 4)
    words = (*words, "--temperature", 1, "--evaluation.batch_prompts", 2)
    evaluated(*words, "--out", tmp_path / "whole")
    keep, calls = Store.keep, []

    def broken(self, made):
        keep(self, made)
        calls.append(made)
        if len(calls) == 5:  # the greedy batches of the first task are done
            if way == "killed":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Store, "keep", broken):
        evaluated(*words, "--out", tmp_path / "out", code=1 if way == "killed" else 143)
    before, whole = records(tmp_path / "out"), records(tmp_path / "whole")
    assert 0 < sum(map(len, before.values())) < sum(map(len, whole.values()))
    assert all(whole[name].startswith(text) for name, text in before.items())
    evaluated(*words, "--out", tmp_path / "out")
    assert records(tmp_path / "out") == whole
    for task in ("aime", "held_out"):
        assert result(tmp_path / "out", task) == result(tmp_path / "whole", task)
    with mock.patch.object(evaluation, "draw", side_effect=AssertionError("everything is known")):
        evaluated(*words, "--out", tmp_path / "out")
    capfd.readouterr()


def test_a_prompt_that_does_not_fit_is_wrong(trained, sums, tmp_path):
    """The limit has no room for it: it is asked for, and counted apart; with a higher one the same command asks it."""
    long = tmp_path / "aime.jsonl"
    long.write_text(sums.read_text() + json.dumps({"problem": "1+" * 20 + "1=", "answer": "21"}) + "\n")
    words = ("--benchmarks", "aime", "--data", long, "--samples", 2, "--max-tokens", 4)
    evaluated(trained, *words, "--out", tmp_path / "out", "--prompt.max_prompt_length", 8)
    found = result(tmp_path / "out", "aime")
    assert found["num_problems"] == 6 and found["counts"]["greedy"]["prompt too long"] == 1
    assert found["counts"]["sampled"] == found["counts"]["sampled"] | {"samples": 12, "prompt too long": 2}
    before = records(tmp_path / "out")
    evaluated(trained, *words, "--out", tmp_path / "out", "--prompt.max_prompt_length", 48)
    assert result(tmp_path / "out", "aime")["counts"]["sampled"]["prompt too long"] == 0
    after = records(tmp_path / "out")
    assert all(after[name].startswith(text) for name, text in before.items())
    evaluated(trained, *words, "--out", tmp_path / "out", "--prompt.max_prompt_length", 48)
    assert records(tmp_path / "out") == after


def test_records_of_another_dtype_are_not_gone_on_with(trained, sums, tmp_path, capfd):
    words = (trained, "--benchmarks", "aime", "--data", sums, "--samples", 2, "--max-tokens", 4, "--limit", 1)
    evaluated(*words, "--out", tmp_path / "out")
    evaluated(*words, "--out", tmp_path / "out", "--model.dtype", "bfloat16", code=2)
    assert "model.dtype: 'float32' -> 'bfloat16'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--step", "7"), "there is no step 7"),
        (("--step", "abc"), "argument --step: 'abc' is no number of a step; write one, or best"),
        (("--k", "0"), "argument --k: '0' is no whole number from 1"),
        (("--k", "1,x"), "argument --k: 'x' is no whole number from 1"),
        (("--samples", "²"), "argument --samples: '²' is no whole number from 1"),
        (("--stage", "ppo"), "--stage ppo: there is no such stage"),
        (("--benchmarks", "aime", "--data", "no_such"), "no_such does not exist"),
        (("--benchmarks", "aime", "--style", "few_shot"), "there is no such prompt of this benchmark"),
        (("--benchmarks", "aime", "--style", "program"), "there is no such prompt of this benchmark"),
        (("--evaluation.batch_prompts", "x"), "batch_prompts"),
        (("--max-tokens", "100000"), "positions of the model"),
    ],
)
def test_refused_before_weights_are_read(more, words, trained, sums, tmp_path, capfd):
    if "--data" not in more:
        more = (*more, "--data", sums)
    with mock.patch("grpo_jax.stages.evaluate_command.load_policy", side_effect=AssertionError("too late")):
        evaluated(trained, "--out", tmp_path / "out", *more, code=2)
    said = capfd.readouterr().err
    assert words in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("style", ["zero_shot", "few_shot", "tool", "program"])
def test_every_style_on_a_model_directory(style, tmp_path, shared):
    """The paper's prompts, tool and programs included, through tokenizer, sampler, sandbox and grader."""
    from tests.make_random_model import main as make

    assert make([str(tmp_path / "hf")]) in (None, 0)
    data = shared / "data"
    words = ("--benchmarks", "gsm8k", "--data", data, "--limit", 3, "--samples", 2, "--max-tokens", 16)
    words = (*words, "--style", style, "--shots", data / "prompts" / "deepseek_math_prompts.json")
    evaluated(tmp_path / "hf", *words, "--out", tmp_path / "out", "--evaluation.batch_prompts", 2)
    found = result(tmp_path / "out", "gsm8k")
    assert found["num_problems"] == 3 and found["counts"]["sampled"]["samples"] == 6
    assert found["counts"]["sampled"]["prompt too long"] == 0 and "official/greedy" in found["metrics"]
    settings = json.loads((tmp_path / "out" / "gsm8k" / "settings.json").read_text())
    assert settings["benchmark"]["style"] == style
    assert (tmp_path / "out" / "tools.json").is_file() == (style in ("tool", "program"))
