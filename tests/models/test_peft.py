"""Adapters as PEFT directories: bit for bit there and back, equal logits in peft, and what is refused."""

import dataclasses
import importlib.util
import json
import os
import shutil

import awkward_models
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import TINY, ragged, randomized
from test_lora import ALL, CONFIG, trained

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.hf import load_params, save_params
from grpo_jax.models.logprobs import next_token_logits
from grpo_jax.models.lora import Lora, attach, choose_targets
from grpo_jax.models.peft import SETTINGS, WEIGHTS, check_adapters, load_adapters, read_lora, save_adapters
from tests.make_random_model import make_tokenizer
from tests.tiny import mesh_of

needs_peft = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "peft"))), reason="install with .[parity] to compare with peft"
)
LLAMA = dataclasses.replace(TINY, family="llama", qkv_bias=False, tie_word_embeddings=True)
NAME = "base_model.model.model.layers.{}.{}.lora_{}.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mesh):
    """A directory and the adapters in it."""
    adapters = trained(CONFIG, mesh)
    path = tmp_path_factory.mktemp("saved") / "adapter"
    return save_adapters(adapters, CONFIG, path, base_name="owner/base", tokenizer=None), adapters


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "adapter")


# --- there and back ---


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_there_and_back_bit_for_bit(saved, tmp_path, sizes):
    """From any mesh onto any mesh; the files are the same to the byte."""
    path, adapters = saved
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        loaded = load_adapters(path, CONFIG, mesh)
        again = save_adapters(loaded, CONFIG, tmp_path / "again", base_name="owner/base", tokenizer=None)
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)
    assert (again / WEIGHTS).read_bytes() == (path / WEIGHTS).read_bytes()
    assert (again / SETTINGS).read_text() == (path / SETTINGS).read_text()


def test_names_shapes_and_settings(saved):
    path, adapters = saved
    tensors = load_file(path / WEIGHTS)
    assert len(tensors) == 2 * len(ALL) * TINY.num_layers and {t.dtype for t in tensors.values()} == {np.dtype("f")}
    a, b = (tensors[NAME.format(1, "self_attn.o_proj", half)] for half in "AB")
    np.testing.assert_array_equal(a, np.asarray(adapters["o"]["a"])[1].reshape(3, -1))
    np.testing.assert_array_equal(b, np.asarray(adapters["o"]["b"])[1].T)
    assert tensors[NAME.format(0, "mlp.down_proj", "A")].shape == (3, 20)
    settings = json.loads((path / SETTINGS).read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (3, 4.5, False)
    assert settings["base_model_name_or_path"] == "owner/base" and settings["peft_type"] == "LORA"
    assert settings["target_modules"] == [f"{target}_proj" for target in ALL]
    assert read_lora(path) == CONFIG.lora


def test_a_tokenizer_goes_along_and_nothing_is_overwritten(saved, tmp_path):
    _, adapters = saved
    path = save_adapters(adapters, CONFIG, tmp_path / "a", base_name="b", tokenizer=make_tokenizer(300))
    assert (path / "tokenizer.json").exists()
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    with pytest.raises(ModelFolderError, match="exists and is not overwritten"):
        save_adapters(adapters, CONFIG, path, base_name="b", tokenizer=None)
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# --- peft ---


def our_logits(config, params, batch):
    model = Decoder(config)
    hidden, _ = jax.jit(lambda p: model.apply({"params": p}, batch))(params)
    return np.asarray(next_token_logits(model, params, hidden))


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens).long()).logits.float().numpy()


def with_adapter(config, mesh, folder, **lora):
    """Base and adapter of a config, and their directories."""
    config = dataclasses.replace(config, lora=Lora(rank=4, alpha=6, **lora))
    base, adapters = randomized(config, mesh), trained(config, mesh, seed=2)
    save_params(base, config, None, folder / "base")
    save_adapters(adapters, config, folder / "adapter", base_name=str(folder / "base"), tokenizer=None)
    return config, base, adapters


@pytest.fixture(scope="module")
def table():
    """A line a model, printed at the end."""
    lines = []
    yield lines
    print("\nlargest difference of a logit between peft and ours, with adapters")
    print("".join(f"{name:<42} {' '.join(targets):<24} {gap:8.1e}\n" for name, targets, gap in lines))


@needs_peft
@pytest.mark.parametrize("name", awkward_models.CASES)
def test_peft_computes_the_same(name, tmp_path, mesh, table):
    """Every family, on all projections that can have adapters; every other one with rsLoRA."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = awkward_models.decoder_config(name)
    targets = choose_targets(["[qkvo]_proj" if config.num_experts else "*"], experts=bool(config.num_experts))
    rslora = list(awkward_models.CASES).index(name) % 2 == 1
    config, base, adapters = with_adapter(config, mesh, tmp_path, targets=targets, rslora=rslora)
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, (3, 24))  # beyond the original context
    batch = ragged(tokens, [24] * 3)
    ours = our_logits(config, attach(base, adapters), batch)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **eager)
    theirs = torch_logits(PeftModel.from_pretrained(theirs, tmp_path / "adapter"), tokens)
    table.append((name, targets, np.abs(theirs - ours).max()))
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert np.abs(our_logits(config, base, batch) - ours).max() > 0.1


@needs_peft
@pytest.mark.parametrize("targets", [("q", "v"), ("o", "gate")], ids="-".join)
def test_any_subset_of_projections(targets, tmp_path, mesh):
    from peft import AutoPeftModelForCausalLM

    config, base, adapters = with_adapter(TINY, mesh, tmp_path, targets=targets)
    tokens = np.random.default_rng(3).integers(0, 34, (3, 9))
    ours = our_logits(config, attach(base, adapters), ragged(tokens, [9] * 3))
    theirs = torch_logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"), tokens)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


@needs_peft
def test_an_adapter_that_peft_has_written(tmp_path, mesh):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = randomized(LLAMA, mesh)
    save_params(base, LLAMA, None, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear", lora_dropout=0.1)
    model = get_peft_model(model, settings).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")

    lora = read_lora(tmp_path / "adapter")
    assert lora == Lora(rank=4, alpha=8, rslora=True, targets=ALL)
    config = dataclasses.replace(LLAMA, lora=lora)
    params = attach(load_params(tmp_path / "base", config, mesh), load_adapters(tmp_path / "adapter", config, mesh))
    tokens = np.random.default_rng(4).integers(0, 34, (2, 7))
    ours = our_logits(config, params, ragged(tokens, [7, 7]))
    np.testing.assert_allclose(torch_logits(model, tokens), ours, atol=1e-4)


@needs_peft
def test_a_bfloat16_base_keeps_the_adapter_exactly(tmp_path, mesh, capsys):
    """In peft as here the adapter stays float32 beside a base of bfloat16; how far apart the two then are is said."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    half_precision = dataclasses.replace(TINY, dtype="bfloat16")
    config, _, adapters = with_adapter(half_precision, mesh, tmp_path, targets=ALL)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(half, tmp_path / "adapter")
    state = {name.replace(".default", ""): t for name, t in model.state_dict().items() if "lora_" in name}
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert state[name].dtype == torch.float32
        np.testing.assert_array_equal(state[name].numpy(), tensor, err_msg=name)
    tokens = np.random.default_rng(3).integers(0, 34, (3, 9))
    loaded = load_params(tmp_path / "base", config, mesh, dtype="bfloat16")
    ours = our_logits(config, attach(loaded, adapters), ragged(tokens, [9, 9, 9]))
    gap = [jax.nn.log_softmax(logits)[..., 0] for logits in (ours, torch_logits(model, tokens))]
    with capsys.disabled():
        print(f"\nbfloat16: log-probabilities of peft differ by {np.abs(gap[0] - gap[1]).mean():.1e} in the mean")
    assert np.abs(gap[0] - gap[1]).mean() < 0.05


# --- refused ---


def edit(folder, **changes):
    path = folder / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"use_dora": True}, "use_dora True is not computed here"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"some_new_way": {"x": 1}}, "some_new_way"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"r": "3"}, "r '3', lora_alpha 4.5.*whole number"),
        ({"r": 8}, "r is 8, model.lora.rank is 3; set model.lora.rank to 8"),
        ({"lora_alpha": 3}, "lora_alpha is 3, model.lora.alpha is 4.5"),
        ({"use_rslora": True}, "use_rslora is True, model.lora.rslora is False"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_settings_that_are_refused(copy, changes, words):
    edit(copy, **changes)
    with pytest.raises(ModelFolderError, match=words):
        check_adapters(copy, CONFIG)


def test_what_lies_idle_is_not_refused(copy):
    edit(copy, lora_dropout=0.05, init_lora_weights="gaussian", revision="main", megatron_core="megatron.core")
    edit(copy, peft_version="0.21.2", target_modules="all-linear", loftq_config={}, alpha_pattern={}, lora_bias=False)
    check_adapters(copy, CONFIG)


def test_other_targets_are_refused(copy):
    fewer = dataclasses.replace(CONFIG, lora=dataclasses.replace(CONFIG.lora, targets=("q", "v")))
    with pytest.raises(ModelFolderError, match=r"adapts q_proj, .*down_proj, model\.lora\.targets are q_proj, v_proj"):
        check_adapters(copy, fewer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NAME.format(1, "mlp.up_proj", "B")), r"1 of 28 tensors are missing.*layers\.1\.mlp\.up_proj"),
        (lambda t: t.update({NAME.format(2, "mlp.up_proj", "B"): np.ones((3, 20), "f")}), "no place for.*layers.2"),
        (lambda t: t.update({"base_model.model.lm_head.weight": np.ones((3, 20), "f")}), "no place for.*lm_head"),
        (lambda t: t.update({NAME.format(0, "self_attn.q_proj", "A"): np.ones((3, 20), "f")}), r"\[3, 20\].*\[3, 16\]"),
        (lambda t: t.update({NAME.format(0, "self_attn.q_proj", "A"): np.ones((3, 16), "i4")}), "is I32"),
    ],
    ids=["missing", "another layer", "another module", "shape", "type"],
)
def test_tensors_that_are_refused(copy, change, words):
    tensors = load_file(copy / WEIGHTS)
    change(tensors)
    save_file(tensors, copy / WEIGHTS)
    with pytest.raises(ModelFolderError, match=words):
        check_adapters(copy, CONFIG)


def test_numbers_that_are_none(copy, mesh):
    tensors = load_file(copy / WEIGHTS)
    save_file(tensors | {NAME.format(0, "self_attn.q_proj", "A"): np.full((3, 16), np.nan, "f")}, copy / WEIGHTS)
    with pytest.raises(ModelFolderError, match=r"q_proj\.lora_A\.weight holds NaN"):
        load_adapters(copy, CONFIG, mesh)


def test_files_that_are_refused(copy):
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:-8])
    with pytest.raises(ModelFolderError, match="not a whole safetensors file"):
        check_adapters(copy, CONFIG)
    os.rename(copy / WEIGHTS, copy / "adapter_model.bin")
    with pytest.raises(ModelFolderError, match=r"no adapter_model\.safetensors; adapter_model\.bin is never opened"):
        check_adapters(copy, CONFIG)
    (copy / SETTINGS).unlink()
    with pytest.raises(ModelFolderError, match=r"adapter_config\.json: missing"):
        check_adapters(copy, CONFIG)
