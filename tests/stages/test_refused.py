"""Wrong inputs: what a user sees, and that no run is touched.

python -m pytest tests/stages/test_refused.py -s      # prints the table of inputs and messages
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_runs import EVALUATION, assert_well_said, interrupted_after, launched, write_settings

from grpo_jax.stages import rl
from tests.make_random_model import main as make_random_model

ROW = '{"question": "1+1=", "answer": "2"}\n'


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    words: tuple[str, ...]  # in the message: key or file, value, remedy
    changes: dict = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()
    files: dict = dataclasses.field(default_factory=dict)
    all_devices: bool = False  # eight, as the mesh finds them
    early: bool = True  # before anything is written
    code: int = 2


def qwen(**changes) -> dict:
    """A pipeline of rl on a Hugging Face directory, which a test has spoilt under this name."""
    return {"sft": None, "model": {"architecture": None, "model_name_or_path": "MODEL"}, **changes}


def rows(*lines: str, **changes) -> dict:
    """A pipeline of rl on a file of JSON lines, and the file."""
    rl = {"source": {"kind": "jsonl", "path": "FOLDER/problems.jsonl"}}
    return {"changes": qwen(rl=rl, **changes), "files": {"problems.jsonl": "".join(lines)}}


CASES = [
    Case(
        "unknown key",
        ("run.yaml:", "rl.num_generation:", "no such setting", "did you mean rl.num_generations?"),
        {"rl": {"num_generation": 8}},
    ),
    Case(
        "unknown flag",
        ("--rl.algorithm.betta", "did you mean --rl.algorithm.beta?"),
        flags=("--rl.algorithm.betta", "0.1"),
    ),
    Case(
        "wrong type",
        ("run.yaml:", "rl.num_generations", '"many"', "should be a valid integer"),
        {"rl": {"num_generations": "many"}},
    ),
    Case("wrong type in a flag", ("--rl.max_steps is 'ten'", "should be an integer"), flags=("--rl.max_steps", "ten")),
    Case(
        "out of range",
        ("sft.optimizer.learning_rate", "-1", "greater than or equal to 0"),
        {"sft": {"optimizer": {"learning_rate": -1}}},
    ),
    Case(
        "unknown kind",
        ("run.yaml:", "rl.algorithm.kind", "no 'gpro' in grpo_jax/algorithms", "grpo"),
        {"rl": {"algorithm": {"kind": "gpro"}}},
    ),
    Case("missing YAML file", ("nowhere.yaml", "cannot be read", "there are"), flags=("FOLDER/nowhere.yaml",)),
    Case(
        "missing data file",
        ("elsewhere.jsonl", "no such file", "source.path", "problems.jsonl"),
        **rows(ROW) | {"flags": ("--rl.source.path", "FOLDER/elsewhere.jsonl")},
    ),
    Case(
        "missing model directory",
        ("model.model_name_or_path", "nowhere", "does not exist", "give a directory"),
        qwen(model={"architecture": None, "model_name_or_path": "FOLDER/nowhere"}),
    ),
    Case(
        "broken JSON line",
        ("problems.jsonl:2", "broken JSON at column 14", "bad_rows to skip"),
        **rows(ROW, '{"question": "1\n'),
    ),
    Case(
        "missing field",
        ("problems.jsonl:1", "'question'", "'ask', 'answer'", "source.fields.question"),
        **rows('{"ask": "1+1=", "answer": "2"}\n'),
    ),
    Case(
        "no reference answer",
        ("problems.jsonl:1", "no reference answer", "source.fields.answer"),
        **rows('{"question": "1+1=", "solution": "2"}\n'),
    ),
    Case(
        "fewer problems than a batch",
        ("rl.prompts_per_step", "4 prompts a step", "1 problems", "lower it"),
        **rows(ROW),
    ),
    Case("empty file", ("problems.jsonl", "no rows"), **rows()),
    Case(
        "over-long prompts",
        ("train-", "its prompt has 4 tokens", "prompt.max_prompt_length is 3", "overlong_prompts"),
        flags=("--prompt.max_prompt_length", "3"),
    ),
    Case(
        "over-long demonstrations",
        ("train-", "sft.max_length is 5", "overlong_examples"),
        flags=("--sft.max_length", "5"),
    ),
    Case(
        "mesh of other size",
        ("mesh", "data 3", "8 device(s)", "-1"),
        flags=("--mesh.data", "3", "--mesh.fsdp", "1"),
        all_devices=True,
    ),
    Case(
        "mesh that does not divide the heads",
        ("4", "mesh axis tensor of size 8", "choose a mesh.tensor"),
        flags=("--mesh.tensor", "8"),
        all_devices=True,
    ),
    Case(
        "mesh that does not divide the batch",
        ("rl.prompts_per_step", "6 rows", "8 batch shards", "choose 8"),
        {"sft": None, "model": {"architecture": {"hidden_size": 16}}},
        ("--rl.prompts_per_step", "6"),
        all_devices=True,
    ),
    Case(
        "micro-batches that do not divide",
        ("rl:", "4 prompts of 4", "3 equal microbatches", "choose a divisor of 16"),
        flags=("--rl.microbatches", "3"),
    ),
    Case(
        "micro-batches that the mesh does not divide",
        ("8 prompts of 4", "8 equal parts over 8 batch shards", "choose a divisor of 4"),
        {"sft": None, "model": {"architecture": {"hidden_size": 16}}},
        ("--rl.prompts_per_step", "8", "--rl.microbatches", "8"),
        all_devices=True,
    ),
    Case(
        "sample parts that the mesh does not divide",
        ("each of 2 rl.sample_parts", "4 rows", "8 batch shards", "choose 8"),
        {"sft": None, "model": {"architecture": {"hidden_size": 16}}},
        ("--rl.prompts_per_step", "8", "--rl.sample_parts", "2"),
        all_devices=True,
    ),
    Case(
        "rows that do not divide",
        ("decode_rows", "11 rows", "4 prompts of 4", "8, 12, 16"),
        flags=("--rl.decode_rows", "11"),
    ),
    Case(
        "a group of one", ("rl.num_generations", "1", "greater than or equal to 2"), flags=("--rl.num_generations", "1")
    ),
    Case(
        "k above n",
        ("evaluation.k", "4", "num_samples 2", "draw more samples"),
        {"evaluation": {**EVALUATION, "k": [4]}},
    ),
    Case("a section that is not there", ("--only", "evaluation", "there are sft, rl"), flags=("--only", "evaluation")),
    Case(
        "no such reward function",
        ("no_such_module", "No module named"),
        {"rl": {"rewards": [{"kind": "python", "path": "no_such_module:reward"}]}},
    ),
    Case(
        "output_dir below a file",
        ("output_dir", "Not a directory", "--output_dir"),
        flags=("--output_dir", "FOLDER/run.yaml/run"),
    ),
    Case(
        "a tokenizer that no export can carry",
        ("model.architecture.qkv_bias", "one token a character", "model.tokenizer_name_or_path"),
        {"model": {"architecture": {"hidden_size": 16, "qkv_bias": True}}},
    ),
    Case("no weights", ("no weights", "model.safetensors"), qwen()),
    Case("weights cut short", ("model.safetensors", "not a whole safetensors file", "download it again"), qwen()),
    Case("weights only as pickle", ("pytorch_model.bin", "pickle", "never opened", "convert"), qwen()),
    Case("a tensor is missing", ("model.embed_tokens.weight", "missing", "complete model directory"), qwen()),
    Case("wrong shape", ("model.norm.weight", "[15]", "[16]", "of different models"), qwen()),
    Case("broken numbers", ("model.norm.weight", "NaN"), qwen(), early=False),
    Case(
        "no chat template",
        ("no chat template", "prompt.format is chat", "set it to text"),
        qwen(prompt={"format": "chat", "max_prompt_length": 64}),
    ),
    Case("tokenizer of another model", ("largest id", "vocabulary has 64 entries", "trained with"), qwen()),
    Case("unknown architecture", ("config.json", "model_type 'mamba'", "llama, mistral, olmo2, qwen2"), qwen()),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A whole random Qwen2 directory."""
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    sizes = {"vocab": 300, "hidden": 16, "layers": 1, "heads": 4, "kv-heads": 2, "head-dim": 4, "mlp": 16}
    make_random_model([str(folder), *(word for name, size in sizes.items() for word in (f"--{name}", str(size)))])
    return folder


def spoilt(case: str, model: Path, folder: Path) -> Path:
    """A copy of the model with the fault that the case is about."""
    shutil.copytree(model, copy := folder / "model")
    weights = copy / "model.safetensors"
    tensors = load_file(weights)

    def change(name, value=None):
        changed = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(changed if value is None else changed | {name: value}, weights)

    def edit(name, **values):
        path = copy / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    match case:
        case "no weights":
            weights.unlink()
        case "weights cut short":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "weights only as pickle":
            weights.rename(copy / "pytorch_model.bin")
        case "a tensor is missing":
            change("model.embed_tokens.weight")
        case "wrong shape":
            change("model.norm.weight", np.ones(15, np.float32))
        case "broken numbers":
            change("model.norm.weight", np.full(16, np.nan, np.float32))
        case "no chat template":
            (copy / "chat_template.jinja").unlink(missing_ok=True)
            settings = json.loads((copy / "tokenizer_config.json").read_text())
            settings.pop("chat_template", None)
            (copy / "tokenizer_config.json").write_text(json.dumps(settings))
        case "tokenizer of another model":
            edit("config.json", vocab_size=64)
        case "unknown architecture":
            edit("config.json", model_type="mamba")
    return copy


@pytest.fixture(scope="module")
def told():
    """The table, printed at the end."""
    lines: list[tuple[str, int, str]] = []
    yield lines
    for name, code, message in lines:
        print(f"\n{name} -> exit {code}\n    " + message.strip().replace("\n", "\n    "))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_refused(case, tmp_path, model, capsys, told):
    for name, text in case.files.items():
        (tmp_path / name).write_text(text)
    places = {"FOLDER": str(tmp_path)}
    if "MODEL" in json.dumps(case.changes):
        places["MODEL"] = str(spoilt(case.name, model, tmp_path))
    text = json.dumps([case.changes, case.flags])
    for name, place in places.items():
        text = text.replace(name, place)
    changes, flags = json.loads(text)
    file = write_settings(tmp_path / "run.yaml", **changes)
    argv = [str(file), *([] if "--output_dir" in flags else ["--output_dir", str(tmp_path / "run")]), *flags]
    code, message = launched(argv, capsys, all_devices=case.all_devices)
    told.append((case.name, code, message.replace(str(tmp_path) + "/", "")))
    assert code == case.code
    assert_well_said(message, case.words)
    left = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*") if path.is_file()}
    begun = {".lock", "config.yaml", "environment.json", "ledger.json", "tokenizer", "rl"}
    assert left <= (set() if case.early else begun)


def test_a_mended_input_goes_on_in_the_same_place(tmp_path, model, capsys):
    """What was refused has computed nothing, so it may be changed in any way."""
    copy = spoilt("broken numbers", model, tmp_path)
    file = write_settings(tmp_path / "run.yaml", **qwen())
    argv = [str(file), "--output_dir", str(tmp_path / "run"), "--model.model_name_or_path"]
    assert launched([*argv, str(copy)], capsys)[0] == 2
    with mock.patch.object(rl, "train", lambda run, initial, prepared: initial()):
        assert launched([*argv, str(model)], capsys) == (0, "")


def fingerprints(directory: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--rl.algorithm.beta", "0.5"), ("rl.algorithm.beta: 0.04 -> 0.5", "take them back", "--output_dir")),
        (("--rl.max_steps", "9"), ("rl.max_steps: 2 -> 9", "take them back")),
        (("--seed", "1"), ("seed: 0 -> 1",)),
        (("--mesh.data", "3", "--mesh.fsdp", "1"), ("mesh: data 3", "8 device(s)")),
        (("--mesh.tensor", "8"), ("mesh axis tensor",)),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_a_finished_run_is_not_touched(base, capsys, told, flags, words):
    file, directory = base
    before = fingerprints(directory)
    code, message = launched([str(file), "--output_dir", str(directory), *flags], capsys, all_devices=True)
    told.append((f"finished run, {' '.join(flags)}", code, message.replace(str(directory), "run")))
    assert code == 2
    assert_well_said(message, words)
    assert fingerprints(directory) == before


def test_changed_data(tmp_path, evaluated, capsys, told):
    """One line more than the checkpoint knows: what would follow are other problems."""
    (tmp_path / "problems.jsonl").write_text(ROW * 5)
    file = write_settings(
        tmp_path / "run.yaml",
        sft=None,
        model={"tokenizer_name_or_path": str(evaluated[1] / "tokenizer")},
        rl={"source": {"kind": "jsonl", "path": str(tmp_path / "problems.jsonl")}, "max_steps": 3},
    )
    argv = [str(file), "--output_dir", str(tmp_path / "run")]
    with interrupted_after("rl", 1):
        assert launched(argv, capsys)[0] == 143
    (tmp_path / "problems.jsonl").write_text(ROW * 6)
    before = fingerprints(tmp_path / "run" / "rl")
    code, message = launched(argv, capsys)
    told.append(("changed data", code, message.replace(str(tmp_path) + "/", "")))
    assert code == 3
    assert_well_said(
        message, ("rl/checkpoints/1", "the problems have changed", "5 with", "6 with", "another output_dir")
    )
    assert fingerprints(tmp_path / "run" / "rl") == before


def test_two_runs_in_one_place(base, capsys, told):
    file, directory = base
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True)"
    command = [sys.executable, "-c", hold + "; sys.stdin.read()", str(directory / ".lock")]
    before = fingerprints(directory)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        code, message = launched([str(file), "--output_dir", str(directory)], capsys)
        other.stdin.close()
    told.append(("two runs in one output_dir", code, message.replace(str(directory), "run")))
    assert code == 3
    assert_well_said(message, ("another run is writing here", "choose another output_dir"))
    assert fingerprints(directory) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_dir(tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    file = write_settings(tmp_path / "run.yaml")
    code, message = launched([str(file), "--output_dir", str(tmp_path / "closed" / "run")], capsys)
    assert code == 2
    assert_well_said(message, ("output_dir", "Permission denied", "--output_dir"))


def test_debug_shows_the_traceback(tmp_path, capsys):
    code, message = launched(["--rl.algorithm.betta", "1", "--debug"], capsys)
    assert code == 2 and "Traceback" in message and "betta" in message
