"""The settings of RL that make it fast, on two processes: each does what it does on one with as many devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_runs import metrics, rollouts, run, write_settings
from test_two_processes import ROOT, free_port

pytestmark = pytest.mark.slow

RL = {
    "rewards": [{"kind": "exact"}, {"kind": "length", "buffer": 4}, {"kind": "tests.stages.rewards_for_tests"}],
    "max_steps": 4,
    "prompts_per_step": 8,
    "microbatches": 2,
    "sampling": {"max_completion_length": 8},
    "optimizer": {"learning_rate": 1e-3},
}
SETTINGS = {  # several at once where one does not hide the other
    "fused": ("--rl.fused_steps", "3"),
    "on policy": ("--rl.sample_parts", "2", "--rl.decode_rows", "8", "--rl.length_buckets", "2"),
    "off policy": ("--rl.sample_parts", "2", "--rl.steps_off_policy", "1", "--rl.importance_cap", "2.0"),
}
MESH = ("--mesh.data", "2", "--mesh.fsdp", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, workers) -> Path:
    """All runs, `one/<name>` in this process while two others do those in `two/<name>`."""
    folder = tmp_path_factory.mktemp("several")
    file = write_settings(folder / "run.yaml", sft=None, rl=RL)
    lines = [[str(file), "--output_dir", str(folder / "two" / name), *MESH, *SETTINGS[name]] for name in SETTINGS]
    (folder / "runs.json").write_text(json.dumps(lines))
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("cluster_runs.py")), f"localhost:{free_port()}", "2"]
    both = [
        subprocess.Popen(
            [*command, str(number), str(folder / "runs.json")],
            env=os.environ | flags,
            stdout=(folder / f"process{number}.txt").open("w"),  # a pipe that nobody reads would fill up
            stderr=subprocess.STDOUT,
        )
        for number in range(2)
    ]
    try:
        for name, more in SETTINGS.items():
            run(file, folder / "one" / name, workers, *MESH, *more)
        codes = [process.wait(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert codes == [0, 0], "".join((folder / f"process{number}.txt").read_text()[-5000:] for number in range(2))
    return folder


def completions(directory: Path) -> list[dict]:
    lines = [line for text in rollouts(directory).values() for line in text.splitlines()]
    return [completion for line in lines for completion in json.loads(line)["completions"]]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_on_two_processes(folder, name):
    """Tokens and rewards are equal, all numbers and weights up to rounding."""
    one, two = (folder / number / name for number in ("one", "two"))
    ours, theirs = completions(two), completions(one)
    assert len(ours) == len(theirs) == 4 * 8 * 4 and len({len(a["tokens"]) for a in ours}) > 2
    for a, b in zip(ours, theirs, strict=True):
        assert (a["tokens"], a["text"], a["finished"]) == (b["tokens"], b["text"], b["finished"])
        assert a["rewards"] == pytest.approx(b["rewards"], abs=1e-5)
        for key in ("advantage", "logprobs", "ref_logprobs"):
            np.testing.assert_allclose(a[key], b[key], atol=1e-4)
    lines, others = metrics(two, "rl"), metrics(one, "rl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        for key in line:
            np.testing.assert_allclose(line[key], other[key], rtol=1e-3, atol=1e-4, err_msg=f"{line['step']} {key}")
    ours, theirs = (load_file(directory / "hf" / "model.safetensors") for directory in (two, one))
    assert ours.keys() == theirs.keys()
    for weight in theirs:
        np.testing.assert_allclose(ours[weight], theirs[weight], atol=1e-4, err_msg=weight)


def test_on_two_processes_fused_steps_and_parts_have_the_same_tokens(folder):
    """Both are on policy; what is off policy samples from other weights, from the third step on others than these."""
    fused, parts, stale = ([c["tokens"] for c in completions(folder / "two" / name)] for name in SETTINGS)
    assert fused == parts != stale and fused[:32] == stale[:32]


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "fused"])
def test_nobody_waits_for_completions_to_come_before_a_step_is_written_and_saved(folder, name):
    """What a host asks of the others is a program, which the devices run after all that was started before it."""
    orders = [json.loads((folder / "two" / name / f"order{number}.json").read_text()) for number in range(2)]
    for order in orders:
        ahead = 2 if name == "off policy" else 1
        for step in range(1, 5 - ahead):
            begun = order.index(["draw", step + ahead])
            between = order[begun : order.index(["done", step])]
            assert ["wait"] not in between and ["ask"] not in between, (step, between)
        assert ["ask"] in order and ["wait"] in order
