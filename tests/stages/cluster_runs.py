"""One process of a cluster in which pipelines run one after the other, and what each waited for on the way.

    python tests/stages/cluster_runs.py COORDINATOR PROCESSES NUMBER RUNS.json

RUNS.json is a list of command lines of launch/train.py. Each run leaves `order<NUMBER>.json` in its output directory:
in order, ["draw", n] where completions of step n are started, ["ask"] where a question to all processes is, ["wait"]
where the host waits for an answer, ["done", n] where a step is written and saved.
"""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import jax
from jax.experimental import multihost_utils

from grpo_jax import sharding
from grpo_jax.configure import load
from grpo_jax.rewards.workers import Workers
from grpo_jax.stages import pipeline, rl
from grpo_jax.stages.run import Run
from grpo_jax.training import interrupt


@contextlib.contextmanager
def watched():
    """The order of events of a run, as it comes about."""
    order, draw, save = [], rl.draw, Run.save_if_due

    def noting(what, function):
        def noted(*arguments, **named):
            order.append([what])
            return function(*arguments, **named)

        return noted

    def drawing(stage, state, reference, step, *more):
        order.append(["draw", step + 1])
        return draw(stage, state, reference, step, *more)

    def saving(self, checkpoints, config, done, *more):
        save(self, checkpoints, config, done, *more)
        order.append(["done", done])

    waits = ("broadcast_one_to_all", "process_allgather")
    with contextlib.ExitStack() as patches:
        for name in waits:
            noted = noting("wait", getattr(multihost_utils, name))
            patches.enter_context(mock.patch.object(multihost_utils, name, noted))
        asked = noting("ask", sharding.start_gathering)
        patches.enter_context(mock.patch.object(interrupt, "start_gathering", asked))
        patches.enter_context(mock.patch.object(rl, "draw", drawing))
        patches.enter_context(mock.patch.object(Run, "save_if_due", saving))
        yield order


def main(coordinator: str, processes: int, number: int, runs: Path) -> None:
    """Meet the others, then run what the file says."""
    with Workers(max_workers=1) as workers:
        jax.distributed.initialize(coordinator, processes, number)
        for argv in json.loads(runs.read_text()):
            command = load(argv)
            with watched() as order:
                pipeline.run(command, workers)
            (Path(command.config.output_dir) / f"order{number}.json").write_text(json.dumps(order))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
