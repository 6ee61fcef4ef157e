"""`make figures` makes every page and picture that comes from the code and the committed results, and nothing else."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images import assert_alike

ROOT = Path(__file__).parents[2]
# Pages without a word by hand.
PAGES = (
    "ledger.md", "recipe.md", "rivals.md", "benchmarks/augment.md", "benchmarks/compression.md",
    "benchmarks/gpu.md", "benchmarks/photographs.md", "benchmarks/training.md",
)  # fmt: skip
# Parts of the other pages.
PARTS = (
    r"(<!-- measured: [\w -]+ -->\n).*?(<!-- measured: end -->)",
    r"(<!-- ops: begin -->\n).*?(<!-- ops: end -->)",
    r"(<!-- by scripts/benchmark_pages.py -->\n).*?(<!-- by hand -->)",
)
# What a browser showed of runs, and what a compression drew of weights: neither is kept but as a picture.
KEPT = ("images/pages/*", "benchmarks/compression-*-filters.png")


def commands() -> list[list[str]]:
    """The words after `python` of each command of `make figures`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^figures: setup\n((?:\t.+\n)+)", makefile, re.MULTILINE)
    found = [shlex.split(line) for line in lines.splitlines()]
    assert {words[0] for words in found} == {"$(BIN)/python"}
    return [words[1:] for words in found]


def blank(docs: Path) -> None:
    """Remove what is made: whole pages, parts of pages, and pictures."""
    for page in PAGES:
        (docs / page).unlink()
    for page in docs.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for part in PARTS:
            text = re.sub(part, r"\1lost\n\2", text, flags=re.DOTALL)
        page.write_text(text, encoding="utf-8")
    kept = {file for pattern in KEPT for file in docs.glob(pattern)}
    for picture in {*docs.rglob("*.svg"), *docs.rglob("*.png")} - kept:
        picture.unlink()


def without_counts(drawing: str) -> str:
    """The drawing of the design has numbers of lines, which every change of the code changes."""
    return re.sub(r"[\d,]+ lines", "", drawing)


def test_the_commands_are_scripts_that_are_there() -> None:
    for script, *_ in commands():
        assert (ROOT / script).is_file(), script


@pytest.mark.slow
def test_all_that_is_made_comes_back(tmp_path: Path) -> None:
    copied = ("docs", "scripts", "benchmarks", "studies", "src", "README.md", "README.ja.md")
    for name in copied:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    blank(tmp_path / "docs")
    for words in commands():
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stderr}"
    files = {path.relative_to(tmp_path) for path in (tmp_path / "docs").rglob("*") if path.is_file()}
    assert files == {path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*") if path.is_file()}
    for file in sorted(files):
        if file.suffix == ".png":
            assert_alike([tmp_path / file], (ROOT / file).parent)
        else:
            made, committed = ((root / file).read_text(encoding="utf-8") for root in (tmp_path, ROOT))
            assert without_counts(made) == without_counts(committed), file
