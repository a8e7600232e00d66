"""What all systems that are measured share, on disk: a Hugging Face model directory, prompts, and a config of ours.

The tokenizer has one token a character, so that a text of n characters is a prompt of n tokens. The weights are
random, but for two numbers that every layer hands on unchanged:

- Dimension 0 of the residual stream is 1 after each token. The head gives it no weight but for tokens that no
  completion may have, or that end it: theirs is `NEVER`, or what makes them as probable as the workload wants.
- Dimension 1 tells the kind of a token: +1 in one half of the vocabulary, -1 in the other, 0 at the end of a prompt. A
  token's kind is nearly always that of the one before, and the probability of an end depends on it. So a completion
  is of one kind from its first token on: short ones and long ones, each with a geometric law (`Lengths`). After the
  prompt's last token dimension 0 is 1/2, so that a completion hardly ever ends before it has a kind.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml

from grpo_jax.benchmark.workloads import WORKLOADS, Workload
from grpo_jax.config import MeshConfig
from grpo_jax.data.tokenizer import character_tokenizer
from grpo_jax.models.decoder import DecoderConfig
from grpo_jax.models.hf import save_params
from grpo_jax.models.parameters import init_params
from grpo_jax.sharding import make_mesh, run_key

PAD_ID, EOS_ID = 0, 1  # of `character_tokenizer`
SPECIAL = 2
START = SPECIAL  # the token at the end of every prompt, of neither kind
NEVER = -30.0
LOYALTY = 3.0  # the odds that a token is of the other kind than the one before are exp(-2 LOYALTY) = 1 to 400
# Letters of one code point each, enough for the largest vocabulary: ideographs, syllables, two private planes.
ALPHABET = (range(0x4E00, 0xA000), range(0xAC00, 0xD7A4), range(0xF0002, 0xFFFFE), range(0x100000, 0x10FFFE))
REWARD = "grpo_jax.benchmark.serving:reward"


def make_material(workload: Workload, folder: Path, *, steps: int = 8) -> Path:
    """Write model, prompts and config below `folder`, once; returns the workload's directory.

    What is there is used again if it is of the same workload; there are prompts for so many steps.
    """
    place = folder / workload.name
    record = json.dumps({"format": 3, "steps": steps} | dataclasses.asdict(workload), indent=1)
    if (place / "workload.json").is_file() and (place / "workload.json").read_text() == record:
        return place
    partial = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer = make_tokenizer(workload.vocabulary)
    config = decoder_config(workload)
    save_params(make_weights(workload, config), config, tokenizer, partial / "model", dtype=workload.dtype)
    lines = make_prompts(workload, steps)
    text = "".join(json.dumps({"question": line, "answer": "0"}) + "\n" for line in lines)
    (partial / "prompts.jsonl").write_text(text)
    (partial / "config.yaml").write_text(yaml.safe_dump(run_config(workload, place), sort_keys=False))
    (partial / "workload.json").write_text(record)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    return place


def decoder_config(workload: Workload) -> DecoderConfig:
    """The decoder of a workload, a Llama."""
    w = workload
    return DecoderConfig(
        family="llama",
        vocab_size=w.vocabulary,
        hidden_size=w.width,
        num_layers=w.layers,
        num_heads=w.heads,
        num_kv_heads=w.kv_heads,
        head_dim=w.head_dim,
        mlp_size=w.mlp,
        tie_word_embeddings=w.tied,
        max_positions=w.prompt_length + w.completion_length,
    )


def alphabet(size: int) -> str:
    """So many different characters."""
    points = [point for block in ALPHABET for point in block]
    return "".join(map(chr, points[:size]))


def make_tokenizer(vocabulary: int) -> Any:
    """One token a character; ids 0 and 1 are pad and end of sequence."""
    return character_tokenizer(alphabet(vocabulary - SPECIAL))


def make_prompts(workload: Workload, steps: int) -> list[str]:
    """Texts of exactly `prompt_length` tokens, different for every step, each ending with the start token."""
    letters = alphabet(workload.vocabulary - SPECIAL)
    shape = (steps * workload.prompts, workload.prompt_length - 1)
    drawn = np.random.default_rng(0).integers(1, len(letters), shape)
    return ["".join(letters[i] for i in row) + letters[START - SPECIAL] for row in drawn]


def make_weights(workload: Workload, config: DecoderConfig) -> dict[str, Any]:
    """Float32 parameters with the two reserved dimensions; see the top of the file."""
    params = init_params(config, run_key(0), make_mesh(MeshConfig(), jax.devices()[:1]))
    layers = params["layers"]
    small = 1 / math.sqrt(8 * workload.layers)  # so that the stream stays as long as an embedding is
    layers["o"] = (layers["o"] * small).at[..., :2].set(0.0)
    layers["down"] = (layers["down"] * small).at[..., :2].set(0.0)
    rows = params["embed"].at[:, :2].set(0.0)
    if workload.tied:  # one matrix for both: what may be drawn is 1 there, what may not is `NEVER`
        never = jnp.arange(workload.vocabulary) < SPECIAL
        return params | {"embed": rows.at[:, 0].set(jnp.where(never, NEVER, 1.0))}
    kinds = token_kinds(workload.vocabulary) * (workload.lengths is not None)
    rows = rows / jnp.sqrt((rows**2).sum(-1, keepdims=True)) * math.sqrt(workload.width - 2)
    head = params["head"].at[0].set(0.0).at[1].set(LOYALTY * kinds)
    head = head.at[:, : START + 1].set(0.0).at[0, : START + 1].set(NEVER)
    if workload.lengths is not None:
        head = head.at[:2, EOS_ID].set(jnp.asarray(end_weights(workload)))
    rows = rows.at[:, 0].set(1.0).at[START, 0].set(0.5).at[:, 1].set(kinds)
    return params | {"embed": rows, "head": head}


def token_kinds(vocabulary: int) -> np.ndarray:
    """+1 (short) or -1 (long) for each token [V]; 0 for those that no completion has."""
    kinds = np.where(np.arange(vocabulary) % 2 == 0, 1.0, -1.0)
    kinds[: START + 1] = 0.0
    return kinds.astype(np.float32)


def end_weights(workload: Workload) -> tuple[float, float]:
    """The head's weights for an end, on dimensions 0 and 1, that make it as probable as `lengths` says.

    Logits of other tokens are near normal with deviation 1 and mean +-LOYALTY, so that the sum of their exponentials
    is nearly a constant.
    """
    half = (workload.vocabulary - START - 1) / 2
    others = math.log(half * math.exp(0.5) * 2 * math.cosh(LOYALTY))
    short, long = (others - math.log(mean - 1) for mean in workload.lengths)
    return (short + long) / 2, (short - long) / 2


def run_config(workload: Workload, place: Path) -> dict[str, Any]:
    """A pipeline of ours that trains on the workload: `python launch/train.py config.yaml` would run it."""
    w = workload
    return {
        "output_dir": str(place / "run"),
        "model": {"model_name_or_path": str(place / "model"), "dtype": w.dtype},
        "prompt": {"format": "text", "max_prompt_length": w.prompt_length},
        "report_to": [],
        "rl": {
            "source": {"kind": "jsonl", "path": str(place / "prompts.jsonl")},
            "algorithm": {"kind": "grpo", "beta": 0.04},
            "rewards": [{"kind": "python", "path": REWARD}],
            "prompts_per_step": w.prompts,
            "num_generations": w.generations,
            "max_steps": 1_000_000,
            "sampling": {"max_completion_length": w.completion_length},
            "optimizer": {"learning_rate": 1.0e-6},
            "rollout_steps": 0,
            "save_steps": 0,
        },
    }


if __name__ == "__main__":
    print(make_material(WORKLOADS[sys.argv[1]], Path(sys.argv[2])))
