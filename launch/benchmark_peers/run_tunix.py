"""The worker that holds Tunix's GRPO learner; run by the interpreter of an environment made by make.py.

    python run_tunix.py WORKLOAD_DIRECTORY RUN_DIRECTORY SETTINGS     (JSON; see `SETTINGS`)

Tunix's own loop makes the steps: its vanilla sampler with a cache of just the rows' length, one update on the whole
batch, a reference model on the same mesh, no rematerialisation, no checkpoints. The time of a phase is the time spent
in a method of its cluster, until its result is there: `sample` in generate, `reference` in get_ref_per_token_logps,
`train` in update_actor; `prefill` is that of the sampler's own prefill program.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from grpo_jax.benchmark.serving import Conversation, Finished, peak_memory, reward

# `batch`: prompts of a forward and backward pass, 0: all of a step; `devices`: host devices on a CPU, 0: as they are.
SETTINGS = {"batch": 0, "devices": 0}
WHOLE = ("prompts",)  # what multiplied is the largest batch


def main(argv: list[str]) -> None:
    """Serve until told to finish."""
    conversation = Conversation()
    place, settings = Path(argv[0]), SETTINGS | json.loads(argv[2])
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    import jax

    if settings["devices"]:
        jax.config.update("jax_num_cpu_devices", settings["devices"])
    learner, batches = make_learner(conversation, place, settings)
    try:
        learner.train(batches)
    except Finished:
        memory = peak_memory()
        statistics = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            memory["peak_device_memory"] = statistics["peak_bytes_in_use"]
        conversation.finish(**memory)


def make_learner(conversation: Conversation, place: Path, settings: dict):
    """A learner on the workload's weights and prompts, and the prompts of each step."""
    import jax
    import jax.numpy as jnp
    import optax
    from transformers import AutoTokenizer
    from tunix.models.llama3 import params as llama_params
    from tunix.rl import rl_cluster
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rollout.base_rollout import RolloutConfig

    w = json.loads((place / "workload.json").read_text())
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((jax.device_count(), 1), ("fsdp", "tp"), axis_types=axes)
    dtype = jnp.dtype(w["dtype"])

    def model():
        with mesh:
            return llama_params.create_model_from_safe_tensors(str(place / "model"), llama_config(place), mesh, dtype)

    rollout = RolloutConfig(
        max_tokens_to_generate=w["completion_length"],
        max_prompt_length=w["prompt_length"],
        kv_cache_size=w["prompt_length"] + w["completion_length"],
        temperature=1.0,
        top_p=1.0,
        top_k=None,
    )
    micro = settings["batch"] or w["prompts"]
    optimizer = optax.adamw(1e-6, b1=0.9, b2=0.95, weight_decay=0.0)
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optimizer),
        eval_every_n_steps=1_000_000_000,
        max_steps=1_000_000,
        mini_batch_size=w["prompts"],
        train_micro_batch_size=micro,
        rollout_micro_batch_size=w["prompts"],
        compute_logps_micro_batch_size=micro,
        pbar_description=None,
    )
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=model(),
        reference=model(),
        tokenizer=AutoTokenizer.from_pretrained(place / "model"),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            training_config=training,
            rollout_config=rollout,
        ),
    )
    tokens = measure_phases(conversation, cluster)
    algorithm = GRPOConfig(num_generations=w["generations"], num_iterations=1, beta=0.04, epsilon=0.2)
    learner = GRPOLearner(rl_cluster=cluster, algo_config=algorithm, reward_fns=reward)
    return learner, steps(conversation, place, w, rollout, tokens)


def steps(conversation: Conversation, place: Path, w: dict, rollout, tokens: list[int]):
    """The prompts of one step after the other; to ask for them ends the step before, whose update is done by then.

    Each step draws with a key of its own: left to itself, the sampler draws the same noise every time.
    """
    import jax
    import numpy as np

    lines = [json.loads(line)["question"] for line in (place / "prompts.jsonl").read_text().splitlines()]
    for step in range(1_000_000):
        if step:
            versions = system()
            conversation.between_steps(tokens[0], system=versions, devices=f"{jax.device_count()} x cpu")
        else:
            conversation.begin()
        rollout.seed = jax.random.key_data(jax.random.key(step))
        first = step * w["prompts"] % len(lines)
        yield {"prompts": np.array(lines[first : first + w["prompts"]])}


def system() -> str:
    """Versions."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("google-tunix", "jax"))


def llama_config(place: Path):
    """Tunix's settings for the model in a directory."""
    from tunix.models.llama3.model import ModelConfig

    hf = json.loads((place / "model" / "config.json").read_text())
    rope = hf.get("rope_parameters") or hf
    return ModelConfig(
        num_layers=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        embed_dim=hf["hidden_size"],
        hidden_dim=hf["intermediate_size"],
        num_heads=hf["num_attention_heads"],
        head_dim=hf["head_dim"],
        num_kv_heads=hf["num_key_value_heads"],
        rope_theta=int(rope["rope_theta"]),
        norm_eps=hf["rms_norm_eps"],
        weight_tying=hf["tie_word_embeddings"],
    )


def measure_phases(conversation: Conversation, cluster) -> list[int]:
    """Put a clock around Tunix's methods; returns a list that holds the last step's number of tokens."""
    import jax
    from flax import nnx

    tokens = [0]
    generate, update = cluster.generate, cluster.update_actor
    sampler = cluster.rollout._sampler

    def counted(*arguments, **named):
        output = generate(*arguments, **named)
        tokens[0] = sum(map(len, output.tokens))
        return output

    def finished(*arguments, **named):
        update(*arguments, **named)
        jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))

    wait = jax.block_until_ready
    cluster.generate = conversation.timed("sample", counted)
    cluster.get_ref_per_token_logps = conversation.timed("reference", cluster.get_ref_per_token_logps, wait)
    cluster.update_actor = conversation.timed("train", finished)
    sampler._compiled_prefill_fn = conversation.timed("prefill", sampler._compiled_prefill_fn, wait)
    return tokens


if __name__ == "__main__":
    main(sys.argv[1:])
