"""Rewards from a reward model: its scores are those of the whole text, and it is found, refused and resumed by name."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from small_runs import (
    SUMS,
    assert_equal_leaves,
    assert_well_said,
    launched,
    metrics,
    rollouts,
    run,
    run_interrupted,
    write_settings,
)

from grpo_jax.configure import find
from grpo_jax.models.scores import sequence_scores
from grpo_jax.stages.learned import learned_rewards
from grpo_jax.types import Sequences
from tests import tiny

NEWLINE = np.arange(tiny.V) == 5


@pytest.fixture(scope="module")
def rollout():
    return jax.device_get(tiny.roll_out(tiny.decoder(), tiny.host_params(), tiny.prompts(), G=4, Tc=8))


def reward_of(rollout, *, mesh=None, changes=None, candidates=None, **settings):
    changes, mesh = changes or {"head": "scalar"}, mesh or tiny.mesh_of()
    module = find("rewards", "learned")
    learned = module.build(module.Config(**settings)).learned
    model = tiny.decoder(**changes)
    program = partial(
        learned_rewards, model=model, candidates=candidates, learned=learned, newline=NEWLINE, ends=(tiny.EOS,)
    )
    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(program)(tiny.on_mesh(tiny.host_params(**changes), model, mesh), rollout))


def step_values(rollout, *, changes=None, candidates=None):
    """The scores of each completion at its step ends, one row of plain text after the other: [B][steps]."""
    changes = changes or {"head": "scalar"}
    model, params = tiny.decoder(**changes), tiny.host_params(**changes)
    score, found = jax.jit(partial(sequence_scores, model, candidates=candidates)), []
    G = rollout.finished.shape[0] // rollout.prompts.index.shape[0]
    for b, mask in enumerate(rollout.completion_mask):
        prompt = jax.tree.map(lambda x, b=b: x[b // G], rollout.prompts.sequences)
        text = jax.tree.map(lambda p, c, b=b: np.concatenate([p, c[b]])[None], prompt, rollout.completions)
        scores = np.asarray(score(params, Sequences(*jax.tree.leaves(text))))[0, -len(mask) :]
        said, last = rollout.completions.tokens[b], int(mask.sum()) - 1
        content = [t for t in range(last + 1) if said[t] not in (5, tiny.EOS)]
        ends = [t for t in range(last) if said[t] == 5 and t + 1 in content and any(c < t for c in content)]
        found.append(scores[[*ends, last]])
    return found


def test_its_scores_are_those_of_the_whole_text(rollout):
    values = step_values(rollout)
    assert max(map(len, values)) > 1 and not rollout.finished.all()
    of = {"last": lambda v: v[-1], "min": np.min, "mean": np.mean, "product": np.prod}
    for whole, function in of.items():
        wanted = np.array([function(1 / (1 + np.exp(-v))) for v in values])
        got = reward_of(rollout, whole=whole, unfinished=None)
        np.testing.assert_allclose(got.reshape(-1), wanted, atol=1e-5, err_msg=whole)
    logits = reward_of(rollout, value="logit", unfinished=-7.0).reshape(-1)
    np.testing.assert_allclose(logits, np.where(rollout.finished, [v[-1] for v in values], -7.0), atol=2e-5)


def test_each_step_has_its_own(rollout):
    """Values stand at the ends of the steps, and nowhere else; the last step of what was cut has another."""
    module, model = find("rewards", "learned"), tiny.decoder(head="scalar")
    reward = module.build(module.Config(supervision="process", whole="mean", unfinished=-7.0))
    assert reward.steps
    program = partial(
        learned_rewards, model=model, candidates=None, learned=reward.learned, newline=NEWLINE, ends=(tiny.EOS,)
    )
    for mesh in (tiny.mesh_of(), tiny.mesh_of(2, 2)):
        with jax.set_mesh(mesh):
            got = jax.jit(program)(tiny.on_mesh(tiny.host_params(head="scalar"), model, mesh), rollout)
        steps, ends = (np.asarray(x).reshape(rollout.completion_mask.shape) for x in (got.steps, got.step_mask))
        assert not steps[~ends].any()
        for b, wanted in enumerate(step_values(rollout)):
            values = 1 / (1 + np.exp(-wanted))
            values[-1] = values[-1] if rollout.finished[b] else -7.0
            np.testing.assert_allclose(steps[b][ends[b]], values, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_rl_with_process_supervision_by_a_learned_model(workers, tmp_path, algorithm):
    rewards = [{"kind": "learned", "supervision": "process"}, {"kind": "accuracy", "weight": 0.5}]
    rl = {"rewards": rewards, "max_steps": 2, "algorithm": {"kind": algorithm}}
    file = write_settings(tmp_path / "run.yaml", reward_model=MODEL, rl=rl)
    run(file, tmp_path / "run", workers)
    assert all(0 < line["rewards/learned/mean"] < 1 for line in metrics(tmp_path / "run", "rl"))
    assert all(line["grad_norm"] > 0 for line in metrics(tmp_path / "run", "rl"))


def test_steps_of_a_model_of_outcomes_are_refused(tmp_path, capsys):
    rl = {"rewards": [{"kind": "learned", "supervision": "process"}], "algorithm": {"kind": "grpo"}}
    file = write_settings(tmp_path / "run.yaml", reward_model=MODEL | {"supervision": "outcome"}, rl=rl)
    code, error = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2
    assert_well_said(error, ("supervision is process", "outcome labels", "reward_model.supervision process"))


def test_of_two_tokens(rollout):
    form = {"changes": {"tie_word_embeddings": True}, "candidates": (3, 7)}
    got = reward_of(rollout, unfinished=None, **form).reshape(-1)
    np.testing.assert_allclose(got, [1 / (1 + np.exp(-v[-1])) for v in step_values(rollout, **form)], atol=1e-5)


def test_parts_and_mesh_change_nothing(rollout):
    plain = reward_of(rollout)
    for mesh, microbatches in (((1, 1, 1), 2), ((2, 2, 1), 1), ((1, 2, 2), 2)):
        got = reward_of(rollout, mesh=tiny.mesh_of(*mesh), microbatches=microbatches)
        np.testing.assert_allclose(got, plain, atol=2e-6)


MODEL = {
    "labels": {"kind": "arithmetic", "slip_rate": 0.5, "size": 60},
    "max_steps": 2,
    "batch_size": 8,
    "max_length": 24,
    "optimizer": {"learning_rate": 1e-2},
}
LEARNED = {"rewards": [{"kind": "learned", "whole": "min"}, {"kind": "accuracy", "weight": 0.5}], "max_steps": 3}


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory, workers):
    """A run of sft, a reward model, and rl by it."""
    folder = tmp_path_factory.mktemp("rewarded")
    file = write_settings(folder / "run.yaml", reward_model=MODEL, rl=LEARNED)
    run(file, folder / "run", workers)
    return file, folder / "run"


def test_rl_by_the_reward_model_of_the_run(rewarded):
    _, directory = rewarded
    lines = [json.loads(line) for text in rollouts(directory).values() for line in text.splitlines()]
    completions = [completion for line in lines for completion in line["completions"]]
    rewards = [c["rewards"] for c in completions]
    assert all(
        (0 <= r["learned"] <= 1 and r["learned"] == 0) or c["finished"]
        for r, c in zip(rewards, completions, strict=True)
    )
    assert len({r["learned"] for r in rewards}) > 2
    for c in completions:
        assert c["reward"] == pytest.approx(c["rewards"]["learned"] + 0.5 * c["rewards"]["accuracy"], abs=1e-4)


def test_a_broken_run_and_a_reward_model_of_another_run(rewarded, workers, tmp_path):
    file, unbroken = rewarded
    shutil.copytree(unbroken, directory := tmp_path / "run", ignore=shutil.ignore_patterns("rl", "hf"))
    run_interrupted(file, directory, workers, "rl", 2)
    run(file, directory, workers)
    assert_equal_leaves(directory, unbroken, "rl")
    rewards = [{**LEARNED["rewards"][0], "path": str(unbroken)}, LEARNED["rewards"][1]]
    other = write_settings(tmp_path / "other.yaml", rl=LEARNED | {"rewards": rewards})
    run(other, tmp_path / "other", workers)
    assert_equal_leaves(tmp_path / "other", unbroken, "rl")
    assert metrics(tmp_path / "other", "rl") == metrics(unbroken, "rl")


@pytest.mark.parametrize(
    ("rewards", "changes", "words"),
    [
        ([{"kind": "learned"}], {}, ("path is null", "no section reward_model")),
        (
            [{"kind": "learned", "path": "FOLDER"}],
            {},
            ("holds no reward_model/reward_model.json", "of a run"),
        ),
        ([{"kind": "learned", "value": "logit", "whole": "product"}], {}, ("a product of logits",)),
        ([{"kind": "learned", "value": "logit"}], {}, ("value logit", "unfinished 0.0", "set unfinished")),
        (
            [{"kind": "learned", "path": "RUN"}],
            {"rl": {"source": {**SUMS, "form": "words"}}, "prompt": {"max_prompt_length": 90}},
            ("is of tokenizer", "the policy's is", "train a reward model with the policy's tokenizer"),
        ),
    ],
)
def test_refused(rewarded, tmp_path, capsys, rewards, changes, words):
    places = {"FOLDER": str(tmp_path), "RUN": str(rewarded[1])}
    rewards = [{k: places.get(v, v) if k == "path" else v for k, v in r.items()} for r in rewards]
    rl = {**changes.get("rl", {}), "rewards": rewards}
    file = write_settings(tmp_path / "run.yaml", **{**changes, "rl": rl, "sft": None})
    code, message = launched([str(file), "--output_dir", str(tmp_path / "run")], capsys)
    assert code == 2 and not (tmp_path / "run" / "rl").exists()
    assert_well_said(message, words)


def test_the_reward_model_comes_before_rl(rewarded, tmp_path, capsys):
    file, _ = rewarded
    code, message = launched([str(file), "--output_dir", str(tmp_path), "--only", "sft,rl"], capsys)
    assert code == 2
    assert_well_said(message, ("rl asks the reward model of this run", "add reward_model to --only"))
