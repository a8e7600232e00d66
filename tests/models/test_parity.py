"""Every family against transformers in torch, in every form that sampler and trainer use; prints the table.

    python -m pytest tests/models/test_parity.py -s

Each form is compared with transformers' plain forward pass over the same tokens, with layers as a scan and as a loop.
Figures are the largest difference of a logit (plain, cached), of a log-probability (prefix, packed), or of a gradient
relative to the largest of its parameter. In bfloat16 they are mean differences of log-probabilities: of ours to
transformers' in bfloat16, and of either to ours in float32.
"""

import dataclasses
from functools import partial

import awkward_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
from small_models import randomized

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.folder import ModelFolderError
from grpo_jax.models.hf import load_params, read_config, save_params
from grpo_jax.models.rope import frequencies
from grpo_jax.types import Sequences
from tests.make_random_model import make_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

BOUND = 1e-4
HALF_BOUND = 0.05  # nats, mean
FORMS = ("plain", "cached", "prefix", "packed")
COLUMNS = [f"{form} {layers}" for form in FORMS for layers in ("scan", "loop")]
COLUMNS += ["gradient", "bf16: theirs", "ours-f32", "theirs-f32"]


def torch_logits(theirs, whole: Sequences):
    mask, positions = (torch.tensor(np.asarray(x)).long() for x in (whole.segments > 0, whole.positions))
    tokens = torch.tensor(np.asarray(whole.tokens)).long()
    return theirs(tokens, attention_mask=mask, position_ids=positions).logits


def torch_chosen(logits, tokens):
    """`log p(tokens[t])` for t from 1, of logits [B, T, V]: [B, T-1]."""
    logp = torch.log_softmax(logits.float(), -1)[:, :-1]
    return logp.gather(-1, torch.tensor(np.asarray(tokens)).long()[:, 1:, None])[..., 0]


def model_of(config, **options) -> Decoder:
    return Decoder(dataclasses.replace(config, **options))


def in_torch(folder, dtype=torch.float32):
    """transformers' model of a directory, with every weight taken from it."""
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", experts_implementation="eager", dtype=dtype
    )
    assert not any(report.values()), report
    theirs.get_input_embeddings().padding_idx = None  # or the token gets no gradient where it is text
    return theirs.eval()


@pytest.fixture(scope="module")
def table():
    """Rows are filled by the tests; printed when all are done."""
    rows = {}
    yield rows
    wide = max(map(len, rows), default=0)
    print("\n" + " " * wide + "".join(f"{name:>13}" for name in COLUMNS))
    for name, row in rows.items():
        print(f"{name:<{wide}}" + "".join(f"{row[c]:>13.1e}" if c in row else " " * 13 for c in COLUMNS))


@pytest.fixture(scope="module", params=awkward_models.CASES)
def case(request, tmp_path_factory, mesh):
    """The name of an awkward model, its decoder, weights, and a directory with them that we wrote."""
    config = awkward_models.decoder_config(request.param)
    params = randomized(config, mesh, deviation=0.35)
    folder = save_params(params, config, None, tmp_path_factory.mktemp("awkward") / "m")
    assert read_config(folder) == config
    return request.param, config, params, folder


def test_float32(case, table):
    name, config, params, folder = case
    row = table.setdefault(name, {})
    prompts, completions, whole = batch(config.vocab_size)
    segments = packed(whole)
    with torch.no_grad():
        expected = torch_logits(in_torch(folder), whole)
    logprobs = torch_chosen(expected, whole.tokens).numpy()
    expected = expected.numpy()
    real, answers = np.asarray(whole.segments) > 0, np.asarray(completions.segments) > 0
    assert expected[real].std() > 0.8, "the model says something"
    for layers in ("scan", "loop"):
        model = model_of(config, scan_layers=layers == "scan")
        row[f"plain {layers}"] = largest(plain(model, params, whole), expected, real)
        row[f"cached {layers}"] = largest(cached(model, params, whole), expected, real)
        row[f"prefix {layers}"] = largest(
            on_prefix(model, params, prompts, completions), logprobs[:, Tp - 1 :], answers
        )
        got = np.asarray(in_segments(model, params, segments))[follows(segments)]
        row[f"packed {layers}"] = largest(got, logprobs[follows(whole)[:, 1:]])
    assert all(row[f"{form} {layers}"] <= BOUND for form in FORMS for layers in ("scan", "loop")), row


def test_gradient(case, table, mesh, tmp_path):
    """Through an export of theirs, so that their gradients come in our layout."""
    name, config, params, folder = case
    _, _, whole = batch(config.vocab_size)
    theirs = in_torch(folder)
    scored = torch.tensor(follows(whole)[:, 1:])
    torch_chosen(torch_logits(theirs, whole), whole.tokens)[scored].mean().backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    theirs.save_pretrained(tmp_path / "gradient")
    expected = load_params(tmp_path / "gradient", config, mesh)
    got = scored_with_gradient(Decoder(config), params, whole)[1]

    def relative(a, b):
        assert np.abs(b).max() > 1e-7
        return float(np.abs(a - b).max() / np.abs(b).max())

    found = jax.tree.map(relative, got, expected)
    row = table.setdefault(name, {})
    row["gradient"] = max(jax.tree.leaves(found))
    assert row["gradient"] <= BOUND, found


def test_bfloat16(case, table, mesh, tmp_path):
    """With weights that bfloat16 holds exactly, so that only the computation differs."""
    name, config, params, _ = case
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    folder = save_params(rounded, config, None, tmp_path / "m", dtype="bfloat16")
    _, _, whole = batch(config.vocab_size)
    with torch.no_grad():
        theirs = torch_chosen(torch_logits(in_torch(folder, torch.bfloat16), whole), whole.tokens).numpy()
    exact = chosen(plain(Decoder(config), rounded, whole), whole.tokens)
    ours = chosen(plain(model_of(config, dtype="bfloat16"), rounded, whole), whole.tokens)
    row = table.setdefault(name, {})

    def mean(a, b):
        return float(np.abs(a - b)[follows(whole)[:, 1:]].mean())

    row["bf16: theirs"], row["ours-f32"], row["theirs-f32"] = mean(ours, theirs), mean(ours, exact), mean(theirs, exact)
    assert row["ours-f32"] < HALF_BOUND and row["ours-f32"] < 1.5 * row["theirs-f32"], row


def test_import_of_theirs(case, mesh, tmp_path):
    """What transformers writes reads as the same model, to the last bit."""
    _, config, params, folder = case
    in_torch(folder).save_pretrained(tmp_path / "m", max_shard_size="9KB")
    assert read_config(tmp_path / "m") == config
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "m", config, mesh), params)


@pytest.mark.parametrize("name", {fields["model_type"]: name for name, fields in awkward_models.CASES.items()}.values())
def test_scalar_head(name, tmp_path, mesh):
    """A reward model of each family is a sequence classifier there, with every tensor in its place."""
    config = awkward_models.decoder_config(name, head="scalar")
    params = randomized(config, mesh)
    folder = save_params(params, config, None, tmp_path / "m")
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
    )
    assert not any(report.values()), report
    _, _, whole = batch(config.vocab_size)
    mask, positions = (torch.tensor(np.asarray(x)).long() for x in (whole.segments > 0, whole.positions))
    with torch.no_grad():
        states = theirs.model(
            torch.tensor(np.asarray(whole.tokens)).long(), attention_mask=mask, position_ids=positions
        )
        expected = theirs.score(states.last_hidden_state)[..., 0]
    got = scores(Decoder(config), params, whole)
    assert largest(got, expected, np.asarray(whole.segments) > 0) <= BOUND


@partial(jax.jit, static_argnums=0)
def scores(model, params, whole):
    return model.apply({"params": params}, whole)[0]


def test_the_remedy_for_a_model_with_a_vision_tower(tmp_path, mesh):
    """The refusal of a multimodal Gemma 3 says how to come to its text model; that is run as it stands there."""
    text_only = tmp_path / "text"
    text = awkward_models.hf_config("gemma3_text, two ropes, window 5")
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    tokens = {"image_token_index": 36, "boi_token_index": 35, "eoi_token_index": 34, "mm_tokens_per_image": 4}
    whole = transformers.Gemma3Config(text_config=text, vision_config=vision, **tokens)
    transformers.Gemma3ForConditionalGeneration(whole).to(torch.bfloat16).save_pretrained(tmp_path / "whole")
    make_tokenizer(300).save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelFolderError, match="model_type 'gemma3' has a vision tower") as refused:
        read_config(tmp_path / "whole")
    recipe = str(refused.value).partition("give that: ")[2]
    names = ("AutoModelForCausalLM", "AutoTokenizer", "Gemma3ForCausalLM")
    exec(recipe, {name: getattr(transformers, name) for name in names} | {"PATH": tmp_path / "whole", "OUT": text_only})
    config = read_config(text_only)
    params = load_params(text_only, config, mesh)
    _, _, sequences = batch(config.vocab_size - 3)
    with torch.no_grad():
        expected = torch_logits(in_torch(tmp_path / "whole"), sequences).numpy()
    got = plain(Decoder(config), params, sequences)
    assert largest(got, expected, np.asarray(sequences.segments) > 0) <= BOUND
    assert (text_only / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["LLAMA3", "YARN", "YARN_BY_HAND", "LINEAR", "PLAIN"])
@pytest.mark.parametrize("head_dim", [10, 64, 128])
def test_frequencies(name, head_dim):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = getattr(awkward_models, name)
    config = transformers.LlamaConfig(head_dim=head_dim, rope_parameters=dict(parameters))
    rope = awkward_models.family("llama").decoder_config(config).rope
    if name == "PLAIN":
        inverse = 1.0 / 200.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)
        scale = 1.0
    else:
        inverse, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    np.testing.assert_allclose(frequencies(rope, head_dim), inverse, rtol=5e-7)
    assert rope.attention_scale == pytest.approx(scale)
