"""The pipeline on meshes of fake devices: the tokens of one device, and its losses."""

import json

import numpy as np
import pytest
from small_runs import EVALUATION, metrics, rollouts, run, run_interrupted, write_settings

MESHES = [(1, 2, 2), (2, 2, 1), (1, 1, 4)]
ONLY = ("--only", "rl")


def flags(mesh) -> list[str]:
    return [
        word
        for name, size in zip(("data", "fsdp", "tensor"), mesh, strict=True)
        for word in (f"--mesh.{name}", str(size))
    ]


@pytest.mark.slow
def test_every_step_on_another_mesh(evaluated, workers, tmp_path, capsys):
    """Sampling, scoring and update of step 1 on (1,2,2), of step 2 on (2,2,1), of step 3 on (1,1,4)."""
    file, expected = evaluated
    run_interrupted(file, tmp_path, workers, "rl", 1, *flags(MESHES[0]), *ONLY)
    run_interrupted(file, tmp_path, workers, "rl", 2, *flags(MESHES[1]), *ONLY)
    assert "changed since the run was started: mesh.tensor: 2 -> 1" in capsys.readouterr().out
    run(file, tmp_path, workers, *flags(MESHES[2]), *ONLY)
    assert_same(tmp_path, expected, "rl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, workers):
    """One device, the whole pipeline, two updates a step."""
    folder = tmp_path_factory.mktemp("whole")
    rl = {"max_steps": 3, "num_iterations": 2}
    file = write_settings(folder / "run.yaml", sft={"max_steps": 2}, rl=rl, evaluation=EVALUATION)
    run(file, folder / "run", workers)
    return file, folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_mesh_changes_nothing(whole, workers, tmp_path, mesh):
    file, expected = whole
    run(file, tmp_path, workers, *flags(mesh))
    assert_same(tmp_path, expected, "sft", "rl")
    for name in ("before", "after"):
        a, b = (json.loads((folder / "evaluation" / f"{name}.json").read_text()) for folder in (tmp_path, expected))
        assert a["metrics"] == b["metrics"] and a["mean_length"] == b["mean_length"]


def assert_same(got, expected, *stages: str) -> None:
    """Texts and tokens equal; log-probabilities, losses, gradients and rewards to 1e-5."""
    ours, theirs = rollouts(got), rollouts(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        for a, b in zip(completions(ours[name]), completions(theirs[name]), strict=True):
            assert (a["text"], a["tokens"], a["finished"]) == (b["text"], b["tokens"], b["finished"])
            for key in ("logprobs", "ref_logprobs", "advantage"):
                np.testing.assert_allclose(a[key], b[key], atol=2e-5, err_msg=f"{name}: {key}")
    for stage in stages:
        for line, other in zip(metrics(got, stage), metrics(expected, stage), strict=True):
            for key in ("loss", "entropy", "grad_norm", *(["reward", "kl"] if stage == "rl" else [])):
                np.testing.assert_allclose(line[key], other[key], atol=1e-5, err_msg=f"{stage} {other['step']} {key}")


def completions(text: str) -> list[dict]:
    return [completion for line in text.splitlines() for completion in json.loads(line)["completions"]]
