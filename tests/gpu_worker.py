"""The peaks of a real step on a GPU beside those planned for it: python -m tests.gpu_worker [1.5b]

Prints a line of JSON; exit code 5 where there is no GPU. The weights are random, so that nothing has to be there. Each
phase's peak is the allocator's since the start, so planned is the largest peak up to the phase.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

QWEN = {  # config.json of Qwen2.5-0.5B-Instruct
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "max_position_embeddings": 32768,
}
LARGER = {  # and of Qwen2.5-1.5B
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "intermediate_size": 8960,
}
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "gsm8k_qwen2.5_0.5b.yaml"


def main(words: list[str]) -> int:
    import jax

    if jax.default_backend() != "gpu":
        print("no GPU here")
        return 5
    shape = QWEN | (LARGER if "1.5b" in words else {})
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        print(json.dumps(compare(folder, jax.devices()[0])))
    return 0


def compare(folder: str, device, *more: str) -> list[dict]:
    """Planned without the device and measured on it, phase by phase of an RL step."""
    import jax
    import jax.numpy as jnp

    from grpo_jax.configure import load
    from grpo_jax.models.parameters import init_params
    from grpo_jax.sharding import make_mesh, run_key
    from grpo_jax.stages.footprints import open_plant, phases
    from grpo_jax.stages.plan import Study, open_plan, open_shape
    from grpo_jax.stages.targets import gpu_target
    from grpo_jax.training.optimizer import make_optimizer
    from grpo_jax.training.state import create_state

    config = load([str(CONFIG), "--model.model_name_or_path", folder, "--print_config", *more]).config
    decoder, only = open_shape(config, print), ("rl",)
    target = gpu_target(1, (device.memory_stats() or {}).get("bytes_limit", 10**9))
    study = Study(only, mock.MagicMock())
    planned = {m.phase.name: m for m in study.plan(open_plan(config, decoder, target), target).measured}

    plant = open_plant(config, decoder, make_mesh(config.mesh, [device]))
    found, peak = [], 0

    def zeros(tree):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), tree)

    def record(name: str) -> None:
        nonlocal peak
        peak = max(peak, planned[name].footprint.peak)
        measured = (device.memory_stats() or {}).get("peak_bytes_in_use")
        found.append({"phase": name, "planned": peak, "measured": measured})

    with jax.set_mesh(plant.mesh):
        params = init_params(decoder, run_key(0), plant.mesh)
        state = create_state(params, make_optimizer(config.rl.optimizer, 1), config.seed, plant.mesh)
        record("loading")
        programs = {phase.name: phase.compile for phase in phases(plant, only) if phase.compile}
        arguments = {name: call.args[1:] for name, call in programs.items()}  # abstract, after the program
        reference = zeros(arguments["rl: reference log-probabilities"][0])
        batch = zeros(arguments["rl: update"][1])  # also of the step before
        rows = {
            "rl: sampling": lambda: (state.params, zeros(arguments["rl: sampling"][1]), state.key, 0),
            "rl: reference log-probabilities": lambda: (
                reference,
                zeros(arguments["rl: reference log-probabilities"][1]),
            ),
            "rl: update": lambda: (state, batch),
        }
        for name, real in rows.items():
            more = {"frozen": None} if name == "rl: update" else {}
            jax.block_until_ready(programs[name]().compiled(*real(), **more))
            record(name)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
