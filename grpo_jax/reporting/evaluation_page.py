"""One HTML file for an evaluation: its numbers, Maj@K and Pass@K over K, and every problem with what was answered.

The file needs no network and no other file; what a model wrote is data to it (see `report.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from grpo_jax.reporting.evaluation_table import APART, difference, share
from grpo_jax.reporting.evaluations import metric_rows, show, show_interval
from grpo_jax.reporting.files import read_json_lines, to_script_json, write_atomically
from grpo_jax.reporting.over_k import figure
from grpo_jax.reporting.report import HERE, read

SCRIPTS = ("elements.js", "evaluation.js")
LETTERS = 6_000_000  # of what models wrote, in one page
LONGEST = 4_000  # of one completion
EACH = 3  # completions of a problem besides the greedy one: those that the largest classes begin with


def write_page(out: Path) -> Path:
    """Write `<out>/report.html` and the figure beside it, of the finished results that lie there; returns its path."""
    folders = sorted(path.parent for path in out.glob("*/result.json"))
    results = [json.loads((folder / "result.json").read_text("utf-8")) for folder in folders]
    picture = figure(results)
    if picture:
        write_atomically(out / "maj_pass_at_k.svg", picture + "\n")
    left = LETTERS
    tasks = []
    for folder, result in zip(folders, results, strict=True):
        task, left = task_data(folder, result, left)
        tasks.append(task)
    path = out / "report.html"
    write_atomically(path, render(out.name, results, tasks, picture))
    return path


def render(name: str, results: list[dict[str, Any]], tasks: list[dict[str, Any]], picture: str) -> str:
    """The page as text."""
    script = "(() => {\n'use strict';\n" + "\n".join(read(part) for part in SCRIPTS) + "\n})();"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("evaluation.html.jinja").render(
        name=name,
        results=results,
        rows=rows_of(results),
        compared=", ".join(dict.fromkeys(result["against"]["title"] for result in results if "against" in result)),
        picture=Markup(picture),
        data=Markup(to_script_json({"tasks": tasks})),
        style=Markup(read("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def rows_of(results: list[dict[str, Any]]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The table: a name, and for each benchmark number, interval, and the difference to the other run."""
    rows = [
        (
            row.name,
            [
                (show(one), show_interval(one), difference(result.get("against", {}).get("paired", {}).get(row.name)))
                for result, one in zip(results, row.cells, strict=True)
            ],
        )
        for row in metric_rows(results)
    ]
    for mode in ("greedy", "sampled"):
        for what in APART:
            cells = [(share(result["counts"][mode], what), "", "") for result in results]
            if any(result["counts"][mode][what] for result in results):
                rows.append((f"{mode}, {what}", cells))
    return rows


def task_data(folder: Path, result: dict[str, Any], letters: int) -> tuple[dict[str, Any], int]:
    """What the page's script shows of a benchmark: one entry a problem; texts as long as there is room for them."""
    saved = json.loads((folder / "problems.json").read_text("utf-8"))
    of_mode = {}
    for mode in ("greedy", "samples"):
        lines, _ = read_json_lines(folder / f"{mode}.jsonl")
        of_mode[mode] = {(line["index"], line["sample"]): line for line in lines}
    n, shown = result["num_samples"], []
    for i, problem in enumerate(saved["problems"]):
        samples = [of_mode["samples"][i, g] for g in range(n)]
        votes = Counter(vote for vote in saved["votes"][i] if vote is not None).most_common()
        chosen = [of_mode["greedy"][i, 0], *first_of_classes(samples, saved["votes"][i], [vote for vote, _ in votes])]
        entry = {
            "id": problem["id"],
            "question": problem["question"],
            "answer": problem["answer"],
            "votes": votes[:8],
            "grades": "".join(letter_of(one) for one in samples),
            "shown": [completion(one) for one in chosen],
        }
        needed = sum(len(one["text"]) for one in entry["shown"])
        if needed > letters:
            for one in entry["shown"]:
                del one["text"]
        letters -= needed if needed <= letters else 0
        shown.append(entry)
    return {"name": result["name"], "samples": n, "problems": shown}, letters


def first_of_classes(samples: list[dict[str, Any]], votes: list[str | None], order: list[str]) -> list[dict[str, Any]]:
    """The first sample of each of the largest classes, and of those without an answer if there is room."""
    firsts = {vote: sample for vote, sample in reversed(list(zip(votes, samples, strict=True)))}
    return [firsts[vote] for vote in [*order, None] if vote in firsts][:EACH]


def completion(one: dict[str, Any]) -> dict[str, Any]:
    """A completion for the page."""
    text = one["text"]
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}\n[...]\n{text[-LONGEST // 2 :]}"
    kept = {key: one[key] for key in ("sample", "answer", "grade", "reason", "finished", "length", "official")}
    return kept | {"text": cut}


def letter_of(one: dict[str, Any]) -> str:
    """r right, w wrong, u ungradable, n no answer, t truncated before there was one."""
    if one["grade"] != "wrong" or one["answer"] is not None:
        return one["grade"][0]
    return "n" if one["finished"] else "t"
