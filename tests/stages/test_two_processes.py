"""The same command on two processes: one run, with the numbers of a run on one process with as many devices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import begin_with_sft_of

ROOT = Path(__file__).resolve().parent.parent.parent

SETTINGS = """
output_dir: {directory}
model: {{architecture: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2,
         head_dim: 8, intermediate_size: 32}}}}
mesh: {{data: 2, fsdp: 2, tensor: 1}}
prompt: {{format: text, max_prompt_length: 8}}
sft:
  source: {{kind: arithmetic, size: 200}}
  max_steps: 4
  batch_size: 16
  max_length: 16
  logging_steps: 1
rl:
  source: {{kind: arithmetic, size: 200}}
  algorithm: {{kind: grpo}}
  rewards: [{{kind: accuracy}}, {{kind: length, max_length: 8, buffer: 4}}]
  max_steps: 3
  prompts_per_step: 4
  num_generations: 4
  sampling: {{max_completion_length: 8}}
  optimizer: {{learning_rate: 1.0e-3}}
  save_steps: 2
evaluation:
  source: {{kind: arithmetic, split: test, size: 10}}
  reward: {{kind: accuracy}}
  num_samples: 2
  k: [1, 2]
  batch_prompts: 4
  sampling: {{max_completion_length: 8}}
"""


ITERATED = """
reward_model:
  labels: {kind: arithmetic, slip_rate: 0.5, size: 60}
  supervision: outcome
  max_steps: 2
  batch_size: 8
  max_length: 24
rl:
  rewards: [{kind: learned}]
  iterations: 3
  max_steps: 1
  continue_reward_model:
    reward: {kind: accuracy}
    num_problems: 16
    num_solutions: 4
    batch_prompts: 8
    held_out: 0.3
    max_steps: 2
    batch_size: 8
    max_length: 24
    logging_steps: 1
"""


def start(directory, devices, *flags, cwd=None):
    directory.mkdir(exist_ok=True)
    config = directory / "run.yaml"
    config.write_text(SETTINGS.format(directory=directory / "out"))
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, ROOT / "launch" / "train.py", config, "--debug", *flags]
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd
    )


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def metrics(directory, stage):
    lines = map(json.loads, (directory / "out" / stage / "metrics.jsonl").read_text().splitlines())
    clocks = ("time", "tokens_per_sec")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in lines]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    alone = start(tmp_path / "one", 4)
    output = alone.communicate(timeout=500)[0]
    assert alone.returncode == 0, output
    cluster = ("--coordinator", f"localhost:{free_port()}", "--num_processes", 2, "--process_id")
    both = [start(tmp_path / "two", 2, *cluster, i) for i in range(2)]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    assert "report:" in outputs[0] and "report:" not in outputs[1]
    for stage in ("sft", "rl"):
        one, two = metrics(tmp_path / "one", stage), metrics(tmp_path / "two", stage)
        assert len(one) == len(two) > 0
        for a, b in zip(one, two, strict=True):
            assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    for name in ("before", "after"):
        one, two = (
            json.loads((tmp_path / run / "out" / "evaluation" / f"{name}.json").read_text()) for run in ("one", "two")
        )
        assert one["metrics"] == two["metrics"]


@pytest.mark.slow
def test_two_processes_go_on_teaching_one_reward_model(tmp_path):
    """Line 12: what the first process writes, the other reads; it waits until it is there."""
    more = tmp_path / "iterated.yaml"
    more.write_text(ITERATED)
    flags = (more, "--only", "sft,reward_model,rl")
    alone = start(tmp_path / "one", 4, *flags)
    output = alone.communicate(timeout=500)[0]
    assert alone.returncode == 0, output
    cluster = ("--coordinator", f"localhost:{free_port()}", "--num_processes", 2, "--process_id")
    both = [start(tmp_path / "two", 2, *flags, *cluster, i) for i in range(2)]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    one, two = ([line for line in metrics(tmp_path / run, "rl") if "reward" in line] for run in ("one", "two"))
    assert [line["step"] for line in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):
        assert b["reward"] == pytest.approx(a["reward"], rel=1e-3, abs=1e-4)
    for i in (1, 2):
        found = [tmp_path / run / "out" / "rl" / f"iteration_{i}" / "label" / "labels.jsonl" for run in ("one", "two")]
        assert found[0].read_text() == found[1].read_text()


@pytest.mark.slow
def test_two_processes_share_a_tool(tmp_path):
    """The first process asks it for both; all of them read the same output at the same token.

    Both begin with the same taught weights, as two hundred steps of teaching round differently on other layouts. A row
    may still draw another token: calls and lengths are compared, and sampler with trainer, which would be apart if
    processes had read different outputs.
    """
    taught = "--sft.source.tool_rate 1 --sft.max_steps 200 --sft.max_length 64 --sft.optimizer.learning_rate 1e-2"
    rounds = "--rl.tools.kind python --rl.tools.workers 2 --rl.sampling.max_completion_length 56 --only sft,rl"
    flags = f"{taught} {rounds}".split()
    alone = start(tmp_path / "one", 4, *flags)
    output = alone.communicate(timeout=500)[0]
    if "no sandbox for programs here" in output:
        pytest.skip(output)
    assert alone.returncode == 0, output
    begin_with_sft_of(tmp_path / "one" / "out", tmp_path / "two" / "out")
    cluster = ("--coordinator", f"localhost:{free_port()}", "--num_processes", 2, "--process_id")
    both = [start(tmp_path / "two", 2, *flags, *cluster, i) for i in range(2)]
    outputs = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    one, two = (metrics(tmp_path / run, "rl") for run in ("one", "two"))
    assert sum(line["tools/calls"] for line in one) > 1, "the policy calls the tool, or the test is empty"
    for a, b in zip(one, two, strict=True):
        for name in ("tools/calls", "completions/mean_length"):
            assert b[name] == pytest.approx(a[name], rel=0.15)
        assert max(a["logprob_gap/max"], b["logprob_gap/max"]) < 1e-3


@pytest.mark.slow
def test_hosts_without_a_common_disk_are_refused(tmp_path):
    """Each process has a disk of its own, as output_dir is told by the directory that it is started in."""
    cluster = ("--coordinator", f"localhost:{free_port()}", "--num_processes", 2, "--process_id")
    both = []
    for number in range(2):
        (tmp_path / f"host{number}").mkdir()
        both.append(start(tmp_path / "run", 2, "--output_dir", "out", *cluster, number, cwd=tmp_path / f"host{number}"))
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [2, 2], "\n".join(outputs)
    for output in outputs:
        assert "host" in output and "process 1 of 2 does not see what process 0 writes there" in output
        assert "one disk that all of them have mounted" in output
    assert not [path for path in tmp_path.glob("host*/out/**/*") if path.is_file()]
