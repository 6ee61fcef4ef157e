"""Draw the structure: the packages of src/kitae, their sizes, and which imports which, as docs/images/design.svg.

    python scripts/draw_design.py [--check]

A package is a folder of src/kitae, or one of the files beside them. Its row is one above the highest package that it
imports. An arrow that follows from two others is left out. `--check` writes nothing, and fails where a box or an arrow
is out of date; the numbers of lines may be those of an earlier version.
"""

from __future__ import annotations

import ast
import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "kitae"
OUT = ROOT / "docs" / "images" / "design.svg"
BASE = "base"  # the small files that import no package: errors, files, keyed, ...
WIDTH, BOX, GAP, ROW = 1000, (128, 46), 16, 104


def package_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


def graph() -> tuple[dict[str, set[str]], dict[str, int]]:
    """Imports and lines of each package. `__init__` and `__main__` name every package and are left out."""
    uses: dict[str, set[str]] = {}
    lines: dict[str, int] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        package = package_of(path)
        if package in ("__init__", "__main__"):
            continue
        text = path.read_text()
        lines[package] = lines.get(package, 0) + text.count("\n")
        found = uses.setdefault(package, set())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kitae":
                parts = node.module.split(".")
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kitae.")}
    uses = {
        package: {other for other in found if other in uses and other != package} for package, found in uses.items()
    }
    return _with_base(uses, lines)


def _with_base(uses: dict[str, set[str]], lines: dict[str, int]) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Put the files that import no package, or only such files, into one box."""
    files = {package for package in uses if (SOURCE / f"{package}.py").is_file()}
    small = {package for package in files if lines[package] < 400}
    base: set[str] = set()
    while more := {package for package in small - base if uses[package] <= base}:
        base |= more
    merged = {package: {BASE if other in base else other for other in found} for package, found in uses.items()}
    sizes = {package: count for package, count in lines.items() if package not in base}
    sizes[BASE] = sum(lines[package] for package in base)
    return {**{package: merged[package] for package in uses if package not in base}, BASE: set()}, sizes


def levels(uses: dict[str, set[str]]) -> dict[str, int]:
    """Package -> row from the bottom."""
    found: dict[str, int] = {}

    def level(package: str) -> int:
        if package not in found:
            found[package] = 1 + max((level(other) for other in uses[package]), default=-1)
        return found[package]

    for package in uses:
        level(package)
    return found


def direct(uses: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that do not follow from two others."""

    def reach(package: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in uses[package]))

    return {
        package: {other for other in found if not any(other in reach(between) for between in found - {other})}
        for package, found in uses.items()
    }


def svg() -> str:
    """The drawing, with colours that follow light and dark."""
    uses, lines = graph()
    row_of = levels(uses)
    rows = [sorted(package for package in uses if row_of[package] == row) for row in range(max(row_of.values()) + 1)]
    height = ROW * len(rows) + 20
    place = {}
    for row, packages in enumerate(rows):
        step = BOX[0] + GAP
        left = (WIDTH - step * len(packages) + GAP) / 2
        for column, package in enumerate(packages):
            place[package] = (left + step * column, height - ROW * (row + 1) + 24)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif">',
        "<title>The packages of src/kitae and their imports</title>",
        "<style>:root{--ink:#222;--box:#eef2f7;--line:#9aa7b8}@media(prefers-color-scheme:dark){:root{--ink:#eee;"
        "--box:#26303c;--line:#66758a}}text{fill:var(--ink);text-anchor:middle;font-size:14px}.small{font-size:11px;"
        "opacity:.75}rect{fill:var(--box);stroke:var(--line)}path{fill:none;stroke:var(--line)}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" style="fill:var(--line);stroke:none"/></marker></defs>',
    ]
    for package, others in sorted(direct(uses).items()):
        for other in sorted(others):
            (x, y), (u, v) = place[package], place[other]
            x, y, u = x + BOX[0] / 2, y + BOX[1], u + BOX[0] / 2
            middle = (y + v) / 2
            parts.append(
                f'<path d="M{x:.0f} {y:.0f}C{x:.0f} {middle:.0f} {u:.0f} {middle:.0f} {u:.0f} {v:.0f}" '
                'marker-end="url(#tip)"/>'
            )
    for package, (x, y) in sorted(place.items()):
        size = max(100, round(lines[package], -2))
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>'
            f'<text x="{x + BOX[0] / 2:.0f}" y="{y + 20:.0f}">{escape(package)}</text>'
            f'<text class="small" x="{x + BOX[0] / 2:.0f}" y="{y + 36:.0f}">{size:,} lines</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    drawn = svg()
    if "--check" in sys.argv:
        old, new = (re.sub(r"[\d,]+ lines", "", text) for text in (OUT.read_text(), drawn))
        sys.exit(0 if old == new else f"{OUT.name} is out of date: run {sys.argv[0]}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(drawn)
    print(OUT)


if __name__ == "__main__":
    main()
