"""Prompts of exact lengths, and completions whose lengths follow the law that was written into the weights."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from grpo_jax.benchmark import material
from grpo_jax.benchmark.workloads import WORKLOADS, Lengths
from grpo_jax.configure import load
from grpo_jax.data.prompts import left_padded
from grpo_jax.models.decoder import Decoder
from grpo_jax.sampler.draw import Distribution
from grpo_jax.sampler.sample import Sampling, sample
from grpo_jax.stages.policy import open_tokenizer

TINY = WORKLOADS["tiny"]
SMALL = dataclasses.replace(
    TINY, name="small", layers=1, width=64, mlp=64, vocabulary=512, prompts=16, generations=64, completion_length=64
)


def draw(workload):
    """Return the tokens and lengths of a step's completions, drawn by the sampler."""
    config = material.decoder_config(workload)
    tokenizer = material.make_tokenizer(workload.vocabulary)
    rows = [tokenizer.encode(text) for text in material.make_prompts(workload, 1)]
    prompts = left_padded(rows, np.arange(len(rows)), workload.prompt_length, material.PAD_ID)
    ends = (material.EOS_ID,)
    sampling = Sampling(Distribution(), workload.generations, workload.completion_length, ends, material.PAD_ID)
    program = jax.jit(lambda params, key: sample(Decoder(config), params, prompts, key, sampling=sampling))
    rollout = program(material.make_weights(workload, config), jax.random.key(0))
    mask = np.asarray(rollout.completion_mask)
    return np.where(mask, np.asarray(rollout.completions.tokens), -1), mask.sum(-1)


def test_lengths_follow_the_law():
    """1,024 completions: mean, the share cut at the limit and the tail within what chance and the network allow."""
    law = Lengths(short=8, long=50)
    workload = dataclasses.replace(SMALL, lengths=law)
    tokens, lengths = draw(workload)
    assert lengths.mean() == pytest.approx(law.mean(64), rel=0.15)
    for t in (4, 16, 32, 63):
        assert (lengths > t).mean() == pytest.approx(law.survival(t), abs=0.06)
    assert lengths.std() > 0.8 * lengths.mean()  # a single geometric law, cut so, has 0.7
    assert not np.isin(tokens, (material.PAD_ID, material.START)).any()


def test_without_a_law_no_completion_ends():
    tokens, lengths = draw(SMALL)
    assert (lengths == 64).all()
    assert (tokens > material.START).all()


def test_tied_weights_end_no_completion_either():
    _, lengths = draw(dataclasses.replace(SMALL, tied=True))
    assert (lengths == 64).all()


def test_prompts_have_their_length_in_tokens():
    tokenizer = material.make_tokenizer(512)
    lines = material.make_prompts(SMALL, 3)
    assert len(lines) == len(set(lines)) == 3 * 16
    for line in lines:
        ids = tokenizer.encode(line)
        assert len(ids) == SMALL.prompt_length
        assert ids[-1] == material.START
        assert min(ids[:-1]) > material.START


def test_characters_suffice_for_every_vocabulary():
    for workload in WORKLOADS.values():
        letters = material.alphabet(workload.vocabulary - material.SPECIAL)
        assert len(set(letters)) == workload.vocabulary - material.SPECIAL


def test_a_directory_is_made_once_and_is_a_config_of_ours(tmp_path, monkeypatch):
    place = material.make_material(TINY, tmp_path, steps=2)
    before = (place / "model" / "model.safetensors").stat().st_mtime_ns
    assert material.make_material(TINY, tmp_path, steps=2) == place
    assert (place / "model" / "model.safetensors").stat().st_mtime_ns == before
    config = load([str(place / "config.yaml")]).config
    assert config.rl.num_generations == TINY.generations
    tokenizer = open_tokenizer(config, print)
    line = json.loads((place / "prompts.jsonl").read_text().splitlines()[0])["question"]
    assert len(tokenizer.encode(line)) == TINY.prompt_length
    monkeypatch.setattr(material, "make_weights", lambda *_: None)  # what is there is of another number of steps
    monkeypatch.setattr(material, "save_params", lambda *arguments, **_: arguments[3].mkdir())
    material.make_material(TINY, tmp_path, steps=3)
    assert len((place / "prompts.jsonl").read_text().splitlines()) == 3 * TINY.prompts
