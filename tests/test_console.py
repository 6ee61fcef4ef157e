"""What is printed is what was there: names of files and classes are nobody's markup."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import warnings
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from kitae import console
from kitae.console import decimals

NAMES = (r"\[/foo]", r"a  \[bold]x.png", "x:car:y.png", "1:100:5", "[red]", os.fsdecode(b"caf\xe9.jpg"), "\U00020bb7野")


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


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_is_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, written = {"caf\xe9": "\U0001f600", "file": "\udce9"}, io.BytesIO()
    output = io.TextIOWrapper(written, encoding=encoding, errors="backslashreplace")  # as a command sets it
    monkeypatch.setattr(sys, "stdout", output)
    with console.json_only(True):
        console.answer(value)
    output.flush()
    assert json.loads(written.getvalue().decode(encoding)) == {**value, "file": "\ufffd"}


def test_decimals_follow_the_error() -> None:
    assert [decimals(value) for value in (0.00034, 0.3, 4.0, 40.0, 1e-12)] == [5, 2, 1, 0, 8]
    assert decimals(0.0) == decimals(float("nan")) == 3
    assert decimals(float("inf"), otherwise=1) == 1


def test_sizes_are_told_in_decimal_units() -> None:
    sizes = {0: "0 B", 999: "999 B", 1000: "1 kB", 44.7e6: "44.7 MB", 999.96e3: "1 MB", 2.3e9: "2.3 GB",
             999.7e9: "1,000 GB"}  # fmt: skip
    assert {value: console.size(value) for value in sizes} == sizes


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


def test_handlers_of_other_libraries_do_not_stay_at_the_root_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with console.quiet():
        logging.warning("makes a handler")
    assert logging.root.handlers == []


def test_threads_that_are_quiet_leave_the_process_as_it_was() -> None:
    before = logging.root.manager.disable, list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def quietly() -> None:
        with console.quiet():
            entered.set()
            leave.wait(60)

    first, second = threading.Thread(target=quietly), threading.Thread(target=quietly)
    first.start()
    assert entered.wait(60)
    second.start()
    second.join(0.2)
    leave.set()
    first.join()
    second.join()
    assert (logging.root.manager.disable, list(warnings.filters)) == before


def test_the_time_left_is_of_each_fold(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_bar_of_a_terminal_starts_again_with_each_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    shown = Console(file=io.StringIO(), force_terminal=True, get_time=lambda: clock[0])
    monkeypatch.setattr(console, "console", shown)
    with console.TrainingView() as view:
        assert view._bar is not None
        for _fold in range(2):
            begun = clock[0]
            view.on_plan(2)
            for step in range(1, 11):
                clock[0] += 3
                view.on_step(step > 5, (step - 1) % 5 + 1, 5, 1.0, 100.0, 0.0)
                task = view._bar.tasks[0]
                assert task.finished == (step == 10)
                assert task.elapsed == clock[0] - begun
                assert step < 2 or task.time_remaining == 3 * (10 - step)


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of Emacs, where rich shows no bar."""
    seen, told = io.StringIO(), io.StringIO()
    for name, file in (("console", seen), ("errors", told)):
        monkeypatch.setattr(console, name, Console(file=file, force_terminal=True, _environ={"TERM": "dumb"}))
    clock = count(0, 20)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.status("evaluate x"):
        assert told.getvalue() == "starting: kitae evaluate x\n"
    with console.TrainingView() as view, console.counting("decoding images") as counted:
        console.starting("train x", bar=True)
        counted(1, 2)
        view.on_plan(1)
        view.on_step(0, 1, 9, 1.0, 100.0, 0.0)
    first, decoded, step = seen.getvalue().splitlines()
    assert (first, decoded) == ("starting: kitae train x", "decoding images: 1 of 2")
    assert step.startswith("epoch 1/1  step 1/9  loss 1.000")


def test_progress_is_where_somebody_looks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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


class Cell:
    """The output of a notebook's cell: every state that it had. Stands in for IPython.display."""

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, str]]] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw
        assert display_id
        states = [data]
        self.outputs.append(states)
        return SimpleNamespace(update=lambda data, raw: states.append(data))


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """The cell of a notebook in which the console prints, with a clock that ticks once a second."""
    found = Cell()
    monkeypatch.setitem(sys.modules, "IPython.display", found)
    monkeypatch.setattr(console, "console", Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(console, "say", lambda text: found.outputs.append([{"text/plain": text}]))
    clock = count()
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    return found


def test_a_notebook_shows_one_bar_of_a_training_that_is_replaced_and_emptied(cell: Cell) -> None:
    with console.TrainingView() as view:
        view.on_plan(2)
        for done in range(8):
            view.on_step(done // 4, done % 4 + 1, 4, 0.5, 1234.0, 0.01)
    [states] = cell.outputs
    assert [state["text/plain"] for state in states[:2]] == [
        "starting", "epoch 1/2  1/8  loss 0.500  1,234 images/s  data wait 1.0 %"
    ]  # fmt: skip
    assert "<progress aria-label" in states[0]["text/html"]  # how far it is is not known
    assert states[5]["text/plain"].startswith("epoch 2/2  5/8  ")
    assert states[5]["text/plain"].endswith("left")
    assert '<progress value="5" max="8"' in states[5]["text/html"]
    assert states[-1] == {"text/plain": "", "text/html": ""}


def test_a_bar_of_a_notebook_is_emptied_by_an_error(cell: Cell) -> None:
    with suppress(ValueError), console.counting("<b>reading") as counted:
        counted(1, 3)
        raise ValueError
    [states] = cell.outputs
    assert states[0]["text/plain"] == "<b>reading  1/3"
    assert "<b>" not in states[0]["text/html"]
    assert states[-1] == {"text/plain": "", "text/html": ""}


def test_a_bar_of_a_notebook_has_few_states_a_second(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock) / 100)
    with console.counting("reading") as counted:
        for done in range(1, 201):  # two seconds
            counted(done, 200)
    [states] = cell.outputs
    assert 7 <= len(states) <= 10


def test_json_has_no_bar_in_a_notebook(cell: Cell) -> None:
    with console.json_only(True), console.counting("reading") as counted, console.TrainingView() as view:
        counted(1, 2)
        view.on_plan(1)
        view.on_step(0, 1, 2, 0.5, 10.0, 0.0)
    assert len(cell.outputs) == 1
    assert list(cell.outputs[0][0]) == ["text/plain"]


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
