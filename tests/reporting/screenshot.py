"""Pictures of the report in a real browser: `python tests/reporting/screenshot.py OUT_DIR [RUN_DIR]`.

Without RUN_DIR two invented runs are made: short sums, and word problems with long completions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from browser import Page, find_chromium
from synthetic_run import make_run

from grpo_jax.reporting.report import write_report

WIDTHS = {"wide": (1400, 1000), "narrow": (420, 900)}
SECTIONS = ("top", "evaluation", "curves", "rollouts", "config")
TO_SECTION = "document.getElementById('{}')?.scrollIntoView()"
HOVER = """(() => {
  const box = document.querySelector('.tokens'), spans = [...box.querySelectorAll('[data-t]')];
  const span = spans.find(s => s.classList.contains('rare')) || spans[2];
  const place = span.getBoundingClientRect();
  return [place.left + place.width / 2, place.top + place.height / 2];
})()"""


def take(report: Path, out: Path, name: str) -> list[str]:
    """Save pictures of a report, light and dark, wide and narrow; return what the browser complained of."""
    complaints = []
    for scheme in ("light", "dark"):
        for width, size in WIDTHS.items():
            with Page(*size, dark=scheme == "dark") as page:
                page.open(report)
                for section in SECTIONS:
                    page.evaluate("scrollTo(0, 0)" if section == "top" else TO_SECTION.format(section))
                    page.settle()
                    if section == "rollouts":
                        page.evaluate("document.querySelector('.completions').scrollIntoView({block: 'center'})")
                        page.settle()
                        page.screenshot(out / f"{name}-{scheme}-{width}-tokens.png")
                        page.evaluate(TO_SECTION.format(section))
                        page.settle()
                        page.pointer("mouseMoved", *page.evaluate(HOVER))
                    page.screenshot(out / f"{name}-{scheme}-{width}-{section}.png")
                whole = page.evaluate("document.documentElement.scrollHeight")
                page.resize(size[0], min(whole, 7000))
                page.settle()
                page.evaluate("scrollTo(0, 0)")
                page.settle()
                page.screenshot(out / f"{name}-{scheme}-{width}-whole.png")
                complaints += page.complaints
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(description="Save pictures of the report.")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("run_dir", type=Path, nargs="?")
    arguments = parser.parse_args()
    if find_chromium() is None:
        print("no chromium here; `apt-get install chromium`", file=sys.stderr)
        return 2
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        runs = [arguments.run_dir] if arguments.run_dir else []
        runs = runs or [make_run(Path(temporary) / "sums"), make_run(Path(temporary) / "words", words=True)]
        complaints = [c for run in runs for c in take(write_report(run), arguments.out_dir, run.resolve().name)]
    print("\n".join(complaints) or "no complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
