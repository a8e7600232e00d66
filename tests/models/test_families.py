"""Every family without torch: config.json in and out, golden logits, all forms and a mesh of one result."""

import dataclasses
import json
from pathlib import Path

import awkward_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from awkward_models import LLAMA3, SHAPE, YARN, YARN_BY_HAND
from forms import (
    Tp,
    batch,
    cached,
    chosen,
    follows,
    in_segments,
    largest,
    on_prefix,
    packed,
    plain,
    scored_with_gradient,
)
from small_models import ragged, randomized

from grpo_jax.config import MeshConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.hf import family_names, load_params, read_config
from grpo_jax.models.parameters import abstract_params, parameter_table
from grpo_jax.sampler.draw import Distribution
from grpo_jax.sampler.sample import Sampling, sample
from grpo_jax.sharding import make_mesh, named
from grpo_jax.types import Prompts
from tests.make_random_model import FAMILIES

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def read(folder, fields, **options):
    """Our config of a config.json with these fields."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return read_config(folder, **options)


def test_every_family_has_a_golden_model_an_awkward_one_and_a_random_one():
    names = set(family_names())
    assert names == {path.name.removeprefix("models_") for path in GOLDEN.glob("models_*/")}
    assert names == {fields["model_type"] for fields in awkward_models.CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", awkward_models.CASES)
@pytest.mark.parametrize("head", ["lm", "scalar"])
def test_config_goes_out_and_comes_back(name, head, tmp_path):
    config = awkward_models.decoder_config(name, head=head, dtype="bfloat16", remat="dots")
    fields = awkward_models.family(config.family).hf_config(config)
    again = read(tmp_path / "m", fields, head=head, dtype="bfloat16", remat="dots")
    assert again == config and hash(again) == hash(config)
    assert fields["architectures"][0].endswith("ForCausalLM" if head == "lm" else "ForSequenceClassification")


@pytest.mark.parametrize("name", awkward_models.CASES)
def test_every_parameter_has_a_tensor(name):
    config = awkward_models.decoder_config(name)
    names = awkward_models.family(config.family).NAMES
    table = parameter_table(config)
    for key, parameter in {**table, **{f"layers.{key}": value for key, value in table["layers"].items()}}.items():
        if key != "layers":
            assert len(names[key].ours) == len(parameter.shape) - names[key].stacked, key


def old(scaling, **more):
    """A rotary embedding as transformers 4 spells it."""
    scaling = dict(scaling)
    return {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling or None} | more


def typed(scaling):
    """The kind under the name that it had first."""
    return {"type": scaling["rope_type"]} | {key: value for key, value in scaling.items() if key != "rope_type"}


LINEAR = {"rope_type": "linear", "rope_theta": 7e3, "factor": 8.0}
SPELLINGS = {
    "llama, plain": (
        {"model_type": "llama", "rope_theta": 7e5},
        {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    ),
    "llama, llama3": (
        {"model_type": "llama"} | old(LLAMA3, torch_dtype="bfloat16"),
        {"model_type": "llama", "rope_parameters": LLAMA3, "dtype": "bfloat16"},
    ),
    "llama, type": (
        {"model_type": "llama"} | old(typed(LINEAR)),
        {"model_type": "llama", "rope_parameters": LINEAR},
    ),
    "mistral": (
        {"model_type": "mistral", "rope_theta": 1e6, "sliding_window": 5},
        {"model_type": "mistral", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "sliding_window": 5},
    ),
    "qwen2, yarn": (
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 9} | old(typed(YARN)),
        {"model_type": "qwen2", "rope_parameters": YARN, "layer_types": ["full_attention"] * 2},
    ),
    "qwen2, windows": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3, yarn by hand": (
        {"model_type": "qwen3"} | old(YARN_BY_HAND),
        {"model_type": "qwen3", "rope_parameters": YARN_BY_HAND},
    ),
    "qwen3_moe": (
        {"model_type": "qwen3_moe", "num_experts": 9, "rope_theta": 1e6, "max_window_layers": 2},
        {
            "model_type": "qwen3_moe",
            "num_local_experts": 9,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "gemma2": (
        {"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "rope_theta": 2e4},
        {
            "model_type": "gemma2",
            "rope_parameters": {"rope_type": "default", "rope_theta": 2e4},
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma3_text": (
        {"model_type": "gemma3_text", "rope_local_base_freq": 3e3, "sliding_window_pattern": 2} | old(LINEAR),
        {
            "model_type": "gemma3_text",
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
            },
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "olmo2": (
        {"model_type": "olmo2", "rope_theta": 5e5, "rope_scaling": None},
        {"model_type": "olmo2", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_transformers_4_and_5_agree(name, tmp_path):
    """And what we write has both: without the keys of version 5 it says the same."""
    four, five = (read(tmp_path / str(i), SHAPE | fields) for i, fields in enumerate(SPELLINGS[name]))
    assert four == five
    fields = awkward_models.family(four.family).hf_config(four)
    new = ("rope_parameters", "layer_types", "num_local_experts")
    assert read(tmp_path / "kept", {key: value for key, value in fields.items() if key not in new}) == four


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [2.0] * 5, "factor": 2.0}
LAYERS = ["full_attention", "sliding_attention"]
REFUSED = {
    "dynamic rope": ({"model_type": "llama", "rope_scaling": DYNAMIC}, "rope_type is 'dynamic'; there are default"),
    "longrope": ({"model_type": "llama", "rope_scaling": LONG}, "rope_type is 'longrope'"),
    "unknown rope": ({"model_type": "qwen3", "rope_scaling": {"type": "magic"}}, "rope_type is 'magic'"),
    "mrope": ({"model_type": "qwen2", "rope_scaling": {"type": "mrope", "mrope_section": [1]}}, "rope_type is 'mrope'"),
    "partial": ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0"),
    "rope by layer": (
        {"model_type": "qwen2", "rope_parameters": {"full_attention": LLAMA3}},
        "unknown keys full_attention",
    ),
    "no factor": ({"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": None}}, "needs factor"),
    "activation": ({"model_type": "llama", "hidden_act": "relu"}, "hidden_act is 'relu'; there are silu"),
    "exact gelu": ({"model_type": "gemma2", "hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    "attention": (
        {"model_type": "qwen3", "layer_types": ["chunked_attention", "full_attention"]},
        "layer_types holds chunked_attention",
    ),
    "no window": ({"model_type": "gemma2", "sliding_window": None}, "sliding_window is not set"),
    "mistral by layer": ({"model_type": "mistral", "layer_types": LAYERS}, "all layers have the window or none"),
    "dense layers": ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]; only \[\]"),
    "sparse step": ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step is 2; only 1"),
    "no experts": ({"model_type": "qwen3_moe", "num_experts": 0}, "without experts is of model_type qwen3"),
    "too many": ({"model_type": "qwen3_moe", "num_experts": 4}, "8 experts a token of 4"),
    "capped": ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "no implementation of this model_type"),
    "encoder": ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "truncate": (
        {
            "model_type": "gemma3_text",
            "rope_parameters": {"full_attention": YARN_BY_HAND, "sliding_attention": {"rope_type": "default"}},
        },
        "truncate is not read for this model_type",
    ),
    "heads": ({"model_type": "olmo2", "num_key_value_heads": 3}, "4 query heads are not a multiple of 3"),
    "odd heads": ({"model_type": "qwen3", "head_dim": 3}, "head_dim is 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(name, tmp_path):
    fields, message = REFUSED[name]
    with pytest.raises(ModelFolderError, match=message) as refused:
        read(tmp_path / "m", SHAPE | fields)
    assert str(tmp_path / "m" / "config.json") in str(refused.value)


def test_windows_of_several_sizes_cannot_be_written():
    config = dataclasses.replace(awkward_models.decoder_config("qwen2, yarn, tied"), windows=(3, 4))
    with pytest.raises(ModelFolderError, match="windows of 3, 4 tokens"):
        awkward_models.family("qwen2").hf_config(config)


def test_published_experts_keep_their_intermediate_size():
    """Of Qwen3-30B-A3B and Qwen3-235B-A22B: as wide as all experts of a token."""
    for width, total in ((768, 6144), (1536, 12288)):
        fields = SHAPE | {"model_type": "qwen3_moe", "moe_intermediate_size": width, "num_experts": 128}
        fields |= {"num_experts_per_tok": 8, "intermediate_size": total}
        hf = awkward_models.AutoConfig.for_model(**fields)
        family = awkward_models.family("qwen3_moe")
        assert family.hf_config(family.decoder_config(hf))["intermediate_size"] == total


def golden(family, **options):
    """A golden model, its tokens and the logits that transformers gave."""
    arrays = np.load(GOLDEN / "models_logits.npz")
    tokens, mask, expected = (arrays[f"{family}_{name}"] for name in ("tokens", "mask", "logits"))
    return read_config(GOLDEN / f"models_{family}", **options), ragged(tokens, mask.sum(1)), expected


@pytest.mark.parametrize("family", family_names())
@pytest.mark.parametrize("layers", ["scan", "loop"])
def test_golden_logits(family, layers, mesh):
    config, sequences, expected = golden(family, scan_layers=layers == "scan")
    params = load_params(GOLDEN / f"models_{family}", config, mesh)
    real = np.asarray(sequences.segments) > 0
    assert np.abs(expected[real]).max() > 3, "the golden model says something"
    assert largest(plain(Decoder(config), params, sequences), expected, real) <= 1e-4


@pytest.mark.parametrize("family", family_names())
def test_greedy_completions(family, mesh):
    """As transformers' `generate` has them, by the sampler: prompts shared, windows and soft caps in its loop."""
    config, sequences, _ = golden(family)
    expected = np.load(GOLDEN / "models_logits.npz")[f"{family}_greedy"]
    prompts = Prompts(sequences, jnp.arange(len(expected)))
    settings = Sampling(Distribution(temperature=0.0), 2, expected.shape[1], eos_ids=(29, 5), pad_id=0)
    params = load_params(GOLDEN / f"models_{family}", config, mesh)
    run = jax.jit(
        lambda params, prompts: sample(Decoder(config), params, prompts, jax.random.key(0), sampling=settings)
    )
    np.testing.assert_array_equal(run(params, prompts).completions.tokens, np.repeat(expected, 2, axis=0))


FIRST = {fields["model_type"]: name for name, fields in reversed(awkward_models.CASES.items())}


@pytest.mark.parametrize("family", family_names())
def test_all_forms_are_one(family, mesh):
    """Cached and on a prefix, as the sampler has it with layers in a loop, and packed, as the trainer has it."""
    config = awkward_models.decoder_config(FIRST[family])
    scan, loop = (Decoder(dataclasses.replace(config, scan_layers=scan)) for scan in (True, False))
    params = randomized(config, mesh)
    prompts, completions, whole = batch(config.vocab_size)
    expected = plain(scan, params, whole)
    assert largest(cached(loop, params, whole), expected, np.asarray(whole.segments) > 0) <= 1e-4
    logprobs = chosen(expected, whole.tokens)
    answers = np.asarray(completions.segments) > 0
    for model in (scan, loop):
        got = on_prefix(model, params, prompts, completions)
        assert largest(got, logprobs[:, Tp - 1 :], answers) <= 1e-4
    segments = packed(whole)
    got = np.asarray(in_segments(scan, params, segments))[follows(segments)]
    assert largest(got, logprobs[follows(whole)[:, 1:]]) <= 1e-4


def even(config):
    """The same model in sizes that a mesh of two by two by two divides."""
    sizes = {"vocab_size": 38, "num_kv_heads": max(config.num_kv_heads, 2)}
    return dataclasses.replace(config, **sizes, num_experts=config.num_experts + config.num_experts % 2)


WAYS = [(family, "auto") for family in family_names()] + [("qwen3_moe", "ragged"), ("qwen3_moe", "blocks")]


@pytest.mark.parametrize(("family", "kernel"), WAYS)
def test_a_mesh_changes_nothing(family, kernel, mesh):
    config = even(awkward_models.decoder_config(FIRST[family], experts_kernel=kernel))
    params = randomized(config, mesh)
    model = Decoder(config)
    _, _, whole = batch(config.vocab_size)
    whole = jax.tree.map(lambda x: jnp.concatenate([x, x[:2]]), whole)  # eight rows
    expected = scored_with_gradient(model, params, whole)
    eight = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(config, eight))
    with jax.set_mesh(eight):
        placed = jax.device_put(params, shardings), jax.device_put(whole, named(eight, "batch", None))
        got = scored_with_gradient(model, *placed)
    assert largest(got[0], expected[0]) <= 1e-4

    def alike(path, a, b):
        assert largest(a, b) <= 1e-4 * np.abs(b).max(), jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(alike, got[1], expected[1])
