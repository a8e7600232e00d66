"""The trainer learns the very ids that the sampler drew: completions are never encoded again."""

import ast
import contextlib
import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.algorithms.algorithm import make_experience
from grpo_jax.config import MeshConfig, PromptConfig
from grpo_jax.configure import find, load
from grpo_jax.data.demonstrations import demonstration
from grpo_jax.rewards.reward import Part, Reward
from grpo_jax.sharding import make_mesh
from grpo_jax.stages import exploration
from grpo_jax.stages.programs import join_parts
from grpo_jax.stages.run import Run
from grpo_jax.types import Problem, Rollout, Sequences

PACKAGE = Path(__file__).resolve().parents[2] / "grpo_jax"
PROBLEMS = [Problem("7 + 8 =", "15", id="a"), Problem("1 + 1 =", "2", id="b")]
G, TC = 2, 8


def misspelt(tokenizer, text):
    """The ids of a text letter by letter: what no tokenizer gives, and a policy may well say."""
    ids = [i for letter in text for i in tokenizer.encode(letter, add_special_tokens=False)]
    assert tokenizer.decode(ids) == text and tokenizer.encode(text, add_special_tokens=False) != ids
    return ids


class Watched:
    """A tokenizer that notes every text it is asked to encode, by whatever way."""

    def __init__(self, tokenizer, texts):
        self._tokenizer, self._texts = tokenizer, texts
        self.backend_tokenizer = Backend(tokenizer.backend_tokenizer, texts)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __len__(self):
        return len(self._tokenizer)

    def __call__(self, text, *args, **kwargs):
        self._texts.append(text)
        return self._tokenizer(text, *args, **kwargs)

    def encode(self, text, *args, **kwargs):
        self._texts.append(text)
        return self._tokenizer.encode(text, *args, **kwargs)


class Backend:
    def __init__(self, backend, texts):
        self._backend, self._texts = backend, texts

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def encode(self, text, *args, **kwargs):
        self._texts.append(text)
        return self._backend.encode(text, *args, **kwargs)


class Alone(Run):
    """A run without weights: what is trained is all there is."""

    def policy(self, trainable):
        return trainable


def drawn(said):
    """A sampler that says certain ids, and the shapes of a rollout around them."""

    def sample(params, prompts, key, step):
        length = np.array([len(ids) for ids in said])
        mask = np.arange(TC) < length[:, None]
        tokens = np.zeros((len(said), TC), np.int32)
        tokens[mask] = np.concatenate(said)
        start = np.asarray(prompts.sequences.segments).sum(-1).repeat(G)[:, None]
        return Rollout(
            prompts=prompts,
            completions=Sequences(jnp.asarray(tokens), jnp.asarray(start + np.arange(TC)), jnp.asarray(mask * 1)),
            completion_mask=jnp.asarray(mask),
            logprobs=jnp.where(mask, -1.0, 0.0),
            finished=jnp.ones(len(said), bool),
        )

    return sample


@pytest.fixture
def stage(chatml, tmp_path):
    """The RL stage with a watched tokenizer, and the ids and texts that are said."""
    (tmp_path / "run.yaml").write_text(
        f"output_dir: {tmp_path / 'out'}\nmodel: {{architecture: {{}}}}\nprompt: {{max_prompt_length: 64}}\n"
        "rl: {source: {kind: arithmetic}, algorithm: {kind: grpo}, rewards: [{kind: accuracy}], num_generations: 2, "
        "prompts_per_step: 2, num_iterations: 2, sampling: {stop: [STOP]}}\n"
    )
    config = load([str(tmp_path / "run.yaml")]).config
    texts = []
    known = {
        "config": config,
        "directory": tmp_path,
        "mesh": make_mesh(MeshConfig(), jax.devices()[:1]),
        "tokenizer": Watched(copy.copy(chatml), texts),
        "eos_ids": (chatml.eos_token_id,),
        "pad_id": 0,
        "tools": {},
    }
    run = Alone(**{field.name: known.get(field.name) for field in dataclasses.fields(Run)})
    said = [misspelt(chatml, word) for word in ("apples", "answer", "think", "system")]
    algorithm = find("algorithms", "grpo").build(config.rl.algorithm)
    programs = SimpleNamespace(
        sample=drawn(said),
        join=join_parts,
        logprobs=lambda params, rollout: rollout.logprobs,
        experience=lambda *args: make_experience(algorithm, *args),
    )
    reward = Reward("some", 1.0, host=lambda batch, workers: Part([1, 0, 0, 1], {}))
    with exploration.open_stage(run, PROBLEMS, algorithm, (reward,), programs, 1, 0) as stage:
        yield stage, said, texts


def test_the_ids_drawn_are_the_ids_learnt_and_no_completion_is_encoded(stage, chatml):
    stage, said, texts = stage
    progress = SimpleNamespace(phase=lambda name: contextlib.nullcontext())
    state = SimpleNamespace(params={}, key=None)
    batch = exploration.explore(stage, state, {}, exploration.draw(stage, state, {}, 0), progress)
    assert sorted(batch.texts) == ["answer", "apples", "system", "think"]
    for arrays in (batch.rollout, batch.experience):
        tokens, mask = np.asarray(arrays.completions.tokens), np.asarray(arrays.completion_mask)
        assert [row[chosen].tolist() for row, chosen in zip(tokens, mask, strict=True)] == said
    assert texts and all("7 + 8 =" in text or "1 + 1 =" in text for text in texts)  # prompts are encoded, nothing else
    assert not any(word in text for text in texts for word in ("apples", "answer", "think"))


def test_a_prompt_ends_where_the_completion_begins(chatml):
    """The ids of prompt and solution are joined, never encoded together: no token lies across the border."""
    for config in (PromptConfig(format="text"), PromptConfig(format="chat")):
        example = demonstration(Problem("app", "", solution="les"), config, chatml, (chatml.eos_token_id,))
        assert chatml.decode(example.tokens[example.loss_mask][:-1]) == "les"
    assert len(chatml.encode("apples")) < len(chatml.encode("app")) + len(chatml.encode("les"))


MAKE_PROMPTS = {f"grpo_jax.data.{name}" for name in ("encoding", "prompts", "demonstrations", "tokenizer")}
# Solutions of a file; what a tool said; the step tag of a reward model.
OF_OTHERS = {"grpo_jax.data.labelled", "grpo_jax.stages.rounds", "grpo_jax.stages.reward_model"}


def calls_that_encode(tree):
    """Calls of a tokenizer, of one of its methods that encode, and of `encoding.encode`."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "grpo_jax.data.encoding"
        for alias in node.names
        if alias.name == "encode"
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        owner, _, method = name.rpartition(".")
        of_tokenizer = "tokenizer" in owner and method in ("encode", "encode_batch", "batch_encode_plus", "encode_plus")
        if of_tokenizer or method == "tokenizer" or name in imported:
            yield name


def behind(module, seen):
    """The modules of the package that one imports, anywhere in it, and those that these import."""
    path = PACKAGE.parent / f"{module.replace('.', '/')}.py"
    if module in seen or not path.is_file():
        return seen
    seen[module] = tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grpo_jax"):
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                behind(name, seen)
    return seen


def test_nothing_behind_the_rl_stage_encodes_but_what_makes_prompts():
    modules = behind("grpo_jax.stages.rl", {})
    assert {"grpo_jax.sampler.sample", "grpo_jax.training.step", "grpo_jax.stages.judging"} <= modules.keys()
    assert {name for name, tree in modules.items() if any(calls_that_encode(tree))} <= MAKE_PROMPTS | OF_OTHERS


def test_the_search_finds_what_it_is_to_find():
    code = "from grpo_jax.data.encoding import encode as e\nrun.tokenizer.encode(x)\ntokenizer(x)\ne(t, x)\nx.encode()"
    assert sorted(calls_that_encode(ast.parse(code))) == ["e", "run.tokenizer.encode", "tokenizer"]
