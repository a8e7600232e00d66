"""What a pipeline would take, without devices and weights: python launch/plan.py [config.yaml ...]
[--devices 8 --device-memory 80GB | --topology v5e:4x8] [--json] [--only sft,rl] [--rl.microbatches 8 ...] [--help]

Every phase is compiled ahead of time: for TPUs by their compiler (the tpu extra), for GPUs by theirs if the cuda extra
is here, else on fake devices. Of the model only config.json is read; a directory that holds nothing else will do. Exit
code 2: it does not fit, and the message says which flags make it fit.
"""

from __future__ import annotations

import argparse
import os
import sys

from grpo_jax.configure import Command, ConfigError, load
from grpo_jax.configure.flags import Parser, device_memory
from grpo_jax.reporting.exits import explain

PROG = "launch/plan.py"
# The devices planned for are not these; libtpu asks a metadata server what machine this is unless it is told.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any; without it libtpu warns
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TRANSFORMERS_VERBOSITY": "error"}
FAKE = 8  # times the devices asked for: more may be the remedy


def main(argv: list[str]) -> int:
    """Plan what a command line says and return the exit code."""
    try:
        options, words = parser().parse_known_args(argv)
        if {"-h", "--help"} & set(words):
            parser().print_help()
            print("\nThe pipeline's own settings:\n")
        run(options, load([*words, "--print_config"], prog=PROG))  # which looks at output_dir, and makes nothing there
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug="--debug" in argv)
    return 0


def parser() -> Parser:
    """The flags of a plan; all others are the pipeline's."""
    top = Parser(
        prog=PROG,
        usage=f"{PROG} [config.yaml ...] [flags of a plan] [flags of the pipeline]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    top.add_argument("--devices", type=int, default=1, metavar="8", help="GPUs (default: 1)")
    names = ("--device-memory", "--device_memory")
    top.add_argument(*names, type=device_memory, metavar="80GB", help="of each (default: a TPU's own, 80GB)")
    top.add_argument("--topology", metavar="v5e:4x8", help="TPUs instead of GPUs, by the name of their topology")
    top.add_argument("--json", action="store_true", help="print the plan for programs, bytes and operations a device")
    return top


def run(options: argparse.Namespace, command: Command) -> None:
    """Start JAX without its accelerators, and plan."""
    if options.devices < 1:
        raise ConfigError(f"--devices is {options.devices}; give how many GPUs there are")
    os.environ.update(ENVIRONMENT)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import jax

    jax.config.update("jax_num_cpu_devices", FAKE * options.devices)
    from grpo_jax.stages.plan_command import Request, plan

    plan(
        Request(
            config=command.config,
            only=command.only,
            devices=options.devices,
            memory=options.device_memory,
            topology=options.topology,
            as_json=options.json,
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
