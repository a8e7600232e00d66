"""What a figure leaves: a plot, a table, sentences, and all of it on one page.

OUT/figure5.svg    the plot
OUT/figure5.md     words and table
OUT/figure5.json   every number, by seed too
OUT/figure5.html   the page, which stands alone
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax.evaluation.estimators import Interval
from grpo_jax.reporting.files import write_atomically
from grpo_jax.reproduce.drawing import Panel, chart

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1e22; margin: 2rem auto; max-width: 1200px; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #e1e2dc; text-align: right }
th:first-child, td:first-child { text-align: left }
svg { max-width: 100%; height: auto }
""".strip()


class Table(NamedTuple):
    """Rows of text under headers."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


class Findings(NamedTuple):
    """What came out of a figure."""

    name: str  # figure5
    title: str
    verdicts: Sequence[str]  # which of the paper's orderings held, a sentence each
    remarks: Sequence[str]  # how it was made, and what may be a cause
    tables: Sequence[Table]
    panels: Sequence[Panel]
    numbers: Mapping[str, Any]  # for the JSON file


def write(findings: Findings, out: Path) -> list[Path]:
    """Write the four files and return their paths."""
    texts = {"svg": chart(findings.panels), "md": markdown(findings), "html": page(findings)}
    texts["json"] = json.dumps(plain(findings.numbers | {"verdicts": list(findings.verdicts)}), indent=1) + "\n"
    paths = []
    for ending, text in texts.items():
        paths.append(out / f"{findings.name}.{ending}")
        write_atomically(paths[-1], text)
    return paths


def markdown(findings: Findings) -> str:
    """Words and tables as Markdown."""
    parts = [f"# {findings.title}", "", *(f"- {line}" for line in findings.verdicts), ""]
    for table in findings.tables:
        rule = ["---", *["---:"] * (len(table.headers) - 1)]
        parts += [table.caption, "", *(f"| {' | '.join(row)} |" for row in (table.headers, rule, *table.rows)), ""]
    return "\n".join([*parts, *(f"- {line}" for line in findings.remarks), ""])


def page(findings: Findings) -> str:
    """All of it on one page."""
    parts = [f"<h1>{escape(findings.title)}</h1>", items(findings.verdicts), chart(findings.panels)]
    for table in findings.tables:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in table.headers)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
        parts.append(
            f"<p>{escape(table.caption)}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )
    parts.append(items(findings.remarks))
    title = escape(findings.title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def items(lines: Sequence[str]) -> str:
    """Sentences as a list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def percent(interval: Interval) -> str:
    """`48.1 % [45.0, 51.2]`; without the brackets where nothing is known."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{100 * interval.mean:.1f} %"
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(interval: Interval) -> str:
    """A difference in percentage points: `+3.1 [1.0, 5.2]`."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{100 * interval.mean:+.1f}"
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def plain(value: Any) -> Any:
    """Numbers for strict JSON: what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
