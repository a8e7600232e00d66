"""The worker that holds this system: the RL stage as `launch/train.py` runs it, stopped between its steps.

    python -m grpo_jax.benchmark.ours WORKLOAD_DIRECTORY RUN_DIRECTORY HOST_DEVICES [flags of launch/train.py]

The whole step is one of `stages/rl.py`'s own loop, from the end of an update's sampling to that of the next: no program
is under way while others have their turn, but the reading of completions, which takes some milliseconds, may begin
there. Phases are what the devices took for each program in the loop; what it does not tell apart, prefill and decode,
is measured after the last step, program by program, on the same prompts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_jax.benchmark.serving import Conversation, Finished, peak_memory

REPEATS = 5  # of each program, after one that compiles it
DEVICE = {"sample": "sample", "reference": "reference", "update": "train"}  # programs of the loop, and their phases


def main(argv: list[str]) -> None:
    """Serve until told to finish."""
    conversation = Conversation()
    place, directory, host_devices, *flags = argv
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from grpo_jax.configure import load
    from grpo_jax.rewards.workers import Workers

    command = load([str(Path(place) / "config.yaml"), "--output_dir", directory, *flags])
    sys.modules.setdefault("torch", None)  # no dependency; transformers would load it where it is (a quarter GB)
    with Workers() as workers:
        import jax

        if int(host_devices):
            jax.config.update("jax_num_cpu_devices", int(host_devices))
        serve(conversation, command.config, Path(directory), workers)


def serve(conversation: Conversation, config: Any, directory: Path, workers: Any) -> None:
    """Run the RL stage step by step, then measure its programs one by one."""
    import jax

    from grpo_jax.stages import rl
    from grpo_jax.stages.pipeline import open_run
    from grpo_jax.stages.policy import initial_params
    from grpo_jax.training.interrupt import Interruption

    config = dataclasses.replace(config, rl=dataclasses.replace(config.rl, eval_steps=1))
    with Interruption() as interruption:
        run = open_run(config, directory, workers, interruption)
        with jax.set_mesh(run.mesh):
            prepared = rl.prepare(run)
            log = directory / "rl" / "metrics.jsonl"

            def initial() -> Any:
                return initial_params(run.config, run.model.config, run.mesh)

            def between_steps(_: Any) -> None:
                jax.block_until_ready(jax.live_arrays())  # the loop has begun to sample the next step's completions
                line = json.loads(log.read_text().splitlines()[-1])
                rows = config.rl.prompts_per_step * config.rl.num_generations
                tokens = round(line["completions/mean_length"] * rows)
                extra = {"compiles": line["compiles"], "clipped": line["completions/clipped_ratio"]}
                told = {phase: line.get(f"time/device_{name}_s") for name, phase in DEVICE.items()}  # fused: none
                conversation.phases = {phase: seconds for phase, seconds in told.items() if seconds is not None}
                conversation.phases["reward"] = line.get("time/reward_s", 0.0)
                conversation.between_steps(tokens, **extra, **environment())

            def start() -> Any:
                params = jax.block_until_ready(initial())
                conversation.begin()
                return params

            with contextlib.suppress(Finished):  # whose traceback would hold the state
                rl.train(run, start, prepared, between_steps)
            memory = peak_memory() | device_memory()
            conversation.finish(**memory, programs=measure_programs(run, prepared, initial))


def environment() -> dict[str, Any]:
    """Versions and devices."""
    import jax

    device = jax.devices()[0]
    return {"system": f"jax {jax.__version__}", "devices": f"{jax.device_count()} x {device.device_kind}"}


def device_memory() -> dict[str, int]:
    """The most that arrays and programs took on an accelerator; nothing on CPU, where it is the process's."""
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    return {"peak_device_memory": statistics["peak_bytes_in_use"]} if "peak_bytes_in_use" in statistics else {}


def measure_programs(run: Any, prepared: Any, initial: Callable[[], Any]) -> dict[str, float]:
    """Seconds of each program of a step, medians: prefill (a completion of one token), generate, reference, update."""
    import jax
    import numpy as np

    from grpo_jax.stages.policy import abstract
    from grpo_jax.stages.programs import rl_programs
    from grpo_jax.training.optimizer import make_optimizer
    from grpo_jax.training.state import create_state
    from grpo_jax.types import Rewards

    c = run.config.rl
    sampling = run.sampling(c.sampling, c.num_generations, decode_rows=c.decode_rows, weights=c.rollout_weights)
    optimizer = make_optimizer(c.optimizer, c.max_steps)
    params = abstract(run.model.config, run.mesh)
    of = lambda sampling: rl_programs(run.model, c, sampling, prepared.algorithm, optimizer, params)  # noqa: E731
    programs, short = of(sampling), of(sampling._replace(max_completion_length=1))
    state = create_state(initial(), optimizer, run.config.seed, run.mesh)
    reference = programs.freeze(state.params)
    parts = c.sample_parts
    prompts = run.prompts(prepared.problems, np.arange(c.prompts_per_step // parts))
    seconds = {}

    def median(name: str, call: Callable[[int], Any]) -> Any:
        result = jax.block_until_ready(call(0))
        times = []
        for repeat in range(REPEATS):
            start = time.perf_counter()
            result = jax.block_until_ready(call(repeat + 1))
            times.append(time.perf_counter() - start)
        seconds[name] = statistics.median(times)
        return result

    def sample(programs: Any, step: int) -> Any:
        return programs.join((programs.sample(run.policy(state.params), prompts, state.key, step),) * parts)

    median("prefill", lambda i: sample(short, i))
    rollout = median("generate", lambda i: sample(programs, i))
    seconds |= {name: seconds[name] * parts for name in ("prefill", "generate")}  # they are alike
    logprobs = median("reference", lambda i: programs.logprobs(run.policy(reference), rollout))
    rewards = np.random.default_rng(0).normal(size=(c.prompts_per_step, c.num_generations)).astype(np.float32)
    experience = programs.experience(rollout, Rewards(rewards), None, logprobs)
    holder = [state]

    def update(_: int) -> Any:
        holder[0], metrics = programs.update(holder[0], experience, frozen=run.frozen)
        return holder[0], metrics

    median("update", update)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1:])
