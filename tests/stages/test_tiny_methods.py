"""Every other way to improve the tiny policy, at the same budget as GRPO: configs/with/*.yaml over configs/tiny.yaml.

Slow: one SFT policy for all, then some minutes a method. `-s` prints what came out.
"""

import json
import shutil
from unittest import mock

import pytest
from small_runs import on_few_devices

from grpo_jax.configure import load
from grpo_jax.stages import pipeline
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def launch(directory, workers, *arguments):
    command = load([*map(str, arguments), "--output_dir", str(directory)])
    with mock.patch.object(pipeline, "make_mesh", on_few_devices):
        pipeline.run(command, workers)


@pytest.fixture(scope="module")
def taught(tmp_path_factory, workers):
    directory = tmp_path_factory.mktemp("tiny") / "sft"
    launch(directory, workers, ROOT / "configs" / "tiny.yaml", "--only", "sft")
    return directory


def accuracies(directory) -> dict[str, dict]:
    """The held-out numbers before and after, each with its interval of 95 %."""
    paths = {name: directory / "evaluation" / f"{name}.json" for name in ("before", "after")}
    return {name: json.loads(path.read_text())["metrics"] for name, path in paths.items()}


@pytest.mark.parametrize("method", ["rft", "dpo", "ppo", "steps", "dapo"])
def test_it_improves_the_tiny_policy(taught, workers, tmp_path, method):
    shutil.copytree(taught, tmp_path / "run")
    configs = ROOT / "configs"
    launch(tmp_path / "run", workers, configs / "tiny.yaml", configs / "with" / f"{method}.yaml")
    numbers = accuracies(tmp_path / "run")
    print(method, numbers)
    assert numbers["after"]["mean@8"]["low"] > numbers["before"]["mean@8"]["high"], "beyond both intervals"
