"""Runs side by side at equal generated tokens: python launch/compare.py RUN RUN ... [--metric reward] [--stage rl]
[--out compare.svg]

Prints what the ledgers of the runs (ledger.json of each output_dir) differ in, what settings of speed and layout differ
(of config.yaml; they change no result), and what each stage took, and plots a metric against the tokens that were
generated for it, or learnt in a stage that generates none, one line a run. Works while the runs go on. Exit codes:
1 unexpected, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpo_jax.configure.flags import Parser
from grpo_jax.reporting.exits import explain


def main(argv: list[str]) -> int:
    """Compare the runs of a command line and return the exit code."""
    try:
        options = parser().parse_args(argv)
        for line in compare(options):
            print(line)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug="--debug" in argv)
    return 0


def parser() -> Parser:
    """The arguments and flags."""
    top = Parser(prog="launch/compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the output_dir of a run")
    top.add_argument("--metric", help="of metrics.jsonl (default: eval/greedy, reward or loss, what all runs have)")
    top.add_argument("--stage", default="rl", help="whose metrics are plotted (default: rl)")
    top.add_argument("--out", type=Path, default=Path("compare.svg"), help="the picture (default: compare.svg)")
    top.add_argument("--debug", action="store_true", help="print tracebacks")
    return top


def compare(options: argparse.Namespace):
    """Yield what is printed; write the picture."""
    from grpo_jax.reporting.comparison import (
        choose_across,
        choose_metric,
        curves,
        figure,
        ledgers,
        tables,
        tokens_in_words,
    )
    from grpo_jax.reporting.files import write_atomically

    yield from tables(ledgers(options.runs), options.runs)
    metric = options.metric or choose_metric(options.runs, options.stage)
    across = choose_across(options.runs, options.stage)
    words = tokens_in_words(across, options.stage)
    write_atomically(options.out, figure(curves(options.runs, options.stage, metric, across), metric, words))
    yield f"{options.out}: {metric} over the {words}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
