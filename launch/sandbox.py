"""Try the sandbox of the Python tool on this machine: python launch/sandbox.py [--backend bubblewrap] [program.py]

Without a program: every known attack, the lasting ones too, with how it ended, then the time of a program in a warm
process. With one: runs it and prints what a policy would see. Exit code 2: there is no sandbox here, and the message
says how to get one; 1: an attack came through.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from grpo_jax.reporting.exits import explain
from grpo_jax.tools import attacks, selftest
from grpo_jax.tools.results import Limits
from grpo_jax.tools.sandbox import Sandbox

LIMITS = Limits(wall=1.0, cpu=1.0, memory=256 << 20, disk=32 << 20)
TIMED = "import sympy\nx = sympy.symbols('x')\nprint(sympy.solve(x**2 - 3*x + 2, x))"
COUNT = 100


def main(argv: list[str]) -> int:
    """Do what a command line says and return the exit code."""
    parser = argparse.ArgumentParser(prog="launch/sandbox.py", description=__doc__.partition("\n")[0])
    parser.add_argument("program", nargs="?", type=Path, help="a file to run; default: the attacks")
    parser.add_argument("--backend", default="auto", help="auto, bubblewrap, namespaces (or unsafe, for a program)")
    parser.add_argument("--workers", type=int, help="programs at once (default: one a core, at most 8)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(argv)
    try:
        with Sandbox(options.backend, workers=options.workers, attacks=False) as sandbox:
            print(" ".join(f"{name}={value}" for name, value in sandbox.record.items()))
            if options.program is not None:
                result = sandbox.submit(options.program.read_text("utf-8")).result()
                print(f"[{result.status}]\n{result.text}")
                return 0
            if options.backend == "unsafe":
                raise ValueError("--backend unsafe: attacks are not tried where nothing holds them; name a program")
            return table(sandbox)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, debug=options.debug)


def table(sandbox: Sandbox) -> int:
    """Print how each attack ended and the time of a program; returns the exit code."""
    through = 0
    with selftest.host() as host:
        names = [*attacks.QUICK, *attacks.LASTING]
        futures = {name: sandbox.submit(attacks.program(name, host.places()), LIMITS) for name in names}
        for name, future in futures.items():
            result = future.result()
            verdict = selftest.judged(result, host.content)
            through += verdict != selftest.CONTAINED
            last = " ".join(result.text[-60:].split())
            print(f"{name:58} {verdict[:40]:12} {result.status:9} {ascii(last)[1:-1]}")
        harm = host.harm()
    rest = selftest.attack(sandbox.submit, sandbox.record["workers"], names=())
    for name, verdict in rest.items():
        print(f"{name:58} {verdict}")
    through += sum(verdict != selftest.CONTAINED for verdict in rest.values()) + (harm is not None)
    started = time.monotonic()
    sandbox.map([TIMED] * COUNT)
    each = 1000 * (time.monotonic() - started) / COUNT
    print(f"{len(names) + len(rest)} tried, {through} came through; {each:.1f} ms a program in {COUNT} of sympy.solve")
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
