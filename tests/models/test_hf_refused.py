"""Model directories that are refused: each with a message that names the file and what would be right.

python -m pytest tests/models/test_hf_refused.py -s      # prints the table of hostile directories and messages
"""

import json
import os
import pickle
import shutil
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import TINY, randomized

from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.hf import load_params, read_config, save_params
from launch.train import main
from tests.make_random_model import main as make_random_model

INDEX = "model.safetensors.index.json"
CODE = "open(__import__('os').environ['CANARY'], 'w')"  # what a directory would like to run


class Evil:
    """Its pickle, when it is opened, writes the canary."""

    def __reduce__(self):
        return (eval, (CODE,))


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


def indexed(folder, weight_map):
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def rewritten(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"config\.json: model_type 'mamba' is unknown; there are .*llama.*qwen2"),
        ({"model_type": None}, r"model_type None is unknown"),
        ({"model_type": "../llama"}, r"model_type '\.\./llama' is unknown"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, r"auto_map .*evil\.Model.* never done; remove the key"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantization_config is set"),
        ({"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}}, r"rope_type is 'nonsense'; there are"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'; there are silu"),
        ({"num_attention_heads": 0}, r"config\.json: num_attention_heads is 0; it lies between 1 and"),
        ({"num_hidden_layers": 10**12}, r"config\.json: num_hidden_layers is 1000000000000; it lies between"),
        ({"rms_norm_eps": None}, r"config\.json: "),
        ({"hidden_size": "wide"}, r"config\.json: .*hidden_size.*expected int, got str"),
        ({"num_key_value_heads": 3}, r"config\.json: 4 query heads are not a multiple of 3"),
        ({"hidden_size": 32}, r"tensor model\.embed_tokens\.weight has shape \[34, 16\], .* says \[34, 32\]"),
        (
            {"num_hidden_layers": 3, "layer_types": None},
            r"12 of 39 tensors are missing: model\.layers\.2\..*, \.\.\.; give a complete",
        ),
        (
            {"num_hidden_layers": 1, "layer_types": None},
            r"12 tensors that config\.json has no place for: model\.layers\.1",
        ),
        ({"tie_word_embeddings": True}, r"lm_head\.weight differs from .*; set tie_word_embeddings to false"),
    ],
)
def test_config(single, mesh, changes, message):
    configured(single, **changes)
    refused(single, mesh, message)


def test_llama_with_biases(single, mesh):
    configured(single, model_type="llama", attention_bias=True)
    refused(single, mesh, r"2 of 29 tensors are missing: model\.layers\.0\.self_attn\.o_proj\.bias")
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


def test_pickles_are_never_opened(single, mesh, tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    (single / "model.safetensors").unlink()
    (single / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused(single, mesh, r"weights only as pickle \(pytorch_model\.bin\).* never opened; convert them")
    assert not (tmp_path / "canary").exists()
    pickle.loads((single / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "canary").exists(), "it would have run"


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


@pytest.mark.parametrize(("dtype", "code"), [(np.int8, "I8"), (ml_dtypes.float8_e4m3fn, "F8_E4M3"), (bool, "BOOL")])
def test_types_that_are_no_weights(single, mesh, dtype, code):
    rewritten(single, lambda t: t.update({"model.norm.weight": np.ones(16, dtype)}))
    refused(single, mesh, rf"tensor model\.norm\.weight is {code}; quantized weights are not read")


def parts(path):
    """The header of a safetensors file, as an object, and its data."""
    good = path.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    return json.loads(good[8 : 8 + size]), good[8 + size :]


def packed(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_cut_and_hostile_files(single, mesh):
    path = single / "model.safetensors"
    good = path.read_bytes()
    header, data = parts(path)
    first, second = [name for name in header if name != "__metadata__"][:2]

    def changed(name, **about):
        return packed(header | {name: header[name] | about}, data)

    cut, short, huge = good[:-1], good[:100], struct.pack("<Q", 2**63) + good[8:]
    overlapping = changed(second, data_offsets=header[first]["data_offsets"])
    backwards = changed(first, data_offsets=header[first]["data_offsets"][::-1])
    negative = changed(first, data_offsets=[-8, header[first]["data_offsets"][1]])
    far = changed(first, data_offsets=[2**62, 2**62 + 8])
    nested = packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", data)
    twice = packed(json.dumps(header).encode()[:-1] + b"," + json.dumps({first: header[first]}).encode()[1:], data)
    sizes = (changed(first, shape=[2**40]), changed(first, shape=[2**33, 2**33]), changed(first, shape=[-1]))
    bads = [cut, short, huge, b"", b"x" * 500, good + b"tail", overlapping, backwards, negative, far, nested, twice]
    for bad in [*bads, *sizes, packed(b"{}", b"abc"), packed(b"[]", b""), packed(b"\xff\xfe", b"")]:
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
    for name in ("/etc/passwd", "..", ".", "", "a/b.safetensors", "pytorch_model.bin", "\0.safetensors", "x" * 300):
        with_map({names[0]: name})
        refused(shards, mesh, r"is not a plain file name that ends in \.safetensors; no other file is opened")
    for broken in (None, {}, {"a": 1}):
        with_map(broken)
        refused(shards, mesh, rf"{INDEX}: no weight_map of file names")
    (shards / INDEX).unlink()
    refused(shards, mesh, rf"has model-00001.* but no {INDEX} to say what is in them")


def test_what_is_read_all_the_same(single, mesh, tmp_path):
    """A hub cache is a directory of links into another; tensors may start at any byte."""
    config = read_config(single)
    expected = load_params(single, config, mesh)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    shutil.copytree(single, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    header, data = parts(single / "model.safetensors")
    text = json.dumps(header).encode()
    text += b" " * (1 - len(text) % 2)  # an odd length: no tensor is aligned
    (blobs / "model.safetensors").write_bytes(packed(text, data))
    for got in (
        load_params(snapshot, read_config(snapshot), mesh),
        load_params(snapshot, config, mesh, dtype="float32"),
    ):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)


def hostile_header(**changes):
    """Rewrite the header of the weights: `first` is about its first tensor, `text` a function of all of it."""

    def spoil(folder):
        path = folder / "model.safetensors"
        header, data = parts(path)
        name = next(name for name in header if name != "__metadata__")
        header[name] |= {key: value for key, value in changes.items() if key != "text"}
        text = changes.get("text", lambda name, header: json.dumps(header))(name, header)
        path.write_bytes(packed(text.encode(), data))

    return spoil


def replaced(name, make):
    """Put something else in the place of a file."""

    def spoil(folder):
        (folder / name).unlink()
        make(folder / name)

    return spoil


def tensor(name, change):
    """Change a tensor of the weights, or remove it (None)."""

    def spoil(folder):
        def edit(tensors):
            value = change(tensors.pop(name, None))
            tensors.update({} if value is None else {name: value})

        rewritten(folder, edit)

    return spoil


def set_nan(array):
    array[3] = np.nan
    return array


def brings_code(folder):
    configured(folder, auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, model_type="evil")
    (folder / "evil.py").write_text(CODE)


def tokenizer_brings_code(folder):
    path = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["evil.T", "evil.T"]}
    given = json.loads(path.read_text()) | {"auto_map": auto_map, "tokenizer_class": "EvilTokenizer"}
    path.write_text(json.dumps(given))
    (folder / "evil.py").write_text(CODE)


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def pickle_as_safetensors(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil()))


def twice_in_header(name, header):
    return json.dumps(header)[:-1] + "," + json.dumps({name: header[name] | {"shape": header[name]["shape"][::-1]}})[1:]


def untied_head(folder):
    configured(folder, tie_word_embeddings=True)
    tensor("lm_head.weight", lambda a: a + 1)(folder)


EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
HOSTILE = {  # what is wrong: (how to make it so, words of the message)
    "weights only as pickle": (only_pickle, ("pytorch_model.bin", "can run code", "never opened", "convert")),
    "a pickle called safetensors": (pickle_as_safetensors, ("model.safetensors", "not a whole safetensors file")),
    "auto_map: remote code": (brings_code, ("config.json", "evil.M", "never done", "remove the key")),
    "a tokenizer with remote code": (tokenizer_brings_code, ("tokenizer",)),
    "weights cut short": (
        lambda f: os.truncate(f / "model.safetensors", 2000),
        ("model.safetensors", "2000 bytes", "download it again"),
    ),
    "header of 2**63 bytes": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}"),
        ("model.safetensors", "10 bytes that are not a whole safetensors file", "download"),
    ),
    "header that is no JSON": (hostile_header(text=lambda *_: "{'a': 1}"), ("model.safetensors", "not a whole")),
    "header nested 100000 deep": (
        hostile_header(text=lambda *_: '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        ("model.safetensors", "not a whole safetensors file"),
    ),
    "the same tensor twice in a header": (
        hostile_header(text=twice_in_header),
        ("model.safetensors", "not a whole safetensors file", "duplicate key model.embed_tokens.weight"),
    ),
    "overlapping offsets": (hostile_header(data_offsets=[8, 40]), ("model.safetensors", "not a whole")),
    "negative offsets": (hostile_header(data_offsets=[-8, 40]), ("model.safetensors", "not a whole")),
    "a shape of 2**66 numbers": (hostile_header(shape=[2**33, 2**33]), ("model.safetensors", "not a whole")),
    "index that leaves the directory": (
        lambda f: indexed(f, {EMBED: "../../../../etc/passwd"}),
        (INDEX, "'../../../../etc/passwd'", "not a plain file name", "no other file is opened"),
    ),
    "index to a pickle": (
        lambda f: (only_pickle(f), indexed(f, {EMBED: "pytorch_model.bin"})),
        (INDEX, "'pytorch_model.bin'", "no other file is opened"),
    ),
    "index to a shard that is not there": (
        lambda f: indexed(f, {EMBED: "model-00001-of-00002.safetensors"}),
        ("model-00001-of-00002.safetensors: missing", INDEX, "download it"),
    ),
    "weights that are a pipe": (replaced("model.safetensors", os.mkfifo), ("model.safetensors", "not a regular file")),
    "weights that never end": (
        replaced("model.safetensors", lambda p: p.symlink_to("/dev/zero")),
        ("model.safetensors", "not a regular file"),
    ),
    "a tensor is missing": (tensor(EMBED, lambda a: None), (EMBED, "1 of 15", "missing", "complete model directory")),
    "a tensor too many": (tensor("extra", lambda a: np.ones(3)), ("extra", "no place for", "different models")),
    "wrong shape": (tensor(NORM, lambda a: a[:15]), (NORM, "[15]", "[16]", "different models")),
    "quantized": (
        tensor(NORM, lambda a: a.astype(np.int8)),
        ("model.safetensors", NORM, "I8", "F32, F16, BF16, F64"),
    ),
    "NaN": (tensor(NORM, set_nan), ("model.safetensors", NORM, "NaN or infinity", "get whole weights")),
    "a tied head that differs": (untied_head, (HEAD, EMBED, "differs", "set tie_word_embeddings to false")),
    "a name that moves the cursor": (
        tensor("\x1b[2J\x1b[Hall is well\n", lambda a: np.ones(3)),
        (r"\x1b[2J\x1b[Hall is well\n", "no place for"),
    ),
    "a name of a million letters": (tensor("x" * 10**6, lambda a: np.ones(3)), ("xxx", "different models")),
    "10**12 layers": (
        lambda f: configured(f, num_hidden_layers=10**12),
        ("config.json", "num_hidden_layers is 1000000000000", "between 1 and 10000"),
    ),
    "no heads": (lambda f: configured(f, num_attention_heads=0), ("config.json", "num_attention_heads is 0")),
    "config nested 100000 deep": (
        lambda f: (f / "config.json").write_text("[" * 100_000 + "]" * 100_000),
        ("config.json", "not valid JSON", "download"),
    ),
    "config with a number of 10000 digits": (
        lambda f: (f / "config.json").write_text('{"hidden_size": ' + "9" * 10_000 + "}"),
        ("config.json", "not valid JSON"),
    ),
    "config that is a pipe": (replaced("config.json", os.mkfifo), ("config.json", "not a regular file")),
    "quantization_config": (
        lambda f: configured(f, quantization_config={"quant_method": "gptq"}),
        ("config.json", "quantization_config", "before quantization"),
    ),
}
RUN = """
prompt: {format: text, max_prompt_length: 64}
rl:
  source: {kind: arithmetic, size: 64}
  algorithm: {kind: grpo}
  rewards: [{kind: accuracy}]
  max_steps: 1
  prompts_per_step: 8
  num_generations: 2
  sampling: {max_completion_length: 4}
"""


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """A whole random Qwen2 directory, with its tokenizer and a head of its own."""
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    sizes = {"vocab": 300, "hidden": 16, "layers": 1, "heads": 4, "kv-heads": 2, "head-dim": 4, "mlp": 16}
    flags = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    make_random_model([str(folder), "--untied", *flags])
    return folder


@pytest.fixture(scope="module")
def told():
    """The table, printed at the end."""
    lines: list[tuple[str, int, str]] = []
    yield lines
    for name, code, message in lines:
        print(f"\n{name} -> exit {code}\n    {message.strip()}")


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: name.replace(" ", "_"))
def test_hostile_directory(name, qwen2, tmp_path, capsys, monkeypatch, told):
    """What a user sees who starts a run on it: one line, no traceback, and nothing was run or written."""
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    folder = shutil.copytree(qwen2, tmp_path / "model")
    spoil, words = HOSTILE[name]
    spoil(folder)
    (tmp_path / "run.yaml").write_text(RUN)
    capsys.readouterr()
    code = main(
        [str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "run"), "--model.model_name_or_path", str(folder)]
    )
    message = capsys.readouterr().err
    told.append((name, code, message.replace(str(tmp_path) + "/", "")))
    assert code == 2 and message.startswith("error: ") and message.count("\n") == 1 and len(message) < 1000
    assert "Traceback" not in message and message.strip().isprintable()
    for word in words:
        assert word in message
    assert not (tmp_path / "canary").exists()


def test_an_adapter_or_a_run_is_no_model(single, tmp_path):
    """They are named, and what to give instead."""
    adapter, run = tmp_path / "adapter", tmp_path / "run"
    for folder in (adapter, run, run / "tokenizer"):
        folder.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (run / "config.yaml").write_text("seed: 0")
    cases = [
        (adapter, r"a PEFT adapter, not a model; give its base \(owner/base\) as model.model_name_or_path"),
        (run, "the output_dir of a run, not a model directory; it has left no policy yet; let it finish"),
        (single / "..", "config.json: missing; a Hugging Face model directory has this file"),
    ]
    for folder, match in cases:
        with pytest.raises(ModelFolderError, match=match):
            read_config(folder)
    shutil.copytree(adapter, run / "adapter")
    both = rf"give its base \(owner/base\) as model.model_name_or_path, and {run}/adapter as model.lora.adapter_name"
    with pytest.raises(ModelFolderError, match=both):
        read_config(run)
    shutil.copytree(single, run / "hf")
    with pytest.raises(ModelFolderError, match=f"give what it has left, {run}/hf"):
        read_config(run)
    assert read_config(run / "hf")
