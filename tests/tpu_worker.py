"""Compiles one RL step of the 0.5B configuration for a v5e-8: footprints and programs go to files in a folder."""

import json
import sys
import time
from pathlib import Path

from grpo_jax.configure import load
from grpo_jax.stages.footprints import phases
from grpo_jax.stages.plan import open_plan, open_shape
from grpo_jax.stages.targets import tpu_target
from tests.gpu_worker import CONFIG, QWEN

PROGRAMS = {"rl: sampling": "sample", "rl: reference log-probabilities": "logprobs", "rl: update": "update"}


def main(folder: str, *flags: str) -> None:
    Path(folder, "config.json").write_text(json.dumps(QWEN))
    config = load([str(CONFIG), "--model.model_name_or_path", folder, *flags, "--print_config"]).config
    target = tpu_target("v5e:2x4")
    plant = open_plan(config, open_shape(config, print), target)
    start, takes, refused = time.perf_counter(), {}, []
    for phase in phases(plant, ("rl",)):
        if phase.compile is None:
            continue
        name, program = PROGRAMS[phase.name], phase.compile()
        footprint = program.footprint(phase.beside)
        takes[name] = footprint._asdict() | {"peak": footprint.peak}
        if program.compiled:
            Path(folder, f"{name}.hlo").write_text(program.compiled.as_text())
        else:
            refused.append(name)
    result = {
        "mesh": dict(plant.mesh.shape),
        "rows": config.rl.prompts_per_step * config.rl.num_generations,
        "time": config.rl.sampling.max_completion_length,
        "memory": target.memory,
        "seconds": time.perf_counter() - start,
        "takes": takes,
        "refused": refused,
    }
    Path(folder, "step.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
