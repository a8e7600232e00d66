"""Our own worker, from the files of a workload to its last answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.benchmark.alternate import System, measure, medians
from grpo_jax.benchmark.material import make_material
from grpo_jax.benchmark.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]


def test_a_tiny_workload(tmp_path):
    """Two steps of the RL stage's own loop, stopped in between; nothing is compiled after the first step."""
    place = make_material(WORKLOADS["tiny"], tmp_path)
    words = [str(place), str(tmp_path / "run"), "1", "--rl.microbatches", "2"]
    command = [sys.executable, "-m", "grpo_jax.benchmark.ours", *words]
    system = System("ours", command, {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])})
    measured = measure([system], tmp_path, rounds=2, steps=1)
    assert [step.tokens for step in measured.steps] == [32, 32]
    assert measured.ready["ours"]["devices"] == "1 x cpu"
    middle = medians(measured.steps, "ours")
    assert 0 < middle["reward"] < middle["step"]
    finish = measured.finish["ours"]
    assert finish["peak_memory"] > 2e8
    assert set(finish["programs"]) == {"prefill", "generate", "reference", "update"}
    assert all(0 < seconds < 5 for seconds in finish["programs"].values())
    assert len((tmp_path / "run" / "rl" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_the_launcher(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "benchmark.py"), "tiny", "--rounds", "1"]
    command += ["--devices", "1", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("tiny_*")
    assert {"results.jsonl", "phases.svg", "ours.log"} <= {path.name for path in folder.iterdir()}
    assert "ours" in done.stdout


@pytest.mark.slow
def test_the_curves(tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "benchmark.py"), "curves", "--only", "microbatches"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("curves_*")
    assert (folder / "curves.svg").read_text().startswith("<svg")
    assert len((folder / "curves.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["S", "--peer", "nobody"], "no such peer"),
        (["S", "--rounds", "0"], "at least 1"),
        (["nothing"], "invalid choice"),
        (["curves", "--only", "height"], "no curve height"),
    ],
)
def test_errors_are_one_message(words, message, capsys):
    sys.path.insert(0, str(ROOT / "launch"))
    import benchmark

    assert benchmark.main(words) == 2
    assert message in capsys.readouterr().err


def test_environments_of_peers_are_never_made_over_others(tmp_path, capsys):
    """Nothing is installed for a name that is none, or where something is."""
    sys.path.insert(0, str(ROOT / "launch" / "benchmark_peers"))
    import make

    assert make.main(["verl"]) == 2 and "make.py trl|tunix" in capsys.readouterr().err
    (tmp_path / "mine").write_text("mine")
    assert make.main(["trl", str(tmp_path)]) == 2 and "is there; delete it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
