"""Measure this system, others beside it, and how cost grows: python launch/benchmark.py WORKLOAD [--peer trl] [...]

    python launch/benchmark.py S --peer trl --peer tunix      # a workload on three systems that take turns
    python launch/benchmark.py L --devices 2 --rl.microbatches 2
    python launch/benchmark.py curves                         # time and memory against every size, on small models

Flags that are not named below are those of launch/train.py, for this system alone. Errors are printed without a
traceback unless --debug is given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_jax.benchmark.compare import Request, compare, describe, peer_settings
from grpo_jax.benchmark.workloads import WORKLOADS
from grpo_jax.configure import ConfigError
from grpo_jax.configure.flags import Parser
from grpo_jax.reporting.exits import explain


def main(argv: list[str]) -> int:
    """Measure what a command line says and return the exit code."""
    try:
        options, flags = parser().parse_known_args(argv)
        flags = [flag for flag in flags if flag != "--debug"]
        if options.what == "curves":
            from grpo_jax.benchmark.curves import draw_curves

            draw_curves(options.out, only=options.only)
        else:
            compare(request(options, flags))
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug="--debug" in argv)
    return 0


def parser() -> Parser:
    """The flags of a measurement."""
    top = Parser(
        prog="launch/benchmark.py",
        description=f"{__doc__}\nworkloads:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = top.add_argument
    add("what", choices=[*WORKLOADS, "curves"], metavar="WORKLOAD|curves")
    add("--peer", action="append", default=[], metavar="trl", help="another system to measure beside this one")
    add("--peer-env", action="append", default=[], metavar="trl=DIR", help="its environment, made by make.py")
    add("--peer-set", action="append", default=[], metavar="trl.batch=16", help="a setting of it: see its run_ file")
    add("--rounds", type=int, default=3, help="turns of each system (default: 3)")
    add("--steps", type=int, default=2, help="steps a turn (default: 2)")
    add("--devices", default="0", metavar="1,2", help="host devices of this system on a CPU; each number is measured")
    add("--only", default="", metavar="width,vocabulary", help="of the curves, these")
    add("--out", type=Path, default=Path("runs/benchmark"), help="results go to a new directory in it")
    return top


def request(options: argparse.Namespace, flags: list[str]) -> Request:
    """The options as a request; raises `ConfigError`."""
    if min(options.rounds, options.steps) < 1:
        raise ConfigError(f"--rounds {options.rounds} --steps {options.steps}: both must be at least 1")
    if not all(number.isdigit() for number in options.devices.split(",")):
        raise ConfigError(f"--devices {options.devices}: give numbers, such as 1,2")
    wrong = [word for word in options.peer_env if "=" not in word]
    if wrong:
        raise ConfigError(f"--peer-env {wrong[0]}: write PEER=DIRECTORY")
    return Request(
        workload=options.what,
        peers=tuple(options.peer),
        environments={name: Path(path) for name, path in (word.split("=", 1) for word in options.peer_env)},
        settings=peer_settings(options.peer_set),
        rounds=options.rounds,
        steps=options.steps,
        devices=tuple(map(int, options.devices.split(","))),
        flags=tuple(flags),
        out=options.out,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
