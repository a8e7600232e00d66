"""The grader by hand: python launch/grade.py PREDICTION GOLD [--explain] [--mode strict|official]
python launch/grade.py --study DATA [--table tests/rewards/cases]

Prints right, wrong or ungradable. PREDICTION may be a whole completion: its final answer is graded. An argument that
starts with a minus sign goes after --, as in: python launch/grade.py -- -5 5. --study measures the grader on a folder
of labelled data, beside math-verify and the official rules. Exit codes: 1 unexpected, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_jax.configure.documents import ConfigError
from grpo_jax.configure.flags import Parser
from grpo_jax.reporting.exits import explain

MODES = ("strict", "official")


def main(argv: list[str]) -> int:
    """Grade what a command line says and return the exit code."""
    try:
        options = parser().parse_args(argv)
        for line in study(options) if options.study else verdict(options):
            print(line, flush=True)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug="--debug" in argv)
    return 0


def parser() -> Parser:
    """The arguments and flags."""
    top = Parser(prog="launch/grade.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("prediction", nargs="?", help="an answer, or a completion that ends in one")
    top.add_argument("gold", nargs="?", help="the reference answer")
    top.add_argument("--explain", action="store_true", help="say why, and how the two were read")
    top.add_argument("--mode", choices=MODES, default="strict", help="official: DeepSeek-Math's published rules")
    top.add_argument("--study", type=Path, metavar="DATA", help="measure the grader on this folder of labelled data")
    top.add_argument("--table", type=Path, metavar="DIR", help="with --study: also on equal.txt and differ.txt of DIR")
    top.add_argument("--debug", action="store_true", help="print tracebacks")
    return top


def verdict(options: argparse.Namespace):
    """Yield the lines of one verdict."""
    from grpo_jax.rewards.explanation import explained

    if options.prediction is None or options.gold is None:
        raise ConfigError("PREDICTION and GOLD are both needed, or --study DATA; launch/grade.py --help shows more")
    grade, lines = explained(options.prediction, options.gold, mode=options.mode)
    yield grade
    yield from lines if options.explain else ()


def study(options: argparse.Namespace):
    """Yield the lines of the study."""
    from grpo_jax.evaluation.grading.study import run

    if options.prediction is not None:
        raise ConfigError(f"--study takes no PREDICTION, but got {options.prediction!r}")
    yield from run(options.study, options.table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
