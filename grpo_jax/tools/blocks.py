"""Programs in the text of a completion, and how their output is written below them (arXiv:2402.03300, section 3.1).

    ```python
    print(6 * 7)
    ```
    ```output
    42
    ```

The fences are Markdown's: a block begins with a line that ends in "```python", and ends at a line of "```" alone.
"""

from __future__ import annotations

import re
import textwrap

HEAD, TAIL = "```output\n", "\n```\n"
GAP = "..."
_OPEN = re.compile(r"```(?:python|python3|py)[ \t]*$", re.IGNORECASE)


def closed_program(text: str) -> str | None:
    """The program of a text that ends with a closed block of Python and nothing after it; None: there is none."""
    program: list[str] | None = None
    block, python = False, False
    for line in text.splitlines():
        bare = line.strip()
        if _OPEN.search(line):
            block, python, lines = True, True, []
        elif block and bare == "```":
            program = lines if python else None
            block = False
        elif block:
            lines.append(line)
        elif bare.startswith("```"):
            block, python, lines = True, False, []
        elif bare:
            program = None
    return textwrap.dedent("\n".join(program)) if program is not None and not block else None


def programs(text: str) -> list[str]:
    """All closed blocks of Python, in order."""
    found, lines, python = [], None, False
    for line in text.splitlines():
        if _OPEN.search(line):
            lines, python = [], True
        elif lines is not None and line.strip() == "```":
            found += ["\n".join(lines)] if python else []
            lines = None
        elif lines is not None:
            lines.append(line)
        elif line.strip().startswith("```"):
            lines, python = [], False
    return [textwrap.dedent(program) for program in found]
