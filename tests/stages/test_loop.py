"""The RL loop with rewards that misbehave, a sampler that lags behind, evaluations between steps, and stop strings."""

import contextlib
import json
from unittest import mock

import jax
import pytest
from small_runs import (
    EVALUATION,
    assert_equal_leaves,
    launched,
    metrics,
    rollouts,
    run,
    run_interrupted,
    steps,
    write_settings,
)
from trl_rewards import is_seven

from grpo_jax.reporting.metrics import MetricsWriter, read_metrics
from grpo_jax.stages import rl


def python(name: str, **settings) -> dict:
    return {"kind": "python", "path": f"tests.stages.trl_rewards:{name}", **settings}


BAD = ("raises_on_seven", "nothing_on_seven", "hangs_on_seven")


def groups(directory, step: int) -> list[dict]:
    return [json.loads(line) for line in rollouts(directory)[f"step_{step:06d}.jsonl"].splitlines()]


def test_rewards_that_fail_on_some_items_cost_those_items(tmp_path, workers, capfd):
    """A good function, one that raises, one that returns None and one that hangs, side by side."""
    rewards = [
        python("digits"),
        python("raises_on_seven"),
        python("nothing_on_seven"),
        python("hangs_on_seven", time_limit=6),
    ]
    file = write_settings(tmp_path / "run.yaml", sft=None, rl={"rewards": rewards, "max_steps": 1})
    run(file, tmp_path / "run", workers)
    said = capfd.readouterr().out
    assert said.count("a reward function failed, its items are left out") >= 1 and "cannot judge" in said
    (line,) = metrics(tmp_path / "run", "rl")
    step = groups(tmp_path / "run", 1)
    assert [is_seven(group["question"]) for group in step].count(True) == 1
    assert line["error/raises_on_seven"] == line["timeout/hangs_on_seven"] == 4
    assert [line[f"ungradable/{name}"] for name in ("digits", *BAD)] == [0, 4, 4, 4]
    assert line["frac_unjudged"] == 0
    for group in step:
        for completion in group["completions"]:
            parts = completion["rewards"]
            assert all((parts[name] is None) == is_seven(group["question"]) for name in BAD)
            known = [value for value in parts.values() if value is not None]
            assert completion["reward"] == pytest.approx(sum(known), abs=1e-4)


def test_what_nobody_can_judge_teaches_nothing(tmp_path, workers):
    file = write_settings(tmp_path / "run.yaml", sft=None, rl={"rewards": [python("nothing_on_seven")], "max_steps": 1})
    run(file, tmp_path / "run", workers)
    (line,) = metrics(tmp_path / "run", "rl")
    step = groups(tmp_path / "run", 1)
    assert line["frac_unjudged"] == sum(is_seven(group["question"]) for group in step) / 4 > 0
    for group in step:
        if is_seven(group["question"]):
            assert {(c["reward"], c["advantage"]) for c in group["completions"]} == {(None, 0.0)}
    assert line["grad_norm"] > 0 and "nonfinite" not in line


def test_a_step_that_nobody_can_judge_is_a_step_without_gradient(tmp_path, workers, recwarn):
    settings = {"rewards": [python("never_judges")], "algorithm": {"kind": "grpo", "beta": 0.04}, "max_steps": 1}
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=settings)
    run(file, tmp_path / "run", workers)
    (line,) = metrics(tmp_path / "run", "rl")
    assert line["frac_unjudged"] == 1 and line["ungradable/never_judges"] == 16
    assert line["loss"] == line["grad_norm"] == line["skipped_updates"] == 0 and line["reward"] is None
    assert all("reward" in name for name in line["nonfinite"])
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_a_reward_that_fails_on_all_items_stops_the_run(tmp_path, capsys):
    file = write_settings(tmp_path / "run.yaml", sft=None, rl={"rewards": [python("always_raises")]})
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and len(message.splitlines()) <= 20
    for words in ("tests.stages.trl_rewards:always_raises", "each of its 16 completions", "no such column"):
        assert words in message
    assert "trl_rewards.py" in message and "grpo_jax" not in message, "the user's frames, and not ours"


def test_a_reward_that_breaks_down_later_costs_no_finished_step(tmp_path, capsys):
    file = write_settings(tmp_path / "run.yaml", sft=None, rl={"rewards": [python("raises_later")]})
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and "the judge is gone" in message
    assert steps(tmp_path / "run", "rl") == [1] and len(metrics(tmp_path / "run", "rl")) == 1


def test_nothing_is_compiled_in_the_steady_state(tmp_path, workers):
    """Neither by the programs that are counted nor by anything else, over saves and evaluations."""
    file = write_settings(
        tmp_path / "run.yaml",
        sft=None,
        rl={"max_steps": 6, "num_iterations": 2, "eval_steps": 2, "save_steps": 2},
        evaluation=EVALUATION,
    )
    lowered, at_step = [], {}
    write = MetricsWriter.write

    def counting(self, step, numbers):
        at_step[step] = len(lowered)
        return write(self, step, numbers)

    with listening(lowered), mock.patch.object(MetricsWriter, "write", counting):
        run(file, tmp_path / "run", workers, "--only", "rl")
    lines = read_metrics(tmp_path / "run" / "rl" / "metrics.jsonl")
    assert len({line["compiles"] for line in lines[2:] if "compiles" in line}) == 1
    assert at_step[3] == at_step[6], lowered[at_step[3] :]
    evaluated = [line for line in lines if "eval/greedy" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 6]
    assert {"eval/mean@2", "eval/pass@1", "eval/pass@2", "eval/maj@2"} < evaluated[0].keys()


@contextlib.contextmanager
def listening(lowered: list[str]):
    """Note every program that JAX lowers, cached on disk or not."""

    def listener(event: str, seconds: float, **about) -> None:
        if event.endswith("jaxpr_to_mlir_module_duration"):
            lowered.append(str(about))

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_the_alarm_for_a_sampler_with_old_weights(tmp_path, capsys):
    """The first step is right; in the second the sampler still has the first one's weights."""
    make = rl.rl_programs

    def stale(*args):
        programs, kept = make(*args), []

        def sample(params, *rest):
            kept.append(jax.tree.map(lambda p: p.copy(), params))
            return programs.sample(kept[0], *rest)

        return programs._replace(sample=sample)

    file = write_settings(tmp_path / "run.yaml", sft=None, rl={"optimizer": {"learning_rate": 0.1}})
    with mock.patch.object(rl, "rl_programs", stale), mock.patch.object(rl, "compiled", lambda *programs: 0):
        code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 4 and "Traceback" not in message
    assert "step 2: sampler and trainer differ by" in message and "rl.max_logprob_gap 0.05" in message
    lines = metrics(tmp_path / "run", "rl")
    assert lines[0]["logprob_gap/max"] < 1e-5 < 0.05 < lines[1]["logprob_gap/mean"]
    assert steps(tmp_path / "run", "rl") == [], "what was learnt from it is not kept"


def test_a_filtered_distribution_is_said_and_not_held_against_the_trainer(tmp_path, workers, capsys):
    file = write_settings(tmp_path / "run.yaml", sft=None, rl={"max_steps": 1})
    run(file, tmp_path / "run", workers, "--rl.sampling.top_k", "2")
    said = capsys.readouterr().out
    assert "top_k, top_p, min_p or temperature 0 sample from another distribution" in said
    assert "the check of their agreement is off" in said
    assert metrics(tmp_path / "run", "rl")[0]["logprob_gap/mean"] > 0.05


def test_stop_strings_without_a_reference(tmp_path, workers):
    """A completion ends with the string, is finished, and its log-probabilities are still those of the trainer;
    with beta 0 there is no reference, in memory or in checkpoints, and a resume is exact too."""
    rl_settings = {"algorithm": {"kind": "grpo", "beta": 0.0}, "max_steps": 3}
    file = write_settings(tmp_path / "run.yaml", sft=None, rl=rl_settings)
    flags = ("--rl.sampling.stop", "1", "+")
    run(file, tmp_path / "run", workers, *flags)
    cut = 0
    for step in (1, 2, 3):
        for completion in (c for group in groups(tmp_path / "run", step) for c in group["completions"]):
            text = completion["text"]
            found = [text.index(string) for string in "1+" if string in text]
            assert not found or (min(found) == len(text) - 1 and completion["finished"])
            assert len(completion["logprobs"]) == len(completion["tokens"])
            cut += bool(found)
    assert cut > 3
    assert all(line["logprob_gap/max"] < 1e-5 for line in metrics(tmp_path / "run", "rl"))
    run_interrupted(file, tmp_path / "again", workers, "rl", 1, *flags)
    run(file, tmp_path / "again", workers, *flags)
    leaves = assert_equal_leaves(tmp_path / "again", tmp_path / "run", "rl")
    assert not any("reference" in name for name in leaves)
    assert rollouts(tmp_path / "again") == rollouts(tmp_path / "run")
