"""What is printed is what was there: names of files and classes are nobody's markup."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

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


def test_tables_are_drawn_for_people_and_tab_separated_for_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("two rows", ["name", "share"], [["a\tb", "1.0 %"], ["  c\nd", "99.0 %"]])
    console.table(*words)
    assert capsys.readouterr().out == "two rows\nname\tshare\na b\t1.0 %\nc d\t99.0 %\n"
    monkeypatch.setattr(console, "interactive", lambda: True)
    console.table(*words)
    assert "─" in capsys.readouterr().out


def test_a_line_is_not_broken_between_a_number_and_its_percent_sign(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "interactive", lambda: True)
    best = "cardboard 91.2 %  glass 8.0 %  metal 0.8 %"
    for width in range(30, 60):
        monkeypatch.setattr(console.console, "width", width)
        console.table("", ["image", "best 3"], [["a.jpg", best]], right=9)
        rows = [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        assert not [row for row in rows if row.startswith("%")], width
        assert " ".join(rows).split() == best.split()


def test_with_json_stdout_has_one_document_and_stderr_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"share": np.float32(0.5), "missing": float("nan"), "path": Path("a"), "names": ("野", "\udce9")}
    console.answer(value)
    with console.json_only(True):
        console.say("epoch 1")
        with console.counting("reading"):
            console.table("", ["name"], [["a"]])
        console.answer(value)
    console.say("after")
    said = capsys.readouterr()
    document, _, rest = said.out.rpartition("after")
    assert json.loads(document) == {"share": 0.5, "missing": None, "path": "a", "names": ["野", "\ufffd"]}
    assert rest == "\n"
    assert said.err == "epoch 1\n"


def test_decimals_follow_the_error() -> None:
    assert [decimals(value) for value in (0.00034, 0.3, 4.0, 40.0, 1e-12)] == [5, 2, 1, 0, 8]
    assert decimals(0.0) == decimals(float("nan")) == 3
    assert decimals(float("inf"), otherwise=1) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (44.7e6, "44.7 MB"),
        (999.96e3, "1 MB"),
        (2.3e9, "2.3 GB"),
        (999.7e9, "1,000 GB"),
    ],
)
def test_sizes_are_told_in_decimal_units(value: float, text: str) -> None:
    assert console.size(value) == text


def test_the_time_left_counts_the_steps_of_this_process_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    view = console.TrainingView()
    view.on_plan(10)
    for step in range(901, 924):  # resumed within epoch 5 of 10; the first step compiles for a minute
        clock[0] += 60 if step == 901 else 3
        view.on_step(4, step, 1000, 1.0, 100.0, 0.0)
    lines = capsys.readouterr().out.splitlines()
    assert "left" not in lines[0]
    assert lines[-1].startswith("epoch 5/10  step 923/1000")
    assert lines[-1].endswith(f"{console.duration(3 * (10_000 - 4_923))} left")


def test_quiet_silences_other_libraries_below_an_error(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("another.package")
    with warnings.catch_warnings(action="error"), suppress(ValueError), console.quiet():
        warnings.warn("a warning", stacklevel=1)
        logger.warning("a message")
        logger.error("an error")
        raise ValueError
    logger.warning("afterwards")
    assert [record.message for record in caplog.records] == ["an error", "afterwards"]


def test_the_time_left_starts_anew_with_every_fold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    view = console.TrainingView()
    for seconds in (9, 3):
        view.on_plan(2)
        for done in range(1, 201):
            clock[0] += seconds
            view.on_step((done - 1) // 100, (done - 1) % 100 + 1, 100, 1.0, 100.0, 0.0)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) > 10
        assert lines[0].endswith("data wait 0.0 %") == (
            seconds == 9
        )  # the first step of all has a line, and no time yet
        for line in lines[seconds == 9 :]:
            epoch, step = map(int, re.findall(r"epoch (\d)/2  step (\d+)/100", line)[0])
            assert line.endswith(f"  {console.duration(seconds * (300 - 100 * epoch - step))} left")


def test_progress_is_printed_where_somebody_looks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    for looks in (False, True):
        monkeypatch.setattr(console, "interactive", lambda looks=looks: looks)
        console.reporter(lines.append)("to the caller")
        console.reporter(None)("to whom it may concern")
        assert capsys.readouterr().out == ("to whom it may concern\n" if looks else "")
    assert lines == ["to the caller"] * 2


@pytest.mark.parametrize(("terminal", "notebook"), [(False, False), (True, False), (False, True)])
def test_images_are_counted_on_a_terminal_and_in_a_notebook(
    terminal: bool, notebook: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Console(file=io.StringIO(), force_terminal=terminal, force_jupyter=notebook)
    monkeypatch.setattr(console, "console", shown)
    with console.counter(None, "reading images") as counted:
        assert (counted is not None) == (terminal or notebook)
    mine: list[int] = []
    with console.counter(lambda done, _: mine.append(done), "reading images") as counted:
        counted(1, 2)
    assert mine == [1]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("parquet:/home/me/cifar10.parquet", "cifar10"), ("csv:birds.csv", "birds"), ("folder:/data/photos/", "photos"),
        ("folder:v1.2", "v1.2"), ("folder:.", "folder"), ("cifar10:/data", "cifar10"), ("photos-mini", "photos-mini"),
        ("webdataset:https://example.org/train-{000..099}.tar", "train"), ("webdataset:shards/*.tar", "webdataset"),
    ],
)  # fmt: skip
def test_data_are_named_without_path_and_ending(source: str, name: str) -> None:
    assert console.data_name(source) == name
