"""What other trainers have, cell by cell, with the place in their source that shows it: docs/rivals.md.

    python scripts/rivals.py        # from scripts/rivals.json, which was written by hand

The table in the README has the same cells; a test compares them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "scripts" / "rivals.json"
PAGE = ROOT / "docs" / "rivals.md"
HEAD = """# What others have

The evidence for the table in the README: where in the source or the documentation of each project a feature is, or what
was searched for where none was found. *Partly* is a feature that is not made for this job, or that needs a few lines of
the user's own. Made by `python scripts/rivals.py` from `scripts/rivals.json`.
"""


def markdown(found: dict[str, Any]) -> str:
    parts = [HEAD, f"Read for this, last on {found['checked']}:\n"]
    parts[1] += "".join(f"\n- {rival}: {what}" for rival, what in found["read"].items())
    rows: dict[str, list[str]] = {}
    for cell in found["cells"]:
        evidence = cell["evidence"].replace("|", "\\|")
        rows.setdefault(cell["row"], []).append(f"| {cell['rival']} | {cell['cell']} | {evidence} |")
    for row, lines in rows.items():
        name = row[0].upper() + row[1:]
        parts.append("\n".join([f"## {name}", "", "| Project | | Where |", "|---|---|---|", *lines]))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(markdown(json.loads(CELLS.read_text(encoding="utf-8"))), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
