"""Devices and host at the same time: the same numbers in parts, one step off policy, and who did what when."""

import json
import time
from unittest import mock

import jax
import numpy as np
import pytest
from small_runs import (
    assert_equal_leaves,
    checkpoint,
    launched,
    metrics,
    rollouts,
    run,
    run_interrupted,
    steps,
    write_settings,
)
from test_interruption import signalled
from test_kill import kill_and_finish

from grpo_jax.reporting.report import write_report
from grpo_jax.stages import exploration, rl
from grpo_jax.training.interrupt import Interrupted

REWARDS = [
    {"kind": "accuracy"},
    {"kind": "tests.stages.rewards_for_tests"},
    {"kind": "python", "path": "tests.stages.trl_rewards:sleeps"},
]
OFF = {"steps_off_policy": 1, "importance_cap": 2.0, "iterations": 2, "max_steps": 2}


def timeline(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "rl" / "timeline.jsonl").read_text().splitlines()]


def spans(line, where: str, what: str, step: int | None = None) -> list[dict]:
    step = line["step"] if step is None else step
    return [s for s in line["spans"] if (s["where"], s["what"], s["step"]) == (where, what, step)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, workers):
    """A run whose steps are sampled at once, two updates each."""
    folder = tmp_path_factory.mktemp("whole")
    file = write_settings(folder / "run.yaml", sft=None, rl={"rewards": REWARDS, "max_steps": 3, "num_iterations": 2})
    run(file, folder / "run", workers)
    return file, folder / "run"


def test_parts_change_nothing_and_may_change(whole, workers, tmp_path):
    """One part for step 1, two for step 2, four for step 3: weights, metrics and rollouts bit for bit."""
    file, expected = whole
    run_interrupted(file, tmp_path, workers, "rl", 1)
    run_interrupted(file, tmp_path, workers, "rl", 2, "--rl.sample_parts", "2")
    run(file, tmp_path, workers, "--rl.sample_parts", "4")
    assert_equal_leaves(tmp_path, expected, "rl")
    assert metrics(tmp_path, "rl") == metrics(expected, "rl") and rollouts(tmp_path) == rollouts(expected)


@pytest.mark.parametrize(
    "stop",
    [pytest.param((), marks=pytest.mark.slow), ("--rl.sampling.stop", "1", "+")],
    ids=["plain", "stop strings"],
)
def test_parts_on_a_mesh(workers, tmp_path, stop):
    """Four devices: each keeps its own rows, whether they are joined there or have been to the host."""
    file = write_settings(
        tmp_path / "run.yaml", sft=None, rl={"max_steps": 2, "prompts_per_step": 8, "num_generations": 2}
    )
    mesh = ("--mesh.data", "2", "--mesh.fsdp", "2")
    run(file, tmp_path / "one", workers, *mesh, *stop)
    run(file, tmp_path / "two", workers, *mesh, *stop, "--rl.sample_parts", "2")
    ours, theirs = (
        [c for text in rollouts(tmp_path / name).values() for line in text.splitlines() for c in completions(line)]
        for name in ("two", "one")
    )
    assert ours == theirs and (any(text[-1:] in "1+" for text, *_ in ours) if stop else True)
    for line, other in zip(metrics(tmp_path / "two", "rl"), metrics(tmp_path / "one", "rl"), strict=True):
        assert {k: v for k, v in line.items() if k != "nonfinite"} == pytest.approx(other, abs=1e-5)


def completions(line: str) -> list[tuple]:
    return [(c["text"], c["tokens"], c["finished"], c["reward"]) for c in json.loads(line)["completions"]]


def test_a_part_is_judged_while_the_next_is_sampled(workers, tmp_path):
    """By the spans alone: the graders begin with part 1 before the device ends part 2, and the passes of the device
    run before the last verdict."""
    rewards = [{"kind": "python", "path": "tests.stages.trl_rewards:sleeps_long"}]
    file = write_settings(tmp_path / "run.yaml", sft=None, rl={"rewards": rewards, "max_steps": 2})
    slow = slow_sampling(0.5)
    with mock.patch.object(rl, "rl_programs", slow):
        run(file, tmp_path / "run", workers, "--rl.sample_parts", "2")
    line = timeline(tmp_path / "run")[-1]
    assert line["step"] == 2
    (first, second), judged = spans(line, "device", "sample"), spans(line, "graders", "judge")
    middles = [(span["start"] + span["end"]) / 2 for span in (first, second)]
    assert middles[0] < judged[0]["start"] < second["end"] and middles[1] < judged[1]["start"]
    (reference,) = spans(line, "device", "reference")
    assert reference["start"] < judged[1]["end"]
    assert not at_once(tmp_path / "run"), "on policy the next step waits for the update"


def slow_sampling(seconds: float):
    """The programs of the stage, in which a part takes so long on the device: there, the host is asked to sleep."""
    make = rl.rl_programs

    def nap(*arrays):
        time.sleep(seconds)
        return arrays

    @jax.jit
    def later(tree):
        leaves, structure = jax.tree.flatten(tree)
        same = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
        return structure.unflatten(jax.pure_callback(nap, same, *leaves))

    def programs_of(*args):
        programs = make(*args)

        def sample(*sampled):
            return later(programs.sample(*sampled))

        sample._cache_size = lambda: 0
        return programs._replace(sample=sample)

    return programs_of


@pytest.fixture(scope="module")
def stale(tmp_path_factory, workers):
    """A run one step off policy, over the border of two outer iterations."""
    folder = tmp_path_factory.mktemp("stale")
    file = write_settings(folder / "run.yaml", sft=None, rl=OFF | {"sample_parts": 2})
    run(file, folder / "run", workers)
    return file, folder / "run"


def test_one_step_off_policy(stale, workers, tmp_path):
    """Step 1 is as on policy; step 2 is sampled with the weights of step 1, and its ratios are those by hand."""
    _, directory = stale
    on = write_settings(tmp_path / "on.yaml", sft=None, rl={"iterations": 2, "max_steps": 2})
    run(on, tmp_path / "on", workers)
    ours, theirs = metrics(directory, "rl"), metrics(tmp_path / "on", "rl")
    assert ours[0]["importance/mean"] == pytest.approx(1, abs=1e-5)
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-4)
    assert rollouts(directory)["step_000001.jsonl"] == rollouts(tmp_path / "on")["step_000001.jsonl"]
    for line in ours[1:]:
        assert line["importance/max"] > 1.005 and 0.7 < line["importance/mean"] < 1.3
    assert all(line["logprob_gap/max"] < 1e-5 for line in ours), "with the weights that were sampled from"


def test_ratios_by_hand(stale, workers, tmp_path):
    """The sampler's log-probabilities are in the rollouts; the trainer's are computed anew from the checkpoint."""
    file, _ = stale
    ratios, make = [], rl.rl_programs

    def watched(*args):
        programs = make(*args)

        def update(state, experience, **named):
            rollout = exploration.Rollout(
                experience.prompts,
                experience.completions,
                experience.completion_mask,
                experience.behaviour_logprobs,
                experience.completion_mask[:, 0],
            )
            now = np.asarray(programs.logprobs(state.params, rollout))
            mask = np.asarray(experience.completion_mask)
            ratios.append(np.exp(now - np.asarray(experience.behaviour_logprobs))[mask])
            return programs.update(state, experience, **named)

        update._cache_size = lambda: 0
        return programs._replace(update=update)

    with mock.patch.object(rl, "rl_programs", watched):
        run(file, tmp_path / "run", workers, "--rl.importance_cap", "1.05")
    lines = metrics(tmp_path / "run", "rl")
    assert len(ratios) == len(lines) == 4
    for ratio, line in zip(ratios, lines, strict=True):
        assert line["importance/mean"] == pytest.approx(ratio.mean(), rel=1e-4)
        assert line["importance/max"] == pytest.approx(ratio.max(), rel=1e-4)
        assert line["importance/truncated"] == pytest.approx((ratio > 1.05).mean(), abs=1e-6)
    assert lines[-1]["importance/truncated"] > 0


def test_the_devices_sample_while_the_host_judges(workers, tmp_path):
    """Rewards that take longer than sampling: completions are judged while those of the next step are drawn."""
    rewards = [{"kind": "python", "path": "tests.stages.trl_rewards:sleeps_long"}]
    settings = OFF | {"rewards": rewards, "iterations": 1, "max_steps": 6}
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=settings)
    with mock.patch.object(rl, "rl_programs", slow_sampling(0.2)):
        run(file, tmp_path / "run", workers)
    assert at_once(tmp_path / "run")


def at_once(directory) -> list[int]:
    """The steps whose completions were judged while those of the next step were sampled."""
    return [
        judged["step"]
        for line in timeline(directory)
        for judged in line["spans"]
        for sampled in spans(line, "device", "sample", judged["step"] + 1)
        if judged["what"] == "judge" and max(judged["start"], sampled["start"]) < min(judged["end"], sampled["end"])
    ]


def test_it_learns(workers, tmp_path):
    settings = OFF | {"rewards": REWARDS[1:2], "iterations": 1, "max_steps": 30, "rollout_steps": 0}
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=settings)
    run(file, tmp_path / "run", workers)
    rewards = [line["reward"] for line in metrics(tmp_path / "run", "rl")]
    assert np.mean(rewards[-5:]) > 1.25 * np.mean(rewards[:5]), rewards


@pytest.mark.slow
def test_killed_one_step_off_policy(tmp_path):
    """kill -9 at random moments; whatever was saved goes on to the same end."""
    kill_and_finish(write_settings(tmp_path / "run.yaml", rl=OFF), tmp_path, kills=4)


@pytest.mark.parametrize("parts", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_one_step_off_policy_resumes_exactly(stale, workers, tmp_path, parts):
    """Between steps, within a step, at the border of outer iterations where the reference changes, and at the end."""
    file, unbroken = stale
    stopped = run_interrupted(file, tmp_path, workers, "rl", 1, "--rl.sample_parts", parts)
    assert "stopped after step 1 of 4" in str(stopped)
    with signalled(exploration, "judge", call=2), pytest.raises(Interrupted, match="stopped after step 2 of 4"):
        run(file, tmp_path, workers)
    assert steps(tmp_path, "rl") == [1, 2]
    between = checkpoint(tmp_path, "rl", 2)
    run(file, tmp_path, workers, "--rl.sample_parts", parts)
    (tmp_path / "rl" / "done.json").unlink()
    run(file, tmp_path, workers)
    leaves = assert_equal_leaves(tmp_path, unbroken, "rl")
    assert not any("ahead" in leaf for leaf in leaves), "after the last step nothing is sampled"
    assert any("ahead" in leaf for leaf in between)
    assert metrics(tmp_path, "rl") == metrics(unbroken, "rl") and rollouts(tmp_path) == rollouts(unbroken)


def test_the_weights_that_are_sampled_from_are_not_overwritten(stale, workers, tmp_path):
    """The update is given the memory of weights that the sampler may still read: with copies, the run is the same."""
    file, unbroken = stale
    draw = exploration.draw

    def with_copies(stage, state, reference, step):
        return draw(stage, jax.block_until_ready(jax.tree.map(lambda x: x.copy(), state)), reference, step)

    with mock.patch.object(rl, "draw", with_copies):
        run(file, tmp_path, workers)
    assert_equal_leaves(tmp_path, unbroken, "rl")
    assert rollouts(tmp_path) == rollouts(unbroken)


def test_the_alarm_still_sees_a_sampler_that_lags_further_behind(tmp_path, capsys):
    make = rl.rl_programs

    def stale(*args):
        programs, kept = make(*args), []

        def sample(params, *rest):
            kept.append(jax.tree.map(lambda p: p.copy(), params))
            return programs.sample(kept[0], *rest)

        sample._cache_size = lambda: 0
        return programs._replace(sample=sample)

    settings = OFF | {"optimizer": {"learning_rate": 0.1}}
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=settings)
    with mock.patch.object(rl, "rl_programs", stale):
        code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 4 and "step 3: sampler and trainer differ by" in message


def test_the_report_shows_who_waited(stale):
    _, directory = stale
    lines = timeline(directory)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {"device", "loop"} <= {s["where"] for s in line["spans"]} <= {"device", "loop", "graders"}
        assert all(0 <= s["start"] <= s["end"] <= line["seconds"] for s in line["spans"])
    for what in ("reference", "update"):  # in the line of its step, or where the device got to it
        assert {s["step"] for line in lines for s in spans(line, "device", what)} == {1, 2, 3, 4}
    for measured in metrics_with_times(directory):
        assert measured["time/device_idle_s"] >= 0 and measured["time/host_idle_s"] >= 0
    page = write_report(directory).read_text("utf-8")
    assert 'id="timeline"' in page and "waits for the host" in page and page.count('class="span update"') >= 4


def metrics_with_times(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "rl" / "metrics.jsonl").read_text().splitlines()]
