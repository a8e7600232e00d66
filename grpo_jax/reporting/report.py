"""One HTML file for a run, of the files in its directory: `python -m grpo_jax.reporting.report RUN_DIR`.

The file needs no network and no other file. It can be made at any time, of a run that is going on as well.
All text of the run is data to the page: the script that runs is named by its hash, and no other can.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from grpo_jax.reporting.charts import layout, verdict
from grpo_jax.reporting.evaluations import columns
from grpo_jax.reporting.files import is_primary, to_script_json, write_atomically
from grpo_jax.reporting.gather import Run, facts, gather
from grpo_jax.reporting.lanes import LANE_HEIGHT, LANE_PITCH, step_lanes
from grpo_jax.reporting.ledger_table import accounts, count_rows, shown_all
from grpo_jax.reporting.pictures import MARK_PITCH, PLOT_HEIGHT, kinds, lines_over_k, table_rows
from grpo_jax.reporting.selection import choose_rollouts
from grpo_jax.reporting.series import MAX_NUMBERS, curves

HERE = Path(__file__).resolve().parent
SCRIPTS = ("elements.js", "chart.js", "curves.js", "rollouts.js", "page.js")


class ReportError(ValueError):
    """A directory of which no report can be made."""

    exit_code = 2


def write_report(directory: str | Path) -> Path:
    """Write `<directory>/report.html` of what lies there, atomically, and return its path.

    Only process 0 writes. Raises `ReportError` if there is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ReportError(f"no run at {directory}: not a directory; give the output_dir of a run")
    path = directory / "report.html"
    if is_primary():
        write_atomically(path, render(gather(directory)))
    return path


def render(run: Run) -> str:
    """The page of a run as text."""
    data, problems = page_data(run)
    evaluations, found = columns(run.evaluations), accounts(run.ledger)
    lines, places = lines_over_k(evaluations)
    script = "(() => {\n'use strict';\n" + "\n".join(read(name) for name in SCRIPTS) + "\n})();"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        run=run,
        facts=facts(run),
        evaluations=list(zip(evaluations, kinds(len(evaluations)), strict=True)) if evaluations else [],
        rows=table_rows(evaluations),
        lines=lines,
        places=places,
        plot_height=PLOT_HEIGHT,
        mark_pitch=MARK_PITCH,
        steps=step_lanes(run.timeline, run.stages.get("rl", [])),
        lane_height=LANE_HEIGHT,
        lane_pitch=LANE_PITCH,
        accounts=found,
        counts=count_rows(found),
        common=shown_all(run.ledger.get("choices", [])),
        stages=data["stages"],
        rollouts=data["rollouts"],
        problems=problems,
        data=Markup(to_script_json(data)),
        environment_text=json.dumps(run.environment, indent=2, ensure_ascii=False),
        style=Markup(read("report.css")),
        script=Markup(script),
        script_hash=digest,
    )


def page_data(run: Run) -> tuple[dict[str, Any], list[str]]:
    """What the script draws: the curves of the stages and the rollouts; and what could not be read."""
    stages = []
    for name, records in run.stages.items():
        drawn = curves(records, MAX_NUMBERS // len(run.stages))
        sections = layout(list(drawn["series"]), name)
        for chart in (chart for section in sections for chart in section["charts"]):
            chart["verdict"] = verdict(chart, records)
        stages.append({"name": name, "sections": sections} | drawn)
    rollouts, problems = choose_rollouts(run.rollouts)
    data = {"name": run.name, "stages": stages, "rollouts": rollouts, "rollout_files": len(run.rollouts)}
    return data, run.problems + problems


def read(name: str) -> str:
    """A part of the page."""
    return (HERE / name).read_text("utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the report of the run named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m grpo_jax.reporting.report", description="Write report.html of a run, finished or not."
    )
    parser.add_argument("run_dir", help="the output_dir of the run")
    directory = parser.parse_args(arguments).run_dir
    try:
        path = write_report(directory)
    except (ReportError, OSError) as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 2)
    print(f"{path}  ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
