"""Every other way to improve the tiny policy, at the same budget as GRPO: configs/with/*.yaml over configs/tiny.yaml.

Slow: one SFT policy for all, then some minutes a method. `-s` prints what came out.
"""

import json

import pytest

from grpo_jax.rewards.workers import Workers
from grpo_jax.stages import pipeline
from tests.conftest import ROOT
from tests.stages.small_runs import on_few_devices

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workers():
    with Workers(max_workers=2) as pool:
        yield pool


def launch(directory, workers, *arguments):
    from unittest import mock

    from grpo_jax.configure import load

    command = load([*map(str, arguments), "--output_dir", str(directory)])
    with mock.patch.object(pipeline, "make_mesh", on_few_devices):
        pipeline.run(command, workers)


@pytest.fixture(scope="module")
def taught(tmp_path_factory, workers):
    directory = tmp_path_factory.mktemp("tiny") / "sft"
    launch(directory, workers, ROOT / "configs" / "tiny.yaml", "--only", "sft")
    return directory


def accuracies(directory) -> dict[str, float]:
    found = {}
    for name in ("before", "after"):
        (path,) = directory.glob(f"**/{name}.json")
        found[name] = json.loads(path.read_text())["metrics"]
    return found


@pytest.mark.parametrize("method", ["rft", "dpo", "ppo", "steps", "dapo"])
def test_it_improves_the_tiny_policy(taught, workers, tmp_path, method):
    import shutil

    shutil.copytree(taught, tmp_path / "run")
    configs = ROOT / "configs"
    launch(tmp_path / "run", workers, configs / "tiny.yaml", configs / "with" / f"{method}.yaml")
    numbers = accuracies(tmp_path / "run")
    print(method, numbers)
    assert numbers["after"]["mean@8"] > numbers["before"]["mean@8"] + 0.05
