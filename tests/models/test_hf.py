"""Hugging Face directories: logits equal torch's golden ones; what is written reads back bit by bit."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from small_models import TINY, ragged, randomized

from grpo_jax.config import MeshConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.hf import _family, family_names, load_params, read_config, save_params
from grpo_jax.models.layout import Stored, boxes, stored_shape, stored_slices, stored_tensors, to_stored
from grpo_jax.models.logprobs import next_token_logits
from grpo_jax.models.parameters import abstract_params, parameter_table
from grpo_jax.sharding import ShardingError, make_mesh

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TIED = dataclasses.replace(TINY, tie_word_embeddings=True)
LLAMA = dataclasses.replace(TINY, family="llama", qkv_bias=False)
SCALAR = dataclasses.replace(TINY, head="scalar")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("scan", [True, False])
def test_logits_equal_golden_ones(mesh, forward, family, scan):
    arrays = np.load(GOLDEN / "models_logits.npz")
    tokens, mask, expected = (arrays[f"{family}_{name}"] for name in ("tokens", "mask", "logits"))
    config = read_config(GOLDEN / f"models_{family}", scan_layers=scan)
    params = load_params(GOLDEN / f"models_{family}", config, mesh)
    model = Decoder(config)
    logits = next_token_logits(model, params, forward(model, params, ragged(tokens, mask.sum(1))))
    assert np.abs(expected[mask]).max() > 3, "the golden model says something"
    np.testing.assert_allclose(np.asarray(logits)[mask], expected[mask], atol=1e-4)


def test_config_of_the_golden_models():
    llama = read_config(GOLDEN / "models_llama", dtype="bfloat16", remat="full")
    assert (llama.head_dim, llama.num_kv_heads, llama.rope.rope_theta, llama.qkv_bias) == (8, 1, 500.0, False)
    assert (llama.dtype, llama.remat, llama.tie_word_embeddings) == ("bfloat16", "full", False)
    qwen2 = read_config(GOLDEN / "models_qwen2")
    assert (qwen2.head_dim, qwen2.qkv_bias, qwen2.tie_word_embeddings) == (10, True, True)


def test_spellings_of_transformers_4_and_5_agree(tmp_path):
    shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 5}
    shape |= {"model_type": "qwen2", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": None}
    old = shape | {"rope_theta": 77.0, "rope_scaling": None, "torch_dtype": "bfloat16", "sliding_window": 64}
    new = shape | {"rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}, "dtype": "bfloat16"}
    configs = []
    for name, fields in (("old", old | {"use_sliding_window": False}), ("new", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(fields))
        configs.append(read_config(tmp_path / name))
    assert configs[0] == configs[1] and (configs[0].rope.rope_theta, configs[0].head_dim) == (77.0, 4)


@pytest.mark.parametrize("config", [TINY, TIED, LLAMA, SCALAR], ids=["untied", "tied", "llama", "scalar"])
def test_export_and_import_are_bit_identical(tmp_path, mesh, config):
    params = randomized(config, mesh)
    save_params(params, config, None, tmp_path / "a")
    again = read_config(tmp_path / "a", head=config.head)
    assert again == config
    loaded = load_params(tmp_path / "a", again, mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    save_params(loaded, again, None, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_shards_on_a_mesh_read_back_on_another(tmp_path, mesh):
    """Written from eight devices in many files, read on four: every device holds its slice of the same numbers."""
    eight = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    four = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    params = randomized(TINY, eight)
    folder = save_params(params, TINY, None, tmp_path / "m", max_shard_bytes=4000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3 and {f.name for f in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(4 * x.size for x in jax.tree.leaves(params))
    assert safe_open(files[0], "np").metadata() == {"format": "pt"}
    for devices in (four, eight, mesh):
        loaded = load_params(folder, TINY, devices)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)
        assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(
            lambda x: x.sharding, abstract_params(TINY, devices)
        )


def test_a_mesh_that_does_not_divide_is_refused_before_reading(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ShardingError, match=r"embed: a dimension of 34 .* size 4"):
        load_params(tmp_path, TINY, make_mesh(MeshConfig(fsdp=1, tensor=4), jax.devices()[:4]))


def test_bfloat16_files_hold_the_rounded_numbers(tmp_path, mesh):
    params = randomized(TINY, mesh)
    folder = save_params(params, TINY, None, tmp_path / "m", dtype="bfloat16")
    file = safe_open(folder / "model.safetensors", "np")
    assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    loaded = load_params(folder, TINY, mesh)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_half_precision_and_copied_heads_are_read(tmp_path, mesh):
    """Tied files that repeat the embedding as a head, and old rotary tables, are harmless."""
    from safetensors.numpy import load_file, save_file

    params = randomized(TIED, mesh)
    folder = save_params(params, TIED, None, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, folder / "model.safetensors")
    loaded = load_params(folder, TIED, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), loaded, params)


def random_model():
    """The script `tests/make_random_model.py` as a module."""
    spec = importlib.util.spec_from_file_location("make_random_model", GOLDEN.parent / "make_random_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_random_model_is_a_whole_model_directory(tmp_path, mesh, capsys):
    from transformers import AutoTokenizer, GenerationConfig

    random_model().main([str(tmp_path / "m"), "--hidden", "8", "--layers", "1", "--dtype", "bfloat16"])
    assert "qwen2, " in capsys.readouterr().out
    config = read_config(tmp_path / "m")
    params = load_params(tmp_path / "m", config, mesh)
    assert params["embed"].shape == (512, 8) and config.tie_word_embeddings and config.qkv_bias
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == ends
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (*ends, 512)
    messages = [{"role": "user", "content": "What is 12 + 7, in 1 step?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is 12 + 7, in 1 step?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text)["input_ids"]
    assert ids.count(ends[0]) == 2 and max(ids) < 512 and tokenizer.decode(ids) == text
    odd = "naïve 数学 ∑ \\frac{1}{2}\t\n\n  x"
    assert tokenizer.decode(tokenizer(odd)["input_ids"]) == odd


def test_tokenizer_and_generation_settings_are_written(tmp_path, mesh):
    from transformers import AutoTokenizer

    tokenizer = random_model().make_tokenizer(300)
    config = dataclasses.replace(LLAMA, vocab_size=300)  # of type qwen2 transformers would take another pre-tokenizer
    generation = {"eos_token_id": [299, 297], "temperature": 0.5}
    params = randomized(config, mesh)
    given = save_params(params, config, tokenizer, tmp_path / "given", generation_config=generation)
    assert json.loads((given / "generation_config.json").read_text()) == generation
    own = save_params(params, config, tokenizer, tmp_path / "own")
    ids = {"eos_token_id": 299, "pad_token_id": 297}
    assert json.loads((own / "generation_config.json").read_text()) == ids
    assert json.loads((own / "config.json").read_text()).items() >= ids.items()
    text = "Natalia sold 48/2 = 24 clips."
    read = AutoTokenizer.from_pretrained(own)
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (own / "chat_template.jinja").read_text() == tokenizer.chat_template
    again = save_params(load_params(own, config, mesh), read_config(own), read, tmp_path / "again")
    assert {file.name for file in again.iterdir()} == {file.name for file in own.iterdir()}
    for file in own.iterdir():  # transformers adds to tokenizer_config.json how the tokenizer was loaded
        assert file.name == "tokenizer_config.json" or file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path, mesh, monkeypatch):
    params = randomized(TINY, mesh)
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match=r"old: exists and is not overwritten"):
        save_params(params, TINY, None, tmp_path / "old")

    def fail(*_, **__):
        raise OSError("disk is gone")

    monkeypatch.setattr("grpo_jax.models.export._write_file", fail)
    with pytest.raises(OSError, match="disk is gone"):
        save_params(params, TINY, None, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    monkeypatch.setattr("grpo_jax.models.export.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match=r"10 bytes free, the model needs \d+; make room"):
        save_params(params, TINY, None, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_layouts_and_slices_agree():
    stored, rng = Stored("q", "nh d", "dnh"), np.random.default_rng(0)
    ours = rng.normal(size=(6, 4, 3))
    tensor = to_stored(stored, ours)
    assert tensor.shape == stored_shape(stored, ours.shape) == (12, 6)
    assert tensor[2 * 3 + 1, 5] == ours[5, 2, 1]
    wanted = (slice(2, 5), slice(1, 3), slice(None))
    part = tensor[stored_slices(stored, ours.shape, wanted)]
    np.testing.assert_array_equal(part, to_stored(stored, ours[wanted]))
    with pytest.raises(ValueError, match="can be split along 'n', not 'h'"):
        stored_slices(stored, ours.shape, (slice(None), slice(None), slice(0, 2)))


def test_every_parameter_of_a_family_has_a_place():
    assert set(family_names()) >= {"llama", "qwen2"}
    for config in (TINY, TIED, LLAMA, SCALAR):
        table = parameter_table(config)
        for name, parameter in {**table, **{f"layers.{k}": v for k, v in table["layers"].items()}}.items():
            if name != "layers":
                stored = _family(config.family).NAMES[name]
                assert len(stored.ours) == len(parameter.shape) - stored.stacked


def test_names_of_stacked_tensors():
    assert list(stored_tensors(Stored("norm", "d", "d"), (3,))) == [("norm", (3,))]
    layers = Stored("layers.{layer}.q", "nh d", "dnh")
    assert (layers.stacked, layers.order) == (1, (0, 2, 3, 1))
    assert list(stored_tensors(layers, (2, 5, 4, 3))) == [("layers.0.q", (12, 5)), ("layers.1.q", (12, 5))]
    experts = Stored("l{layer}.e{expert}.up", "f d", "df")
    assert (experts.stacked, experts.order) == (2, (0, 1, 3, 2))
    named = dict(stored_tensors(experts, (2, 2, 5, 7)))
    assert list(named) == ["l0.e0.up", "l0.e1.up", "l1.e0.up", "l1.e1.up"] and set(named.values()) == {(7, 5)}


@pytest.mark.parametrize("limit", [1, 7, 30, 100, 10**6])
@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        (Stored("v", "v d", "vd"), (13, 4)),
        (Stored("{layer}", "d nh", "nhd"), (3, 2, 4, 5)),
        (Stored("{layer}{expert}", "f d", "df"), (3, 4, 2, 5)),
    ],
)
def test_boxes_cover_everything(stored, shape, limit):
    box, starts = boxes(stored, shape, limit)
    covered = np.zeros(shape, int)
    for start in starts:
        covered[tuple(slice(s, s + b) for s, b in zip(start, box, strict=True))] += 1
    assert covered.min() == 1 and covered.sum() < 2 * covered.size
    assert np.prod(box) <= max(limit, np.prod(shape) // np.prod([shape[d] for d in stored.order[: stored.stacked + 1]]))
    assert len(starts) < 2 * max(covered.size / limit, 1) or limit < 10
