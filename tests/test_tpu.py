"""A TPU v5e-8 without a TPU: its compiler says whether the 0.5B configuration fits, and what the program moves."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_jax.sampler.sample import cache_blocks
from grpo_jax.stages.plan import USABLE
from grpo_jax.stages.targets import GIB, TargetError, tpu_target
from launch.plan import ENVIRONMENT
from tests.gpu_worker import CONFIG, QWEN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="no TPU compiler here: pip install -e '.[tpu]' brings it (libtpu, Linux on x86-64)",
    ),
]
ROOT = Path(__file__).resolve().parent.parent
L, V, K = (QWEN[name] for name in ("num_hidden_layers", "vocab_size", "num_key_value_heads"))
H = QWEN["hidden_size"] // QWEN["num_attention_heads"]


def compile_step(folder, *flags):
    """What the compiler says of one RL step, and the text of its programs, by name."""
    worker = [sys.executable, "-m", "tests.tpu_worker", str(folder), *flags]
    done = subprocess.run(worker, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((folder / "step.json").read_text())
    return result | {"hlo": {path.stem: path.read_text() for path in folder.glob("*.hlo")}}


@pytest.fixture(scope="module", params=["1", "2"], ids=["fsdp 8", "fsdp 4, tensor 2"])
def step(request, tmp_path_factory):
    return compile_step(tmp_path_factory.mktemp("tpu"), "--mesh.tensor", request.param)


def test_fits(step, capsys):
    with capsys.disabled():
        print(table(step))
    memory = step["memory"]
    assert memory == 16 * GIB and not step["refused"]
    for name, takes in step["takes"].items():
        assert takes["peak"] < USABLE * memory, f"{name} takes {takes['peak'] / 1e9:.1f} of {memory / 1e9:.1f} GB"


def test_what_is_too_large_is_said_by_the_compiler(tmp_path):
    """Without micro-batches; the plan then has the compiler's number."""
    step = compile_step(tmp_path, "--rl.microbatches", "1", "--model.remat", "none")
    assert step["refused"] == ["logprobs", "update"] or step["refused"] == ["update"]
    assert step["takes"]["update"]["peak"] > step["memory"]


def test_a_plan_for_a_topology(tmp_path):
    """The launcher, for the sampler of the evaluation alone, on another chip."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    words = [str(CONFIG), "--model.model_name_or_path", str(tmp_path), "--only", "evaluation", "--json"]
    launch = [sys.executable, str(ROOT / "launch" / "plan.py"), *words, "--topology", "v6e:2x2"]
    done = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    plan = json.loads(done.stdout)
    assert plan["fits"] and plan["target"]["devices"] == 4 and plan["target"]["memory"] == 32 * GIB
    assert [phase["name"] for phase in plan["phases"]] == ["loading", "evaluation: sampling"]


def test_topologies(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    sizes = {"v5e:4x8": (32, 16), "v5p:2x2x1": (4, 95), "v4:2x2x1": (4, 32), "v6e:2x4": (8, 32), "v3:2x2": (8, 16)}
    for name, (count, memory) in sizes.items():
        target = tpu_target(name)
        assert (len(target.devices), target.memory) == (count, memory * GIB), name
    assert tpu_target("v5e:2x2", memory=10**9).memory == 10**9
    with pytest.raises(TargetError, match="such as v5e:4x8"):
        tpu_target("v5e:3x5")


def test_parameters_and_moments_are_shared_out(step):
    """A device holds its part of the float32 weights and of Adam's two moments, and updates them in place."""
    takes = step["takes"]["update"]
    share = 3 * 4 * 494_032_768 / 8
    assert takes["arguments"] == pytest.approx(share, rel=0.02)
    assert takes["donated"] == pytest.approx(takes["outputs"], rel=1e-3)


def test_the_cache_is_split_over_the_batch(step):
    mesh, text, rows = step["mesh"], step["hlo"]["sample"], step["rows"]
    time = cache_blocks(step["time"], 0)[0]
    part = rows // (mesh["data"] * mesh["fsdp"])
    assert f"bf16[{L},{part},{K // mesh['tensor']},{time},{H}]" in text
    assert not re.search(rf"\[{L},{rows},\d+,\d+,{H}\]", text)


def test_weights_are_gathered_once_before_the_decode_loop(step):
    """The loop over tokens moves no weights; before it all layers come together, in the type of the products."""
    gathered = list(all_gathers(step["hlo"]["sample"]))
    layers = [dtype for dtype, shape, _ in gathered if len(shape) > 2 and shape[0] == L]
    assert layers and set(layers) == {"bf16"}
    inside = [(dtype, shape, name) for dtype, shape, name in gathered if name.startswith("jit(program)/while/body")]
    assert not [shape for _, shape, _ in inside if math.prod(shape) > 2**18], inside


def test_eight_bits_stay_eight_bits(tmp_path):
    """The loop over tokens holds the integers: the compiler makes no matrix of floats from them before it."""
    text = compile_step(tmp_path, "--rl.rollout_weights", "int8", "--rl.importance_cap", "2")["hlo"]["sample"]
    carried = max((line.split(" while(")[0] for line in text.splitlines() if " while(" in line), key=len)
    arrays = [(dtype, shape.split(",")) for dtype, shape in re.findall(r"(\w+)\[([\d,]+)\]", carried)]
    of_mlp = {str(QWEN[name]) for name in ("hidden_size", "intermediate_size")}
    assert {dtype for dtype, shape in arrays if of_mlp.issubset(shape)} == {"s8"}


@pytest.mark.parametrize("program", ["logprobs", "update"])
def test_layers_are_gathered_one_by_one_and_the_embedding_never(step, program):
    """In the type of the products, too; the output head is the embedding, and is gathered as a head."""
    gathered = list(all_gathers(step["hlo"][program]))
    assert gathered
    for dtype, shape, name in gathered:
        assert len(shape) < 3 or shape[0] != L, f"all layers at once: {dtype}{shape} for {name}"
        assert dtype != "f32" or math.prod(shape) < 2**18, f"in float32: {shape} for {name}"
        assert V // step["mesh"]["tensor"] not in shape or "->...v" in name, f"the embedding: {shape} for {name}"


def all_gathers(text):
    """Type, shape and name of the result of each all-gather in a compiled program."""
    for line in text.splitlines():
        found = re.match(r"\s*(?:ROOT )?%\S+ = (.*?) all-gather(?:-start)?\(", line)
        name = re.search(r'op_name="([^"]*)"', line)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", found[1] if found else ""):
            yield dtype, [int(size) for size in shape.split(",") if size], name[1] if name else ""


def table(step):
    """Bytes in MiB, operations in units of 10^12, on each chip."""
    mesh = " x ".join(f"{name} {size}" for name, size in step["mesh"].items())
    columns = ["arguments", "temporaries", "outputs", "donated", "beside", "peak"]
    lines = [
        f"\nv5e-8, {mesh}: MiB and 10^12 operations a chip; compiled in {step['seconds']:.0f} s",
        "".join(f"{name:>13}" for name in ["program", *columns, "flops", "compiler's*", "GB moved*"]),
    ]
    for name, takes in step["takes"].items():
        numbers = [f"{takes[column] / 2**20:.1f}" for column in columns]
        numbers += [f"{takes['flops'] / 1e12:.2f}", f"{takes['compiler_flops'] / 1e12:.3f}"]
        lines.append("".join(f"{x:>13}" for x in [name, *numbers, f"{takes['compiler_bytes'] / 1e9:.2f}"]))
    return "\n".join([*lines, "* the body of a loop once"])
