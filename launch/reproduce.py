"""The paper's figures 5, 6 and 7 in small: python launch/reproduce.py figure5|figure6|figure7 [--scale tiny|small]

    python launch/reproduce.py figure5                  # RFT, online RFT, GRPO with outcome and process supervision
    python launch/reproduce.py figure6                  # iterative GRPO, and as many steps without a refresh
    python launch/reproduce.py figure7                  # Maj@K and Pass@K before and after, K to 64

Runs share what they can: one SFT policy and reward model, and figure 7 takes policies of figure 5 where they are there.
The same command goes on where it was stopped. Errors are printed without a traceback unless --debug is given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_jax.configure.flags import Parser
from grpo_jax.reporting.exits import explain


def main(argv: list[str]) -> int:
    """Run what a figure needs, write it, and return the exit code."""
    try:
        options = parser().parse_args(argv)
        from grpo_jax.reproduce.figures import reproduce

        reproduce(options.figure, options.scale, options.out, seeds=options.seeds, at_once=options.at_once)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug="--debug" in argv)
    return 0


def parser() -> Parser:
    """The flags."""
    from grpo_jax.reproduce.experiments import FIGURES, SCALES

    top = Parser(
        prog="launch/reproduce.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = top.add_argument
    add("figure", choices=FIGURES)
    add("--scale", choices=[*SCALES], default="tiny", help="tiny: two CPU cores; small: one GPU (default: tiny)")
    add("--seeds", type=count, help="how many seeds, from 0 (default: the scale's, 3)")
    add("--at-once", type=count, help="runs side by side (default: the scale's: 2 for tiny, 1 for small)")
    add("--out", type=Path, help="output directory (default: runs/reproduce/SCALE)")
    add("--debug", action="store_true", help="show the traceback of every error")
    return top


def count(text: str) -> int:
    """A whole number from 1; raises `ArgumentTypeError`."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
