"""One small random model of each family: two GRPO steps on GSM8K text, exported, and the export in transformers.

python -m pytest tests/stages/test_family_runs.py -s -m ""      # all families; prints the table
"""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import FAMILY_SIZES, checkpoint, metrics, on_few_devices, rollouts, run, two_steps_on, write_settings

from grpo_jax.config import MeshConfig
from grpo_jax.data.tokenizer import load_tokenizer
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.hf import load_params, read_config
from grpo_jax.models.logprobs import next_token_logits
from grpo_jax.types import Sequences
from tests.make_random_model import FAMILIES
from tests.make_random_model import main as make_random_model

EVERY_DAY = ("gemma3_text", "olmo2")
NAMES = [pytest.param(name, marks=[] if name in EVERY_DAY else [pytest.mark.slow]) for name in FAMILIES]
COLUMNS = ("sampler-trainer", "weights moved", "theirs-ours", "best tokens")


@pytest.fixture(scope="module")
def table():
    """A line a family, printed at the end: largest differences of log-probabilities, and the share of best tokens."""
    lines = {}
    yield lines
    print(f"\n{'family':<13}" + "".join(f"{column:>17}" for column in COLUMNS))
    for name, numbers in lines.items():
        print(f"{name:<13}" + "".join(f"{number:>17.2g}" for number in numbers))


@pytest.mark.parametrize("family", NAMES)
def test_two_steps_and_the_export_in_transformers(family, shared, tmp_path, workers, table):
    start, exported = tmp_path / "start", tmp_path / "run" / "hf"
    make_random_model([str(start), "--family", family, *(f"--{name}={size}" for name, size in FAMILY_SIZES.items())])
    file = write_settings(
        tmp_path / "run.yaml",
        model={"architecture": None, "model_name_or_path": str(start)},
        prompt={"max_prompt_length": 160, "overlong_prompts": "drop"},
        sft=None,
        rl=two_steps_on(shared / "data" / "gsm8k" / "train.jsonl"),
    )
    run(file, tmp_path / "run", workers)

    lines = metrics(tmp_path / "run", "rl")
    gap = max(line["logprob_gap/max"] for line in lines)
    assert gap < 1e-4 and all(line["grad_norm"] > 0 for line in lines)
    config = read_config(exported)
    assert config == read_config(start) and config.family == family
    mesh = on_few_devices(MeshConfig())
    params, begun = load_params(exported, config, mesh), load_params(start, config, mesh)
    trained = checkpoint(tmp_path / "run", "rl")
    for path, leaf in jax.tree.leaves_with_path(params):
        assert np.array_equal(leaf, trained["['state']['params']" + jax.tree_util.keystr(path)]), path
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(begun), strict=True)]
    assert min(moved) > 1e-4, "every parameter was trained"

    table[family] = (gap, max(moved))
    if importlib.util.find_spec("torch"):
        texts = texts_of(tmp_path / "run", load_tokenizer(str(exported), lambda note: None))
        difference, agree = compared(config, params, exported, texts)
        table[family] += (difference, agree)
        assert difference < 1e-4 and agree == 1.0


def texts_of(directory, tokenizer) -> list[np.ndarray]:
    """The tokens of every prompt of a run with each of its completions."""
    groups = [json.loads(line) for text in rollouts(directory).values() for line in text.splitlines()]
    texts = [group["prompt"] + one["text"] for group in groups for one in group["completions"]]
    assert len(texts) == 8 and len(set(texts)) > 4
    return [np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32) for text in texts]


def compared(config, params, folder, texts) -> tuple[float, float]:
    """Of log-probabilities of whole texts the largest difference to transformers', and how often both choose alike."""
    import torch
    from transformers import AutoModelForCausalLM

    eager = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    theirs = AutoModelForCausalLM.from_pretrained(folder, **eager)
    model = Decoder(config)
    run = jax.jit(lambda params, batch: next_token_logits(model, params, model.apply({"params": params}, batch)[0]))
    differences, alike = [], []
    for tokens in texts:
        padded = np.zeros((1, 192), np.int32)
        padded[0, : len(tokens)] = tokens
        real = np.arange(192)[None] < len(tokens)
        batch = Sequences(*map(jnp.asarray, (padded, np.where(real, np.arange(192), 0), real.astype(np.int32))))
        ours = np.asarray(jax.nn.log_softmax(run(params, batch)))[0, : len(tokens)]
        with torch.no_grad():
            logits = theirs(torch.tensor(tokens[None]).long()).logits[0]
        their = torch.log_softmax(logits.double(), -1).numpy()
        differences.append(np.abs(ours - their).max())
        alike.append((ours.argmax(-1) == their.argmax(-1)).mean())
    return float(max(differences)), float(np.mean(alike))
