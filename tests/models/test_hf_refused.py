"""Model directories that are refused: each with a message that names the file and what would be right."""

import json
import pickle
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import TINY, randomized

from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.hf import load_params, read_config, save_params

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="session")
def whole(tmp_path_factory, mesh):
    """A good directory in one file, and one in several."""
    root, params = tmp_path_factory.mktemp("models"), randomized(TINY, mesh)
    return {
        "single": save_params(params, TINY, None, root / "single"),
        "shards": save_params(params, TINY, None, root / "shards", max_shard_bytes=4000),
    }


@pytest.fixture
def single(whole, tmp_path):
    return shutil.copytree(whole["single"], tmp_path / "single")


@pytest.fixture
def shards(whole, tmp_path):
    return shutil.copytree(whole["shards"], tmp_path / "shards")


def refused(folder, mesh, match):
    """Loading fails with this message, short and without more than a path, a reason and a remedy."""
    with pytest.raises(ModelFolderError, match=match) as error:
        load_params(folder, read_config(folder), mesh)
    assert len(str(error.value)) < 700 and "\n" not in str(error.value) and error.value.exit_code == 2


def configured(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewritten(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"config\.json: model_type 'mamba' is unknown; there are llama, qwen2"),
        ({"model_type": None}, r"model_type None is unknown"),
        ({"model_type": "../llama"}, r"model_type '\.\./llama' is unknown"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, r"auto_map .*evil\.Model.* never done; remove the key"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantization_config is set"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, r"rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_type is 'linear'; only the default"),
        ({"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}}, r"rope_type is 'nonsense'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, r"window of 8; only full"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'; only 'silu'"),
        ({"hidden_size": "wide"}, r"config\.json: .*hidden_size.*expected int, got str"),
        ({"num_key_value_heads": 3}, r"config\.json: 4 query heads are not a multiple of 3"),
        ({"hidden_size": 32}, r"tensor model\.embed_tokens\.weight has shape \[34, 16\], .* says \[34, 32\]"),
        ({"num_hidden_layers": 3}, r"12 of 39 tensors are missing: model\.layers\.2\..*, \.\.\.; give a complete"),
        ({"num_hidden_layers": 1}, r"12 tensors that config\.json has no place for: model\.layers\.1"),
        ({"tie_word_embeddings": True}, r"lm_head\.weight differs from .*; set tie_word_embeddings to false"),
    ],
)
def test_config(single, mesh, changes, message):
    configured(single, **changes)
    refused(single, mesh, message)


def test_llama_with_biases(single, mesh):
    configured(single, model_type="llama", attention_bias=True)
    refused(single, mesh, r"attention_bias is true")
    configured(single, attention_bias=False)
    refused(single, mesh, r"6 tensors .* no place for: model\.layers\.0\.self_attn\.k_proj\.bias")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model_type": "qwen2", "hidden_size": ', "\xff"])
def test_broken_config(single, mesh, text):
    (single / "config.json").write_bytes(text.encode("latin-1"))
    refused(single, mesh, r"config\.json: (not valid JSON|holds a list)")


def test_missing_files(single, mesh, tmp_path):
    (single / "model.safetensors").unlink()
    refused(single, mesh, r"single: no weights; expected model\.safetensors, or .*index\.json and the shards")
    (single / "config.json").unlink()
    refused(single, mesh, r"config\.json: missing; a Hugging Face model directory has this file")
    refused(tmp_path / "typo", mesh, r"typo: no such model directory")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", mesh, r"file: a file, not a model directory")


def test_hub_name_without_a_network(mesh):
    refused("nobody/no-such-model-here", mesh, r"^nobody/no-such-model-here: no such directory here, and the .* hub")


def test_pickles_are_never_opened(single, mesh, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    (single / "model.safetensors").unlink()
    (single / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused(single, mesh, r"weights only as pickle \(pytorch_model\.bin\).* never opened; convert them")
    assert not (tmp_path / "canary").exists()


def test_missing_and_surplus_tensors(single, mesh):
    rewritten(single, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    refused(single, mesh, r"1 of 27 tensors are missing: model\.layers\.1\.mlp\.up_proj\.weight; give a complete")


def test_missing_head_names_the_setting(single, mesh):
    rewritten(single, lambda t: t.pop("lm_head.weight"))
    refused(single, mesh, r"lm_head\.weight; .* set tie_word_embeddings to true")


def test_surplus_tensor(single, mesh):
    rewritten(single, lambda t: t.update(extra=np.ones(2, np.float32)))
    refused(single, mesh, r"model\.safetensors: 1 tensors that config\.json has no place for: extra;")


def test_wrong_shape(single, mesh):
    rewritten(single, lambda t: t.update({"model.norm.weight": np.ones(17, np.float32)}))
    refused(single, mesh, r"model\.safetensors: tensor model\.norm\.weight has shape \[17\], .* says \[16\]")


def test_transposed_of_equal_size(single, mesh):
    name = "model.layers.0.mlp.down_proj.weight"
    rewritten(single, lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
    refused(single, mesh, r"down_proj\.weight has shape \[20, 16\], config\.json says \[16, 20\]")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(single, mesh, value):
    rewritten(single, lambda t: t["model.layers.1.self_attn.q_proj.bias"].__setitem__(3, value))
    refused(single, mesh, r"tensor model\.layers\.1\.self_attn\.q_proj\.bias holds NaN or infinity")


def test_integers(single, mesh):
    rewritten(single, lambda t: t.update({"model.norm.weight": np.ones(16, np.int8)}))
    refused(single, mesh, r"tensor model\.norm\.weight is I8; quantized weights are not read")


def test_cut_and_hostile_files(single, mesh):
    path = single / "model.safetensors"
    good = path.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    overlapping = header | {names[1]: header[names[1]] | {"data_offsets": header[names[0]]["data_offsets"]}}
    too_big = header | {names[0]: header[names[0]] | {"shape": [2**40]}}

    def packed(header):
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + size :]

    cut, short, huge = good[:-1], good[:100], struct.pack("<Q", 2**63) + good[8:]
    for bad in (cut, short, huge, b"", b"x" * 500, good + b"tail", packed(overlapping), packed(too_big)):
        path.write_bytes(bad)
        refused(single, mesh, rf"model\.safetensors: {len(bad)} bytes that are not a whole safetensors file")


def test_shards(shards, mesh):
    files = sorted(shards.glob("*.safetensors"))
    load_params(shards, read_config(shards), mesh)
    data = files[1].read_bytes()
    files[1].write_bytes(data[:-4])
    refused(shards, mesh, rf"{files[1].name}: {len(data) - 4} bytes that are not a whole safetensors file")
    files[1].unlink()
    refused(shards, mesh, rf"{files[1].name}: missing, one of {len(files)} shards in {INDEX}; download it")
    shutil.copy(files[0], files[1])
    refused(shards, mesh, rf"{files[1].name}: tensor \S+ is also in .*{files[0].name}; keep one of them")


def test_index(shards, mesh):
    index = json.loads((shards / INDEX).read_text())
    names = list(index["weight_map"])

    def with_map(changes):
        (shards / INDEX).write_text(json.dumps(index | {"weight_map": changes}))

    wrong = index["weight_map"] | {names[0]: index["weight_map"][names[-1]]}
    with_map(wrong)
    refused(shards, mesh, rf"has no tensor {names[0]}, which {INDEX} puts there")
    with_map({names[0]: "../single/model.safetensors"})
    refused(shards, mesh, r"'\.\./single/model\.safetensors' is not a plain file name")
    for broken in (None, {}, {"a": 1}):
        with_map(broken)
        refused(shards, mesh, rf"{INDEX}: no weight_map of file names")
    (shards / INDEX).unlink()
    refused(shards, mesh, rf"has model-00001.* but no {INDEX} to say what is in them")
