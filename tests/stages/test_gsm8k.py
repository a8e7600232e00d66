"""Real input: GSM8K through the config that is meant for it, on a small random Qwen2 directory."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import checkpoint, metrics, on_few_devices, rollouts, run, run_interrupted, steps, write_settings

from grpo_jax.config import MeshConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.hf import load_params, read_config
from grpo_jax.models.logprobs import sequence_logprobs
from grpo_jax.types import Sequences
from tests.make_random_model import main as make_random_model

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "gsm8k_qwen2.5_0.5b.yaml"

SMALL = {
    "model": {"dtype": "float32"},  # so that what is exported is what was trained, to the last bit
    "rl": {
        "source": {"limit": 200},
        "rewards": [{"kind": "accuracy"}, {"kind": "tests.stages.rewards_for_tests"}],
        "max_steps": 3,
        "prompts_per_step": 2,
        "num_generations": 2,
        "microbatches": 2,
        "sampling": {"max_completion_length": 8},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
        "rollout_steps": 1,
    },
    "evaluation": {
        "source": {"limit": 4},
        "num_samples": 2,
        "k": [1, 2],
        "batch_prompts": 4,
        "sampling": {"max_completion_length": 8},
    },
}


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    make_random_model([str(folder), "--hidden", "32", "--layers", "2", "--mlp", "48", "--head-dim", "8"])
    return folder


def test_three_steps_stop_resume_export(shared, qwen2, tmp_path, workers):
    """The command of the README, scaled down: TFDS prepares the files, a signal comes, the same command goes on."""
    small = tmp_path / "small.yaml"
    small.write_text(json.dumps(SMALL))
    flags = [str(small), "--model.model_name_or_path", str(qwen2)]
    for section in ("rl", "evaluation"):
        flags += [f"--{section}.source.manual_dir", str(shared / "data" / "gsm8k")]
        flags += [f"--{section}.source.data_dir", str(tmp_path / "tfds")]
    directory = tmp_path / "run"

    stopped = run_interrupted(CONFIG, directory, workers, "rl", 2, *flags)
    assert stopped.exit_code == 143 and steps(directory, "rl") == [2]
    before = rollouts(directory), metrics(directory, "rl")
    run(CONFIG, directory, workers, *flags)
    assert steps(directory, "rl") == [2, 3]
    assert {name: rollouts(directory)[name] for name in before[0]} == before[0]
    assert metrics(directory, "rl")[:2] == before[1]
    assert all((directory / "evaluation" / f"{name}.json").is_file() for name in ("before", "after"))

    group = json.loads(rollouts(directory)["step_000003.jsonl"].splitlines()[0])
    assert group["prompt"].startswith("<|im_start|>system\n") and group["prompt"].endswith("<|im_start|>assistant\n")
    assert f"{group['question']}\nPlease reason step by step" in group["prompt"]
    assert float(group["answer"]) == int(group["answer"])
    assert_exported(directory, qwen2)


def test_files_of_json_lines(shared, qwen2, tmp_path, workers):
    """The same problems through kind jsonl, taught first: demonstrations in the chat template, packed."""
    source = {"kind": "jsonl", "path": str(shared / "data" / "gsm8k" / "train.jsonl"), "limit": 60}
    sft = {"source": source, "max_steps": 2, "batch_size": 2, "max_length": 600, "overlong_examples": "drop"}
    rl = {**SMALL["rl"], "source": source, "max_steps": 1, "head_chunk": 64}  # the programs of the test above
    file = write_settings(
        tmp_path / "run.yaml",
        model={"architecture": None, "model_name_or_path": str(qwen2)},
        prompt={"format": "chat", "max_prompt_length": 512, "overlong_prompts": "drop"},
        sft=sft,
        rl=rl,
    )
    run(file, tmp_path / "run", workers)
    first, second = metrics(tmp_path / "run", "sft")
    assert np.log(512) * 0.8 < second["loss"] < first["loss"]
    assert first["num_tokens"] > 2 * 150, "rows hold several examples"
    assert metrics(tmp_path / "run", "rl")[0]["logprob_gap/max"] < 1e-4
    assert_exported(tmp_path / "run", qwen2)


def assert_exported(directory: Path, original: Path) -> None:
    """The exported policy is the trained one, in our loader to the last bit, in transformers to 1e-4."""
    mesh = on_few_devices(MeshConfig())
    trained = checkpoint(directory, "rl")
    exported = load_params(directory / "hf", read_config(directory / "hf"), mesh)
    for where, leaf in jax.tree_util.tree_leaves_with_path(exported):
        assert np.array_equal(leaf, trained["['state']['params']" + jax.tree_util.keystr(where)]), where
    begun = load_params(original, read_config(original), mesh)
    assert not np.array_equal(begun["embed"], exported["embed"])

    tokens = np.random.default_rng(0).integers(0, 500, (2, 12)).astype(np.int32)
    ones = np.ones_like(tokens)
    batch = Sequences(*map(jnp.asarray, (tokens, np.cumsum(ones, 1) - 1, ones)))
    model = Decoder(read_config(directory / "hf"))
    ours, _ = sequence_logprobs(model, exported, batch, chunk=4)
    if importlib.util.find_spec("torch") is None:
        return
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(directory / "hf")(torch.tensor(tokens).long()).logits
    logprobs = torch.log_softmax(logits.double(), -1)[:, :-1]
    theirs = logprobs.gather(-1, torch.tensor(tokens).long()[:, 1:, None])
    np.testing.assert_allclose(ours[:, 1:], theirs[:, :, 0], atol=1e-4)
