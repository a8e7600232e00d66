"""Fused steps: the tokens, numbers and events of the loop that takes a step part by part."""

import itertools
import json
import os
import signal
from unittest import mock

import numpy as np
import pytest
from small_runs import (
    EVALUATION,
    assert_equal_runs,
    begin_with_sft_of,
    checkpoint,
    launched,
    metrics,
    quick_compilation,
    rollouts,
    run,
    steps,
    write_settings,
)

from grpo_jax.configure import load
from grpo_jax.reporting.metrics import read_metrics
from grpo_jax.stages import fused
from grpo_jax.stages.estimate import estimated
from grpo_jax.stages.footprints import open_plant, phases
from grpo_jax.stages.plan import open_shape
from grpo_jax.training.interrupt import Interrupted
from tests.tiny import mesh_of

REWARDS = [
    {"kind": "exact"},
    {"kind": "exact", "after": ["+", "-"], "weight": 0.5},
    {"kind": "length", "buffer": 2, "weight": 0.3},
    {"kind": "tests.stages.rewards_for_tests", "weight": 0.02, "unjudged": 12},
]
# An sft from which some completions are right; two outer iterations of three steps, two updates a step.
SFT = {"max_steps": 60}
RL = {"rewards": REWARDS, "iterations": 2, "max_steps": 3, "num_iterations": 2, "microbatches": 2}
CHUNK = ("--rl.fused_steps", "2")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_settings(tmp_path_factory.mktemp("fused") / "run.yaml", sft=SFT, rl=RL)


@pytest.fixture(scope="module")
def stepwise(file, workers):
    """A run of the loop, whose `exact` is the host's form."""
    run(file, file.parent / "stepwise", workers)
    return file.parent / "stepwise"


@pytest.fixture(scope="module")
def unbroken(file, stepwise, workers):
    """A run of chunks of two steps, and one, by programs that are remembered."""
    memory = []
    make = fused.fused_program

    def remembered(*arguments, **more):
        program = make(*arguments, **more)

        def call(*arguments, **more):
            if not memory:
                memory.append(program.lower(*arguments, **more).compile().memory_analysis())
            return program(*arguments, **more)

        call._cache_size = program._cache_size
        return call

    begin_with_sft_of(stepwise, file.parent / "fused")
    with mock.patch.object(fused, "fused_program", remembered):
        run(file, file.parent / "fused", workers, *CHUNK)
    return file.parent / "fused", memory[0]


def completions(directory) -> list[dict]:
    lines = [line for text in rollouts(directory).values() for line in text.splitlines()]
    return [completion for line in lines for completion in json.loads(line)["completions"]]


def assert_same(got, expected) -> None:
    """Tokens and rewards are equal, so both forms of `exact` agree; other numbers up to rounding."""
    ours, theirs = completions(got), completions(expected)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a["tokens"], a["text"], a["finished"]) == (b["tokens"], b["text"], b["finished"])
        assert a["rewards"] == b["rewards"] and a["reward"] == b["reward"]
        for key in ("advantage", "logprobs", "ref_logprobs"):
            np.testing.assert_allclose(a[key], b[key], atol=2e-5)
    for line, other in zip(metrics(got, "rl"), metrics(expected, "rl"), strict=True):
        assert line.keys() == other.keys() - COUNTS
        for key in line:
            np.testing.assert_allclose(line[key], other[key], rtol=1e-4, atol=2e-5, err_msg=f"{other['step']} {key}")
    ours, theirs = checkpoint(got, "rl"), checkpoint(expected, "rl")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)


# Of what a host reward may do besides judging; the form of arrays does none of it.
WHAT = ("ungradable", "timeout", "error", "nonfinite", "fallback")
COUNTS = {f"{what}/{name}" for what in WHAT for name in ("exact", "exact_2")}


def test_the_same_tokens_and_numbers(stepwise, unbroken):
    directory, _ = unbroken
    assert_same(directory, stepwise)
    right = [completion["rewards"]["exact"] for completion in completions(directory)]
    assert set(right) == {0.0, 1.0}
    lines = read_metrics(directory / "rl" / "metrics.jsonl")
    assert any(0 < line["frac_unjudged"] < 1 for line in lines)
    assert {line["compiles"] for line in lines} == {2}, "the chunk, of any length, and the reference's copy"
    assert all(line["time/step_s"] > 0 for line in lines)


def test_where_a_chunk_ends_changes_no_bit(file, unbroken, workers, tmp_path):
    """A signal while a chunk runs, after it a checkpoint at each step: chunks of one."""
    directory, _ = unbroken
    begin_with_sft_of(directory, tmp_path)
    prepare, calls = fused.prepare_batches, []

    def signalled(*arguments):
        calls.append(None)
        if len(calls) == 2:  # the second chunk is prepared while the first one runs
            os.kill(os.getpid(), signal.SIGTERM)
        return prepare(*arguments)

    with mock.patch.object(fused, "prepare_batches", signalled), pytest.raises(Interrupted, match="after step 2 of 6"):
        run(file, tmp_path, workers, *CHUNK)
    assert steps(tmp_path, "rl") == [2] and len(metrics(tmp_path, "rl")) == 2
    run(file, tmp_path, workers, *CHUNK, "--rl.save_steps", "1")
    assert_equal_runs(tmp_path, directory)


@pytest.mark.slow
def test_on_four_devices(file, stepwise, workers, tmp_path):
    """From the weights of the same sft, whose rounding would be another."""
    begin_with_sft_of(stepwise, tmp_path)
    run(file, tmp_path, workers, *CHUNK, "--mesh.fsdp", "2", "--mesh.tensor", "2")
    assert_same(tmp_path, stepwise)


@pytest.mark.slow
def test_adapters(stepwise, workers, tmp_path):
    """The frozen base is an argument of the program, beside the state that is donated."""
    lora = {"rank": 4, "alpha": 8, "targets": ["[qv]_proj", "down_proj"]}
    model = {"architecture": None, "model_name_or_path": str(stepwise / "hf"), "lora": lora}
    file = write_settings(tmp_path / "run.yaml", model=model, sft=None, rl=RL)
    run(file, tmp_path / "stepwise", workers)
    run(file, tmp_path / "fused", workers, *CHUNK)
    assert_same(tmp_path / "fused", tmp_path / "stepwise")


@pytest.mark.slow
def test_evaluations_between_chunks(file, workers, tmp_path):
    """The held-out numbers come after the same steps, of the same weights; no rollouts are kept."""
    rl = RL | {"iterations": 1, "max_steps": 4, "eval_steps": 4, "rollout_steps": 0}
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=rl, evaluation=EVALUATION)
    for name, flags in (("stepwise", ()), ("fused", CHUNK)):
        run(file, tmp_path / name, workers, "--only", "rl", *flags)
    both = (metrics(tmp_path / name, "rl") for name in ("fused", "stepwise"))
    ours, theirs = ([line for line in lines if "eval/greedy" in line] for lines in both)
    assert ours == theirs and [line["step"] for line in ours] == [4]
    assert not (tmp_path / "fused" / "rl" / "rollouts").exists()


def test_the_alarms(tmp_path, capsys):
    """Of each step, when its chunk is done: what may be kept is kept, and what was wrong is in the log."""
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=RL)
    flags = (str(file), *CHUNK, "--output_dir")
    code, message = launched([*flags, str(tmp_path / "gap"), "--rl.max_logprob_gap", "0"], capsys)
    assert code == 4 and "step 1: sampler and trainer differ by" in message
    assert steps(tmp_path / "gap", "rl") == [] and len(metrics(tmp_path / "gap", "rl")) == 2

    wild = ("--rl.optimizer.learning_rate", "1e30", "--rl.sampling.top_k", "5", "--rl.max_skipped_steps", "1")
    code, message = launched([*flags, str(tmp_path / "wild"), *wild], capsys)
    assert code == 4 and "step 1: 1 updates in a row had a gradient that is not finite" in message
    assert steps(tmp_path / "wild", "rl") == [2], "the chunk is finished, and its state sound"
    assert [line["skipped_updates"] for line in metrics(tmp_path / "wild", "rl")] == [0.5, 1.0]


def test_refused(tmp_path, capsys):
    for rewards, flags, words in (
        ([{"kind": "exact"}, {"kind": "accuracy"}], (), ("reward accuracy reads text", "set rl.fused_steps to 0")),
        ([{"kind": "exact"}], ("--rl.sampling.stop", "="), ("rl.sampling.stop is ['=']", "set rl.fused_steps to 0")),
    ):
        file = write_settings(tmp_path / "run.yaml", sft=None, rl={"rewards": rewards})
        flags = [str(file), "--output_dir", str(tmp_path / "run"), "--rl.fused_steps", "2", *flags]
        code, message = launched(flags, capsys)
        assert code == 2 and all(word in message for word in words), message
    file = write_settings(tmp_path / "run.yaml", rl=None, evaluation=EVALUATION | {"reward": {"kind": "exact"}})
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and "evaluation.reward: exact judges arrays" in message


def planned(file, *flags) -> dict:
    """The phases of rl by name, and what each program takes; compiled."""
    config = load([str(file), *flags, "--print_config"]).config
    with quick_compilation():
        found = phases(open_plant(config, open_shape(config, print), mesh_of()), ("rl",))
        return {phase.name: phase.compile().footprint(phase.beside) for phase in found if phase.compile}


def test_the_plan_is_of_the_program_that_runs(file, unbroken):
    _, memory = unbroken
    ((name, footprint),) = planned(file, *CHUNK).items()
    assert name == "rl: fused steps" and footprint.beside == 0
    assert footprint.arguments == memory.argument_size_in_bytes
    assert footprint.outputs == memory.output_size_in_bytes
    assert footprint.donated == memory.alias_size_in_bytes > 0
    assert footprint.temporaries == memory.temp_size_in_bytes


@pytest.mark.slow
def test_the_work_planned_is_that_of_a_step(file):
    """Two updates, and the sum of four rewards of 16 completions."""
    ((_, whole),), parts = planned(file, *CHUNK).items(), planned(file)
    assert len(parts) == 4
    assert whole.flops == sum(part.flops for part in parts.values()) + parts["rl: update"].flops + 2 * 4 * 16


def test_chunks(file):
    """They end at checkpoints, evaluations and outer iterations, wherever a run goes on, and have room for rollouts."""
    flags = ("max_steps", "12", "fused_steps", "5", "save_steps", "8", "eval_steps", "6", "rollout_steps", "3")
    flags = [f"--rl.{word}" if i % 2 == 0 else word for i, word in enumerate(flags)]
    c = load([str(file), *flags, "--print_config"]).config.rl
    ends = [0, 5, 6, 8, 12, 16, 18, 23, 24]
    assert fused.chunks(c, 0) == [range(a, b) for a, b in itertools.pairwise(ends)]
    assert fused.chunks(c, 20) == [range(20, 24)] and fused.chunks(c, 24) == []
    for start in range(24):
        assert all(len(fused.shown_steps(c, chunk)) <= fused.num_slots(c) for chunk in fused.chunks(c, start))
    assert fused.shown_steps(c, range(18, 24)) == [18, 21, 23]


def test_the_work_planned_has_that_of_the_sampler(file):
    """Keys and values are named, and what is guessed of the program is the larger of its parts, whichever it is."""

    def works(*flags):
        config = load([str(file), *flags, "--print_config"]).config
        plant = open_plant(config, open_shape(config, print), mesh_of())
        return plant, {phase.name: phase.work for phase in phases(plant, ("rl",)) if phase.work}

    for flags in ((), ("--rl.decode_rows", "4"), ("--rl.microbatches", "1", "--rl.head_chunk", "64")):
        plant, parts = works(*flags)
        _, whole = works(*flags, *CHUNK)
        fused_work, sampling, update = whole["rl: fused steps"], parts["rl: sampling"], parts["rl: update"]
        assert (fused_work.sampled, fused_work._replace(sampled=None)) == (sampling, update)
        assert fused_work.keys_and_values == sampling.keys_and_values == sampling.cache > 0
        guess = [estimated(plant, work) for work in (fused_work, sampling, update)]
        assert guess[0] == max(guess)
    _, few = works("--rl.decode_rows", "4", *CHUNK)
    assert few["rl: fused steps"].keys_and_values < fused_work.keys_and_values
