"""Pipelines of adapters on a frozen base: what is kept, resumed, refused and written."""

import dataclasses
import gc
import importlib.util
import json
import shutil
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_two_processes
import yaml
from safetensors.numpy import load_file, save_file
from small_runs import (
    EVALUATION,
    assert_equal_runs,
    assert_well_said,
    checkpoint,
    launched,
    metrics,
    on_few_devices,
    run,
    run_interrupted,
    steps,
    write_settings,
)
from test_loop import listening
from test_meshes import MESHES, assert_same, flags

from grpo_jax.config import LoraConfig, MeshConfig
from grpo_jax.configure import difference, load
from grpo_jax.data.tokenizer import load_tokenizer
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.hf import load_params, read_config, save_params
from grpo_jax.models.logprobs import sequence_logprobs
from grpo_jax.models.lora import LoraError, attach, init_adapters, merge
from grpo_jax.models.peft import load_adapters, read_lora
from grpo_jax.reporting.metrics import MetricsWriter, read_metrics
from grpo_jax.sharding import run_key
from grpo_jax.stages import pipeline
from grpo_jax.stages.policy import with_adapters
from grpo_jax.types import Sequences
from tests.make_random_model import main as make_random_model

ROOT = Path(__file__).resolve().parents[2]
ITERATED = {"num_iterations": 2, "iterations": 2, "max_steps": 2}
LORA = {"rank": 4, "alpha": 8, "targets": ["[qv]_proj", "down_proj"]}
EVALUATED = {**EVALUATION, "batch_prompts": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def base_model(folder, workers):
    """A model directory: a policy that was fine-tuned as a whole."""
    run(write_settings(folder / "base.yaml", rl=None), folder / "base", workers)
    return folder / "base" / "hf"


def on_base(base_model, **changes):
    """The model section of adapters on a base."""
    return {"architecture": None, "model_name_or_path": str(base_model), "lora": {**LORA, **changes}}


@pytest.fixture(scope="module")
def unbroken(folder, base_model, workers):
    """sft, evaluation, rl of two iterations with evaluations in between, evaluation: settings and directory."""
    rl = {**ITERATED, "save_steps": 2, "eval_steps": 2}
    file = write_settings(folder / "run.yaml", model=on_base(base_model), rl=rl, evaluation=EVALUATED)
    run(file, folder / "run", workers)
    return file, folder / "run"


def part(leaves, *names):
    """The leaves of a checkpoint below these names."""
    start = "".join(f"[{name!r}]" for name in names)
    return {name.removeprefix(start): leaf for name, leaf in leaves.items() if name.startswith(start)}


def assert_equal(got, expected):
    assert got.keys() == expected.keys() and got
    for name, leaf in expected.items():
        assert np.array_equal(got[name], leaf), name


# --- what a run keeps and writes ---


def test_only_adapters_are_trained_and_kept(unbroken):
    _, directory = unbroken
    leaves = checkpoint(directory, "rl")
    params = part(leaves, "state", "params")
    assert set(params) == {f"[{target!r}][{half!r}]" for target in ("q", "v", "down") for half in "ab"}
    assert sum(leaf.size for leaf in leaves.values()) < 4 * sum(leaf.size for leaf in params.values()) + 10
    sft = metrics(directory, "sft")
    assert sft[-1]["loss"] < sft[0]["loss"]
    assert all(line["logprob_gap/max"] < 1e-5 for line in metrics(directory, "rl") if "loss" in line)


def test_the_reference_is_the_policy_at_the_start_of_each_iteration(unbroken):
    """After SFT it is SFT's adapters, in the second iteration those of the first one's end."""
    _, directory = unbroken
    assert steps(directory, "rl") == [2, 4]
    first, second = checkpoint(directory, "rl", 2), checkpoint(directory, "rl", 4)
    assert_equal(part(first, "reference"), part(checkpoint(directory, "sft"), "state", "params"))
    assert_equal(part(second, "reference"), part(first, "state", "params"))


def test_the_adapter_is_exported(unbroken, base_model):
    _, directory = unbroken
    assert not (directory / "hf").exists() and (directory / "report.html").exists()
    names = {path.name for path in (directory / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    settings = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base_model.resolve())
    config = dataclasses.replace(read_config(base_model), lora=read_lora(directory / "adapter"))
    loaded = load_adapters(directory / "adapter", config, on_few_devices(MeshConfig()))
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(loaded)}
    assert_equal(named, part(checkpoint(directory, "rl"), "state", "params"))


def test_evaluations_in_the_loop_and_round_it(unbroken, base_model, workers, tmp_path):
    """The trained policy, started anew from its adapter, is evaluated to the same numbers."""
    _, directory = unbroken
    results = {
        name: json.loads((directory / "evaluation" / f"{name}.json").read_text()) for name in ("before", "after")
    }
    assert {name: result["title"] for name, result in results.items()} == {
        "before": "sft, step 4",
        "after": "rl, step 4",
    }
    inside = [line for line in read_metrics(directory / "rl" / "metrics.jsonl") if "eval/greedy" in line]
    assert [line["step"] for line in inside] == [2, 4]
    assert inside[-1]["eval/mean@2"] == results["after"]["metrics"]["mean@2"]["value"]

    again = on_base(base_model, adapter_name_or_path=str(directory / "adapter"))
    file = write_settings(tmp_path / "run.yaml", model=again, sft=None, rl={"max_steps": 1}, evaluation=EVALUATED)
    run(file, tmp_path / "run", workers)
    before = json.loads((tmp_path / "run" / "evaluation" / "before.json").read_text())
    assert before["metrics"] == results["after"]["metrics"]
    assert before["title"] == f"{directory / 'adapter'} on {base_model}"
    assert_equal(
        part(checkpoint(tmp_path / "run", "rl"), "reference"), part(checkpoint(directory, "rl"), "state", "params")
    )


def test_merged_it_is_a_model_directory(unbroken, base_model, tmp_path, workers):
    """In float32, and a run of the merged model samples what the adapters sample."""
    _, directory = unbroken
    mesh = on_few_devices(MeshConfig())
    config = dataclasses.replace(read_config(base_model), lora=read_lora(directory / "adapter"))
    base = load_params(base_model, config, mesh)
    merged = merge(base, load_adapters(directory / "adapter", config, mesh), config)
    tokenizer = load_tokenizer(str(base_model), lambda note: None)
    save_params(merged, config, tokenizer, tmp_path / "merged")
    model = {"architecture": None, "model_name_or_path": str(tmp_path / "merged")}
    file = write_settings(tmp_path / "run.yaml", model=model, sft=None, rl=None, evaluation=EVALUATED)
    run(file, tmp_path / "run", workers)
    result, expected = (
        json.loads(path.read_text())
        for path in (tmp_path / "run" / "evaluation" / "policy.json", directory / "evaluation" / "after.json")
    )
    assert result["metrics"] == expected["metrics"]


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="install with .[parity] to compare with peft")
def test_peft_computes_the_same(unbroken, base_model):
    import torch
    from peft import AutoPeftModelForCausalLM

    _, directory = unbroken
    mesh = on_few_devices(MeshConfig())
    config = dataclasses.replace(read_config(base_model), lora=read_lora(directory / "adapter"))
    policy = attach(load_params(base_model, config, mesh), load_adapters(directory / "adapter", config, mesh))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9)).astype(np.int32)
    ones = np.ones_like(tokens)
    batch = Sequences(*map(jnp.asarray, (tokens, np.cumsum(ones, 1) - 1, ones)))
    ours, _ = sequence_logprobs(Decoder(config), policy, batch, chunk=4)
    with torch.no_grad():
        logits = AutoPeftModelForCausalLM.from_pretrained(directory / "adapter")(torch.tensor(tokens).long()).logits
    theirs = torch.log_softmax(logits.double(), -1)[:, :-1].gather(-1, torch.tensor(tokens).long()[:, 1:, None])
    np.testing.assert_allclose(ours[:, 1:], theirs[:, :, 0], atol=1e-4)


# --- memory and compilation ---


@pytest.mark.slow
def test_the_base_is_in_memory_once_and_nothing_is_compiled_later(base_model, workers, tmp_path):
    """Policy, old policy, reference, evaluation and update share it; counted among the live arrays at each line."""
    shape = read_config(base_model)
    shape = (shape.vocab_size, shape.hidden_size)
    lowered, at_step, alive = [], {}, {}
    write = MetricsWriter.write

    def count():
        gc.collect()
        return len({a.unsafe_buffer_pointer() for a in jax.live_arrays() if a.shape == shape and a.dtype == "float32"})

    def counting(self, step, numbers):
        at_step[step], alive[step] = len(lowered), count() - before
        return write(self, step, numbers)

    rl = {"max_steps": 6, "num_iterations": 2, "eval_steps": 2, "save_steps": 2}
    file = write_settings(tmp_path / "run.yaml", model=on_base(base_model), sft=None, rl=rl, evaluation=EVALUATED)
    before = count()
    with listening(lowered), mock.patch.object(MetricsWriter, "write", counting):
        run(file, tmp_path / "run", workers, "--only", "rl")
    assert set(alive) == {1, 2, 3, 4, 5, 6} and set(alive.values()) == {1}
    lines = [line for line in read_metrics(tmp_path / "run" / "rl" / "metrics.jsonl") if "compiles" in line]
    assert len({line["compiles"] for line in lines[2:]}) == 1
    assert at_step[3] == at_step[6], lowered[at_step[3] :]


# --- resume ---


def test_a_run_broken_everywhere_on_a_base_that_moves_equals_an_unbroken_one(
    unbroken, base_model, workers, tmp_path, capsys
):
    file, expected = unbroken
    elsewhere = shutil.copytree(base_model, tmp_path / "elsewhere")
    moved = ["--model.model_name_or_path", str(elsewhere)]
    for stage, step, more in (("sft", 2, []), ("rl", 2, moved), ("rl", 3, [])):
        assert run_interrupted(file, tmp_path / "run", workers, stage, step, *more).exit_code == 143
    capsys.readouterr()
    run(file, tmp_path / "run", workers, *moved)
    (changed,) = difference(*({"model": {"model_name_or_path": str(path)}} for path in (base_model, elsewhere)))
    assert f"changed since the run was started: {changed}\n" in capsys.readouterr().out
    assert_equal_runs(tmp_path / "run", expected, moved=elsewhere, base=base_model)


@pytest.mark.slow
def test_every_step_on_another_mesh(unbroken, base_model, workers, tmp_path):
    model = on_base(base_model)
    file = write_settings(tmp_path / "run.yaml", model=model, sft=None, rl={"max_steps": 3})
    run(file, tmp_path / "one", workers)
    run_interrupted(file, tmp_path / "many", workers, "rl", 1, *flags(MESHES[0]))
    run_interrupted(file, tmp_path / "many", workers, "rl", 2, *flags(MESHES[1]))
    run(file, tmp_path / "many", workers, *flags(MESHES[2]))
    assert_same(tmp_path / "many", tmp_path / "one", "rl")


@pytest.fixture
def finished(unbroken, tmp_path):
    """A copy of the run, whose adapter is to be written again."""
    file, directory = unbroken
    shutil.copytree(directory, copy := tmp_path / "run")
    shutil.rmtree(copy / "adapter")
    return file, copy


def other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    noise = np.random.default_rng(0)
    save_file({name: t + 1e-3 * noise.normal(size=t.shape).astype("f") for name, t in tensors.items()}, path)


def other_settings(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("10000.0", "20000.0"))


@pytest.mark.parametrize(
    ("change", "part"), [(other_weights, "weights"), (other_settings, "config")], ids=["weights", "config"]
)
def test_another_base_is_refused(finished, base_model, tmp_path, capsys, change, part):
    """Of a finished stage, of one under way, of one to come; both fingerprints are named and nothing is loaded."""
    file, directory = finished
    change(shutil.copytree(base_model, copy := tmp_path / "other"))
    argv = [str(file), "--output_dir", str(directory), "--model.model_name_or_path", str(copy)]
    stages = {"": "rl/checkpoints/4", "rl/done.json": "rl/checkpoints/4", "rl/checkpoints": "sft/checkpoints/4"}
    for gone, place in stages.items():
        if gone:
            (directory / gone).rename(tmp_path / Path(gone).name)
        with mock.patch("grpo_jax.stages.run.frozen_params", side_effect=AssertionError("loaded")):
            code, message = launched(argv, capsys)
        assert code == 3 and not (directory / "adapter").exists()
        assert_well_said(message, ("the model that the adapters were trained on", place, "bring back"))
        then, now = message.partition(" and is ")[::2]
        assert then.split(f"{part} ")[1][:16] != now.split(f"{part} ")[1][:16]


@pytest.mark.parametrize(
    ("flag", "value", "words", "saved"),
    [
        ("rank", "8", "model.lora.rank: 4 -> 8", ("was rank 4", "is rank 8")),
        ("alpha", "16", "model.lora.alpha: 8.0 -> 16.0", ("was alpha 8.0", "is alpha 16.0")),
        (
            "targets",
            "q_proj",
            "model.lora.targets: ['[qv]_proj', 'down_proj'] -> ['q_proj']",
            ("was targets ['q', 'v', 'down']", "is targets ['q']"),
        ),
    ],
)
def test_other_adapters_are_refused(finished, capsys, flag, value, words, saved):
    """By the settings of the run; and should these be lost, by the checkpoint, with both values too."""
    file, directory = finished
    argv = [str(file), "--output_dir", str(directory), f"--model.lora.{flag}", value]
    code, message = launched(argv, capsys)
    assert code == 2
    assert_well_said(message, ("this run was started with other settings", words, "take them back"))
    (directory / "config.yaml").unlink()
    code, message = launched(argv, capsys)
    assert code == 3
    assert_well_said(message, ("rl/checkpoints/4: model.lora", *saved, "bring back"))


# --- refused ---


def test_what_cannot_have_adapters_is_refused(unbroken, base_model, tmp_path, capsys):
    _, directory = unbroken
    adapter = str(directory / "adapter")
    cases = [
        ({"lora": {}}, (), ("model.lora: the weights beside", "random", "give model.model_name_or_path")),
        (on_base(base_model, targets=["c_attn"]), (), ("model.lora.targets", "'c_attn' matches no", "down_proj")),
        (on_base(base_model, rank=0), (), ("model.lora.rank", "greater than 0")),
        (on_base(base_model, dropout=0.1), (), ("model.lora.dropout", "no such setting")),
        (
            on_base(base_model, rank=8, adapter_name_or_path=adapter),
            (),
            ("adapter_config.json", "r is 4, model.lora.rank is 8", "set model.lora.rank to 4"),
        ),
        (on_base(base_model, adapter_name_or_path=str(tmp_path / "no")), (), ("no such model directory",)),
        ({}, ("--model.lora.rank", "4"), ("--model.lora.rank", "no section model.lora")),
    ]
    for number, (model, more, words) in enumerate(cases):
        file = write_settings(tmp_path / f"{number}.yaml", model=model)
        code, message = launched([str(file), "--output_dir", str(tmp_path / "run"), *more], capsys)
        assert code == 2
        assert_well_said(message, words)
    assert not list((tmp_path / "run").rglob("*.jsonl"))


def test_experts_are_refused_by_name(base_model):
    mixture = dataclasses.replace(read_config(base_model), num_experts=4, experts_per_token=2)
    with pytest.raises(LoraError, match=r"model\.lora\.targets: \*_proj matches gate_proj, up_proj, down_proj"):
        with_adapters(mixture, LoraConfig())
    assert with_adapters(mixture, LoraConfig(targets=("[qkvo]_proj",))).lora.targets == ("q", "k", "v", "o")


def test_a_new_policy_is_the_base(base_model):
    """To the last bit, and no number of the base is copied."""
    mesh = on_few_devices(MeshConfig())
    config = with_adapters(read_config(base_model), LoraConfig())
    base = load_params(base_model, config, mesh)
    policy = attach(base, init_adapters(config, run_key(0), mesh))
    assert all(policy["layers"][name] is leaf for name, leaf in base["layers"].items())


# --- several processes ---


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    """Metrics, evaluations and the exported adapter, to the byte of its names and 1e-5 of its numbers."""
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "kv-heads": 2, "head-dim": 8, "mlp": 32}
    make_random_model([str(tmp_path / "base"), *(word for k, v in sizes.items() for word in (f"--{k}", str(v)))])
    lines = test_two_processes.SETTINGS.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("model:"))
    model = f"model: {{{{model_name_or_path: {tmp_path / 'base'}, lora: {{{{rank: 2}}}}}}}}"
    settings = "\n".join([*lines[:start], model, *lines[start + 2 :]])
    with mock.patch.object(test_two_processes, "SETTINGS", settings):
        test_two_processes.test_two_processes_do_what_one_does(tmp_path)
    one, two = (load_file(tmp_path / name / "out" / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == 14
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, two[name], atol=1e-5, err_msg=name)


# --- learning ---


@pytest.mark.slow
def test_adapters_learn(tmp_path, workers):
    """The tiny pipeline, taught as a whole and reinforced through adapters of rank 4 alone."""
    tiny = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    whole = {key: value for key, value in tiny.items() if key not in ("rl", "evaluation")}
    model = {"model_name_or_path": str(tmp_path / "whole" / "hf"), "lora": {"rank": 4, "alpha": 8}}
    adapted = {key: value for key, value in tiny.items() if key != "sft"} | {"model": model}
    adapted["rl"] = tiny["rl"] | {"max_steps": 100}
    for name, settings in (("whole", whole), ("adapted", adapted)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        command = load([str(tmp_path / f"{name}.yaml"), "--output_dir", str(tmp_path / name)])
        with mock.patch.object(pipeline, "make_mesh", on_few_devices):
            pipeline.run(command, workers)
    before, after = (
        json.loads((tmp_path / "adapted" / "evaluation" / f"{name}.json").read_text())["metrics"]["mean@8"]["value"]
        for name in ("before", "after")
    )
    assert before < 0.6 and after > before + 0.25
