"""One small random model of each family, two GRPO steps of adapters on GSM8K text, and the adapter in peft.

python -m pytest tests/stages/test_lora_families.py -s -m ""      # all families; prints the table
"""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import FAMILY_SIZES, checkpoint, metrics, on_few_devices, run, two_steps_on, write_settings

from grpo_jax.config import MeshConfig
from grpo_jax.data.tokenizer import load_tokenizer
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.hf import family_names, load_params, read_config
from grpo_jax.models.logprobs import sequence_logprobs
from grpo_jax.models.lora import attach
from grpo_jax.models.peft import load_adapters, read_lora
from grpo_jax.types import Sequences
from tests.make_random_model import main as make_random_model

EVERY_DAY = ("qwen2", "qwen3_moe")
FAMILIES = [pytest.param(f, marks=[] if f in EVERY_DAY else [pytest.mark.slow]) for f in family_names()]


@pytest.fixture(scope="module")
def table():
    """A line a family, printed at the end."""
    lines = []
    yield lines
    print(
        f"\n{'family':<14}{'sampler-trainer':>17}{'adapters moved':>17}{'peft - ours':>14}   (log-probabilities, max)"
    )
    print(
        "".join(
            f"{name:<14}" + "".join(f"{x:>{w}.1e}" for x, w in zip(row, (17, 17, 14), strict=False)) + "\n"
            for name, *row in lines
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_and_the_adapter_in_peft(family, shared, tmp_path, workers, table):
    problems = shared / "data" / "gsm8k" / "train.jsonl"
    base = tmp_path / "base"
    sizes = [word for name, size in FAMILY_SIZES.items() for word in (f"--{name}", str(size))]
    make_random_model([str(base), "--family", family, *sizes])
    targets = ["[qkvo]_proj"] if family.endswith("moe") else ["*_proj"]
    model = {"architecture": None, "model_name_or_path": str(base), "lora": {"rank": 4, "targets": targets}}
    prompt = {"max_prompt_length": 160, "overlong_prompts": "drop"}
    file = write_settings(tmp_path / "run.yaml", model=model, prompt=prompt, sft=None, rl=two_steps_on(problems))
    run(file, tmp_path / "run", workers)

    lines = metrics(tmp_path / "run", "rl")
    gap = max(line["logprob_gap/max"] for line in lines)
    assert gap < 1e-4 and all(line["grad_norm"] > 0 for line in lines)
    adapter = tmp_path / "run" / "adapter"
    mesh = on_few_devices(MeshConfig())
    config = dataclasses.replace(read_config(base), lora=read_lora(adapter))
    weights, adapters = load_params(base, config, mesh), load_adapters(adapter, config, mesh)
    saved = checkpoint(tmp_path / "run", "rl")
    for path, leaf in jax.tree.leaves_with_path(adapters):
        assert np.array_equal(leaf, saved["['state']['params']" + jax.tree_util.keystr(path)]), path

    row = json.loads(problems.read_text().splitlines()[0])
    tokens = load_tokenizer(str(adapter), lambda note: None)(row["question"] + "\n" + row["answer"])["input_ids"]
    tokens = np.asarray([tokens], np.int32)
    ours, unmoved = (logprobs(config, params, tokens) for params in (attach(weights, adapters), weights))
    moved = np.abs(ours - unmoved).max()
    assert moved > 0.01
    row = (family, gap, moved)
    if importlib.util.find_spec("peft"):
        row += (np.abs(peft_logprobs(base, adapter, tokens) - ours).max(),)
        assert row[-1] < 1e-4
    table.append(row)


def logprobs(config, params, tokens):
    """Log-probability of each token of a text but the first, under our model."""
    ones = np.ones_like(tokens)
    batch = Sequences(*map(jnp.asarray, (tokens, np.cumsum(ones, 1) - 1, ones)))
    return np.asarray(sequence_logprobs(Decoder(config), params, batch, chunk=64)[0])[0, 1:]


def peft_logprobs(base, adapter, tokens):
    """The same of transformers' model of the base with the adapter in peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    eager = {"attn_implementation": "eager", "experts_implementation": "eager", "dtype": torch.float32}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **eager), adapter)
    tokens = torch.tensor(tokens).long()
    with torch.no_grad():
        logp = torch.log_softmax(model(tokens).logits.double(), -1)[:, :-1]
    return logp.gather(-1, tokens[:, 1:, None])[0, :, 0].numpy()
