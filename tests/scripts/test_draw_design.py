"""The drawing of the packages is that of the imports, and the page explains every box."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import draw_design

PAGE = Path(__file__).parents[2] / "docs" / "design.md"


def check(monkeypatch: pytest.MonkeyPatch) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["draw_design.py", "--check"])
    with pytest.raises(SystemExit) as found:
        draw_design.main()
    return found.value.code


def test_the_drawing_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the script again if this fails: python scripts/draw_design.py"""
    assert check(monkeypatch) == 0


def test_another_arrow_counts_and_another_number_of_lines_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw_design.OUT.read_text()
    monkeypatch.setattr(draw_design, "OUT", tmp_path / "design.svg")
    draw_design.OUT.write_text(re.sub(r"[\d,]+ lines", "1,234 lines", drawn))
    assert check(monkeypatch) == 0
    draw_design.OUT.write_text(re.sub(r"<path d=.*marker-end.*\n", "", drawn, count=1))
    assert "out of date" in str(check(monkeypatch))


def test_every_box_has_its_words() -> None:
    uses, _ = draw_design.graph()
    text = PAGE.read_text(encoding="utf-8")
    assert not {package for package in uses if f"**{package}**" not in text}
