"""What is printed is what was there: names of files and classes are nobody's markup."""

from __future__ import annotations

import os

import pytest

from kitae import console
from kitae.console import decimals

NAMES = (r"\[/foo]", r"a\[bold]x.png", "x:car:y.png", "1:100:5", "[red]", os.fsdecode(b"caf\xe9.jpg"), "\U00020bb7野")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = name.replace("\udce9", "\ufffd")
    console.say(name)
    console.table("", ["file", name], [[name, "1"]])
    console.error(name)
    said = capsys.readouterr()
    said.out.encode("utf-8")
    assert said.out.splitlines()[0] == shown
    assert said.out.count(shown) == 3
    assert said.err == f"error: {shown}\n"


def test_decimals_follow_the_error() -> None:
    assert [decimals(value) for value in (0.00034, 0.3, 4.0, 40.0, 1e-12)] == [5, 2, 1, 0, 8]
    assert decimals(0.0) == decimals(float("nan")) == 3
    assert decimals(float("inf"), otherwise=1) == 1
