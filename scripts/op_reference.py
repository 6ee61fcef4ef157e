"""Write the ops into the docs, from the classes: the table in docs/augmentation.md, all parameters in docs/ops.md.

python scripts/op_reference.py
"""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from kitae.augment.ops import OPS, Op

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- ops: begin -->\n", "<!-- ops: end -->\n"


def rows() -> str:
    """The table, in Markdown: each op, its parameters with their defaults, and the first sentence of its docstring."""
    lines = ["| op | parameters and defaults | what it does |", "|---|---|---|"]
    return "\n".join([*lines, *map(_row, OPS.values())]) + "\n"


def _row(op: type[Op]) -> str:
    parameters = ", ".join(f"{name}: {_value(field.default)}" for name, field in op.model_fields.items())
    sentence = " ".join((op.__doc__ or "").split("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    return f"| `{op.name}` | {parameters} | {sentence.replace('|', '/')} |"


def details() -> str:
    """A section for each op, in Markdown: its docstring, and its parameters with their ranges and defaults."""
    return "\n".join(map(_section, OPS.values()))


def _section(op: type[Op]) -> str:
    about = re.sub(r"^([a-z_, ]+): ", r"- `\1`: ", inspect.cleandoc(op.__doc__ or ""), flags=re.MULTILINE)
    lines = [f"## {op.name}", "", about, ""]
    if op.model_fields:
        lines += ["| parameter | default | range |", "|---|---|---|"]
    for name, field in op.model_fields.items():
        lines.append(f"| `{name}` | `{_value(field.default)}` | {_bounds(field)} |")
    return "\n".join([*lines, ""])


def _bounds(field: FieldInfo) -> str:
    """The range that a field's validators check, or its words; empty where there is none."""
    if typing.get_origin(field.annotation) is typing.Literal:
        return " or ".join(f"`{word}`" for word in typing.get_args(field.annotation))
    checks = (one.func.__doc__ or "" for one in field.metadata if isinstance(one, AfterValidator))
    return ", ".join(text for text in (*(check.split("\n")[0] for check in checks), *limits(field)) if text)


def limits(field: FieldInfo) -> list[str]:
    """The bounds that a field of any spec declares, such as `>= 0`."""
    signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
    return [f"{sign} {getattr(one, name)}" for one in field.metadata for name, sign in signs if hasattr(one, name)]


def _value(default: object) -> str:
    if default is None:
        return "null"
    if isinstance(default, tuple):
        return "[" + ", ".join(map(_value, default)) + "]"
    return f"{default:.3g}" if isinstance(default, float) else str(default).lower()


def rewrite(text: str, content: str) -> str:
    """A page with what is between its marks brought up to date. Raises ValueError where a mark is missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a page needs {BEGIN.strip()} and, below it, {END.strip()}")
    return head + begin + content + end + tail


if __name__ == "__main__":
    for page, content in ((DOCS / "augmentation.md", rows()), (DOCS / "ops.md", details())):
        page.write_text(rewrite(page.read_text(encoding="utf-8"), content), encoding="utf-8")
