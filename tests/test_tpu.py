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

from tests.tpu_worker import QWEN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="no TPU compiler here: pip install -e '.[tpu]' brings it (libtpu, Linux on x86-64)",
    ),
]
ROOT = Path(__file__).resolve().parent.parent
MEMORY = 16e9  # bytes of a v5e chip
L, V, K, H = (QWEN[name] for name in ("num_layers", "vocab_size", "num_kv_heads", "head_dim"))
# libtpu asks a metadata server what machine this is, and lets one process at a time use it, unless it is told.
COMPILER = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}


@pytest.fixture(scope="module", params=[1, 2], ids=["fsdp 8", "fsdp 4, tensor 2"])
def step(request, tmp_path_factory):
    """What the compiler says of one RL step, and the text of its programs, by name."""
    folder = tmp_path_factory.mktemp("tpu")
    worker = [sys.executable, "-m", "tests.tpu_worker", str(folder), str(request.param)]
    done = subprocess.run(worker, cwd=ROOT, env=os.environ | COMPILER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((folder / "step.json").read_text())
    return result | {"hlo": {path.stem: path.read_text() for path in folder.glob("*.hlo")}}


def test_fits(step, capsys):
    with capsys.disabled():
        print(table(step))
    for name, takes in step["takes"].items():
        assert takes["peak"] < MEMORY, f"{name} takes {takes['peak'] / 1e9:.1f} of {MEMORY / 1e9:.0f} GB: {takes}"


def test_parameters_and_moments_are_shared_out(step):
    """A device holds its part of the float32 weights and of Adam's two moments, and updates them in place."""
    takes = step["takes"]["update"]
    share = 3 * 4 * 494_032_768 / 8
    assert takes["arguments"] == pytest.approx(share, rel=0.02)
    assert takes["donated"] == pytest.approx(takes["outputs"], rel=1e-3)


def test_the_cache_is_split_over_the_batch(step):
    mesh, text, rows, time = step["mesh"], step["hlo"]["sample"], step["rows"], step["time"]
    part = rows // (mesh["data"] * mesh["fsdp"])
    assert f"bf16[{L},{part},{K // mesh['tensor']},{time},{H}]" in text
    assert not re.search(rf"\[{L},{rows},\d+,{time},{H}\]", text)


@pytest.mark.parametrize("program", ["sample", "logprobs", "update"])
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
