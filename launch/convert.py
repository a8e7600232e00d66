"""Checkpoints to Hugging Face directories and back: python launch/convert.py to-hf RUN OUT | from-hf MODEL OUT

What is written is read again and compared before it has its name. Errors are printed without a traceback unless
--debug is given. Exit codes: 1 unexpected, 2 bad input, 3 bad checkpoint or a result that is not what was meant,
130 and 143 after a signal; then nothing is left.
"""

from __future__ import annotations

import argparse
import os
import sys

from grpo_jax.configure.flags import Parser, in_bytes
from grpo_jax.reporting.exits import explain

DTYPES = ("float32", "bfloat16")
TO_HF = """\
RUN is an output_dir of launch/train.py, RUN/STAGE, RUN/STAGE/checkpoints/STEP, or what from-hf has made. The run may
go on meanwhile: nothing is claimed or changed. Where it holds the accelerators, JAX_PLATFORMS=cpu converts without.
A run with adapters gives a PEFT adapter directory, or merged weights with --merge. What is written is loaded again:
every number must be the checkpoint's (rounded, with bfloat16), and with float32 every log-probability of some
text of the run exactly the same."""
FROM_HF = """\
Makes a directory for --model.model_name_or_path whose weights are a checkpoint: each host reads its part, in parallel,
and every byte has a digest. What is written is loaded again and compared bit for bit."""


def main(argv: list[str]) -> int:
    """Convert what a command line says and return the exit code."""
    try:
        run(parser().parse_args(argv))
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug="--debug" in argv)
    return 0


def parser() -> Parser:
    """The command line."""
    prog = "launch/convert.py"
    raw = argparse.RawDescriptionHelpFormatter
    top = Parser(prog=prog, description=__doc__, formatter_class=raw)
    commands = top.add_subparsers(dest="command", required=True, metavar="to-hf | from-hf", parser_class=Parser)
    to_hf = commands.add_parser("to-hf", description=TO_HF, formatter_class=raw, help="checkpoint to Hugging Face")
    to_hf.add_argument("source", metavar="RUN_OR_CHECKPOINT", help="where the checkpoint is")
    to_hf.add_argument("out", metavar="OUT", help="directory to make; it must not exist")
    to_hf.add_argument("--dtype", choices=DTYPES, help="of the files; default: what the run computes in (model.dtype)")
    to_hf.add_argument("--merge", action="store_true", help="add adapters to the weights, in float32, and write those")
    to_hf.add_argument("--max-shard-size", type=in_bytes, default="5GB", metavar="5GB", help="most bytes of a file")
    to_hf.add_argument("--stage", help="of the run; default: the last that has been started")
    to_hf.add_argument("--step", type=int, help="default: the newest whose every byte is as it was written")
    to_hf.add_argument("--model", metavar="DIR", help="where the run's base model lies now, if it was moved")
    from_hf = commands.add_parser("from-hf", description=FROM_HF, formatter_class=raw, help="the other way round")
    from_hf.add_argument("model", metavar="MODEL", help="a Hugging Face directory, or a hub name")
    from_hf.add_argument("out", metavar="OUT", help="directory to make; it must not exist")
    from_hf.add_argument("--dtype", choices=DTYPES, help="of the matrices; default: as in the files")
    for command in (to_hf, from_hf):
        command.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return top


def run(options: argparse.Namespace) -> None:
    """Start JAX and convert."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns that there is no torch, which is not used
    if options.command == "from-hf":
        from grpo_jax.stages.convert_import import from_hf

        from_hf(options.model, options.out, options.dtype)
        return
    from grpo_jax.stages.convert import Request, to_hf

    to_hf(
        Request(
            source=options.source,
            out=options.out,
            dtype=options.dtype,
            merge=options.merge,
            max_shard_bytes=options.max_shard_size,
            stage=options.stage,
            step=options.step,
            model=options.model,
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
