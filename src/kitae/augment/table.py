"""The table of ops in the docs, generated from the classes.

python -m kitae.augment.table docs/augmentation.md    # rewrite it between its two marks
"""

from __future__ import annotations

import sys
from pathlib import Path

from kitae.augment.ops import OPS, Op

BEGIN, END = "<!-- ops: begin -->\n", "<!-- ops: end -->\n"


def rows() -> str:
    """The table, in Markdown: each op, its parameters with their defaults, and the first sentence of its docstring."""
    lines = ["| op | parameters and defaults | what it does |", "|---|---|---|"]
    return "\n".join([*lines, *map(_row, OPS.values())]) + "\n"


def _row(op: type[Op]) -> str:
    parameters = ", ".join(f"{name}: {_value(field.default)}" for name, field in op.model_fields.items())
    sentence = " ".join((op.__doc__ or "").split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    return f"| `{op.name}` | {parameters} | {sentence.replace('|', '/')} |"


def _value(default: object) -> str:
    if default is None:
        return "null"
    if isinstance(default, tuple):
        return "[" + ", ".join(map(_value, default)) + "]"
    return f"{default:.3g}" if isinstance(default, float) else str(default).lower()


def rewrite(text: str) -> str:
    """A page with the table between its marks brought up to date."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + rows() + END + rest.partition(END)[2]


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(rewrite(page.read_text()))
