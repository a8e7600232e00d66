"""Run a pipeline: python launch/train.py [config.yaml ...] [--only sft,rl] [--mesh.tensor 4 ...] [--help]

Errors are printed without a traceback unless --debug is given. Exit codes: 1 unexpected, 2 bad input, 3 bad
checkpoint, 4 the run's health, 130 interrupted from the keyboard, 143 ended by SIGTERM after saving.
"""

from __future__ import annotations

import os
import sys

from grpo_jax.configure import Command, dump, load
from grpo_jax.reporting.exits import explain


def main(argv: list[str]) -> int:
    """Run the pipeline of a command line and return the exit code."""
    try:
        command = load(argv)
        if command.print_config:
            print(dump(command.config, command.origins), end="")
        else:
            run(command)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug="--debug" in argv)
    return 0


def run(command: Command) -> None:
    """Start the reward workers' server, then JAX, then the stages."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns that there is no torch, which is not used
    from grpo_jax.rewards.workers import Workers

    with Workers() as workers:
        join_cluster(command)
        from grpo_jax.stages import pipeline

        pipeline.run(command, workers)


def join_cluster(command: Command) -> None:
    """Meet the other processes at `coordinator`; the same command runs on every host."""
    if command.coordinator is None:
        return
    import jax

    if command.coordinator == "auto":
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(command.coordinator, command.num_processes, command.process_id)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
