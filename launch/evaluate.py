"""Measure a policy on benchmarks: python launch/evaluate.py MODEL --benchmarks gsm8k,cmath --data DIR --samples 64
python launch/evaluate.py gold --benchmarks gsm8k,cmath --data DIR

MODEL is an output_dir of launch/train.py (its newest checkpoint, or --stage and --step), a directory made by
convert.py, a Hugging Face directory, a hub name, or scripted:FILE with completions. Each problem is answered greedily
and --samples times; the same command goes on where it was stopped. `gold` feeds each benchmark its own references in
the prompts' own formats, which must score 100 %. Other flags are settings: --evaluation.batch_prompts 32,
--model.dtype bfloat16, --mesh.tensor 4, --seed 1.

Exit codes: 1 unexpected, or a reference that is not right by its own benchmark; 2 bad input, 3 bad checkpoint, 130 and
143 after a signal.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from grpo_jax.configure import ConfigError, find, kind_class, names
from grpo_jax.configure.flags import Parser
from grpo_jax.reporting.exits import explain

PROG = "launch/evaluate.py"
STYLES = ("as_run", "zero_shot", "few_shot", "tool", "program")


def main(argv: list[str]) -> int:
    """Evaluate what a command line says and return the exit code."""
    try:
        options, words = parser().parse_known_args(argv)
        words = [word for word in words if word != "--debug"]
        return gold(options, words) if options.model == "gold" else run(options, words)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug="--debug" in argv)


def parser() -> Parser:
    """The flags of an evaluation; all others are settings."""
    kinds = ", ".join(names("evaluation.benchmarks"))
    top = Parser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = top.add_argument
    add("model", metavar="MODEL|gold", help="what to evaluate")
    add("--benchmarks", default="", metavar="gsm8k,cmath", help=f"{kinds}; held_out: the run's own problems (default)")
    add(
        "--data", action="append", default=[], metavar="[gsm8k=]DIR", help="folder or file of data; hub (default), tfds"
    )
    add("--style", choices=STYLES, help="of the prompts (default: as_run, the prompt of the settings)")
    add("--shots", metavar="FILE", help="JSON file of the few-shot prompts")
    add("--limit", type=positive, help="only the first so many problems of each benchmark")
    add("--samples", type=positive, help="samples of each problem (default: the run's num_samples, or 8)")
    add(
        "--k",
        type=numbers,
        metavar="1,4,8",
        help="of pass@k and maj@k (default: the run's own, or 1,4,8,16,32,64 up to n)",
    )
    add("--temperature", type=float, help="of the samples (default: the run's own, or 0.7)")
    add("--max-tokens", type=positive, help="of a completion (default: the run's own, or 1024)")
    add("--stage", help="of a run; default: the last that has been started")
    add("--step", type=step, help="of a run: a number, or best; default: the newest good checkpoint")
    add("--out", metavar="DIR", help="of the results (default: RUN/evaluate/STAGE-STEP, or runs/evaluate/MODEL)")
    add("--against", type=Path, metavar="DIR", help="another --out, of the same problems, to compare with in pairs")
    add("--scorer", metavar="RUN", help="a run with a reward model that scores the samples, for best@k and weighted@n")
    add("--scores", type=Path, metavar="FILE", help="the same from a file: lines {id, sample, score}")
    return top


def positive(text: str) -> int:
    """A whole number from 1; raises `ArgumentTypeError`."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 1, with commas between; raises `ArgumentTypeError`."""
    return tuple(positive(word) for word in text.split(","))


def step(text: str) -> str:
    """The number of a step, or best; raises `ArgumentTypeError`."""
    if text != "best" and not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a step; write one, or best")
    return text


def places(words: list[str], kinds: list[str]) -> dict[str, str]:
    """Where each benchmark's data is, "" for all that are not named; raises `ConfigError`."""
    found = {}
    for word in words:
        name, sign, place = word.partition("=")
        name, place = (name, place) if sign and name in kinds else ("", word)
        if name in found:
            raise ConfigError(f"--data {word}: {name or 'the place of all benchmarks'} is given twice")
        found[name] = place
    return found


def gold(options: argparse.Namespace, words: list[str]) -> int:
    """Print the gold ceilings; 1 if a reference is not right by the rules of its own benchmark."""
    from grpo_jax.evaluation.ceilings import ceilings
    from grpo_jax.evaluation.reading import open_benchmark, read_problems
    from grpo_jax.rewards.workers import Workers

    kinds, missed = [kind for kind in options.benchmarks.split(",") if kind], 0
    if words or not kinds:
        raise ConfigError(f"gold: {f'{words[0]} is no flag of it' if words else 'name some --benchmarks'}")
    data = places(options.data, kinds)
    print(f"{'benchmark':18}{'style':12}{'problems':>9}{'strict':>9}{'official':>10}", flush=True)
    with Workers(max_workers=2) as workers:
        for kind in kinds:
            given = {"data": data.get(kind, data.get("", "hub")), "limit": options.limit}
            find("evaluation.benchmarks", kind)
            config = kind_class("evaluation.benchmarks", kind)(**given)
            benchmark = open_benchmark(kind, config)
            for found in ceilings(benchmark, read_problems(benchmark, config), workers):
                shares = [None if n is None else n / found.problems for n in (found.right, found.official)]
                texts = ["-" if share is None else f"{share:.2%}" for share in shares]
                print(f"{kind:18}{found.style:12}{found.problems:>9}{texts[0]:>9}{texts[1]:>10}", flush=True)
                missed += len(found.missed)
                for problem, one in found.missed[:10]:
                    print(f"    {problem.id}: {problem.answer!r} read as {one.answer!r} is {one.grade}: {one.reason}")
    return int(missed > 0)


def run(options: argparse.Namespace, words: list[str]) -> int:
    """Start the grading workers' server, then JAX, then evaluate."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns that there is no torch, which is not used
    from grpo_jax.rewards.workers import Workers

    with Workers() as workers:
        from grpo_jax.stages.evaluate_command import Request, evaluate
        from grpo_jax.stages.evaluation_model import Asking, find_checkpoint, settings_of

        kinds = tuple(kind for kind in options.benchmarks.split(",") if kind)
        asking = Asking(
            benchmarks=kinds,
            data=places(options.data, list(kinds)),
            style=options.style,
            shots=options.shots,
            limit=options.limit,
            samples=options.samples,
            k=options.k,
            temperature=options.temperature,
            max_tokens=options.max_tokens,
            out=options.out,
            scorer=options.scorer,
        )
        checkpoint = find_checkpoint(options.model, options.stage, options.step)
        command = settings_of(options.model, checkpoint, asking, words, PROG)
        evaluate(Request(options.model, checkpoint, command, words, options.against, options.scores), workers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
