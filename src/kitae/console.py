"""Terminal output: progress bars and drawn tables on a terminal, plain lines and tab-separated values elsewhere.

With `json_only`, standard output is one JSON document (`answer`), and everything else goes to standard error.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.containers import Lines
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kitae.files import plain
from kitae.machine import after_fork

_LISTED = 20  # rows of a listing on a terminal
_HELD = "\ue000"  # a space at which a line is not broken; of private use, so in no text
_PLAIN_SECONDS = 30.0  # between two lines inside a long epoch where there is no bar
_CELL_SECONDS = 0.25  # between two states of a bar in a notebook, each of which is a message to the browser

console = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
_json = False  # whether only `answer` prints to standard output
_silence = threading.RLock()
after_fork(_silence._at_fork_reinit)  # type: ignore[attr-defined]
_shown: Live | None = None  # the line of `status`, until something is printed


def interactive() -> bool:
    """Whether the output is shown to a person: in a terminal or a notebook, and not as JSON."""
    return not _json and (console.is_terminal or console.is_jupyter)


def _redraws(output: Console) -> bool:
    """Whether this is a terminal that can replace a line, as bars need; with TERM=dumb rich shows none."""
    return output.is_terminal and not output.is_dumb_terminal


def printable(name: object) -> str:
    """A file or folder name as text that can be encoded; bytes that are not UTF-8 become U+FFFD."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def say(text: str) -> None:
    """Print text without interpreting markup, since it may contain file and class names."""
    _clear()
    console.print(printable(text), markup=False)


def reporter(given: Callable[[str], None] | None) -> Callable[[str], None]:
    """What a long function reports its progress to: `given`, else `say` if the output is interactive, else nothing."""
    return given or (say if interactive() else lambda _: None)


def remark(text: str) -> None:
    """Print a remark that is not part of a command's result: to standard error where the output is piped."""
    _clear()
    (console if interactive() else errors).print(printable(text), markup=False)


def starting(command: str, *, bar: bool = False) -> None:
    """Print the command before its imports, which take seconds; not on a terminal where a progress bar will show it."""
    if not (bar and _redraws(console)):
        say(f"starting: kitae {command}")


@contextmanager
def status(command: str) -> Iterator[None]:
    """Show the command on standard error before its imports, which take seconds; standard output is for its result.

    On a terminal the line is erased when anything is printed, or at the end. Nothing moves in it, so that it takes no
    time from what is measured.
    """
    global _shown
    if _redraws(errors):
        line = Text(printable(f"running: kitae {command} ..."))
        line.truncate(errors.width - 1, overflow="ellipsis")  # what a terminal wraps could not be erased
        # What libraries print to standard error has lines of its own above this one.
        _shown = Live(line, console=errors, auto_refresh=False, transient=True, redirect_stdout=False)
        _shown.start(refresh=True)
    else:
        errors.print(printable(f"starting: kitae {command}"), markup=False)
    try:
        yield
    finally:
        _clear()


def _clear() -> None:
    """Erase the line of `status`."""
    global _shown
    if _shown is not None:
        _shown.stop()
        _shown = None


def error(text: str) -> None:
    """Print one line of error to stderr."""
    line = " ".join(part.strip() for part in printable(text).splitlines())  # names keep their spaces
    errors.print(f"error: {line}", markup=False, style="red" if errors.is_terminal else None)


@contextmanager
def json_only(wanted: bool) -> Iterator[None]:
    """If `wanted`, only print `answer` to standard output; lines and bars go to standard error."""
    global _json
    before = _json, console.stderr
    _json, console.stderr = wanted, wanted or console.stderr
    try:
        yield
    finally:
        _json, console.stderr = before


def answer(value: Any) -> None:
    """Print the result of a command, which `files.plain` takes, as one JSON document if `json_only` asks for it."""
    if _json:
        _clear()
        text = printable(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))
        # In another encoding, a character that it lacks would be written as \xe9 or the like, which is no JSON.
        if (sys.stdout.encoding or "utf-8").lower() != "utf-8":
            text = json.dumps(json.loads(text), indent=2)
        sys.stdout.write(f"{text}\n")


def table(title: str, columns: list[str], rows: list[list[str]], right: int = 1) -> None:
    """Print a table: drawn if the output is interactive, else as tab-separated values below the title.

    Columns from number `right` on are right-aligned. Under `json_only` nothing is printed, as `answer` has all values.
    """
    if _json:
        return
    _clear()
    if not interactive():
        for line in (*([title] if title else []), *map(_separated, [columns, *rows])):
            console.file.write(printable(line) + "\n")  # rich would write spaces for tabs
        return
    view = Table(title=title or None, title_justify="left", header_style="bold")
    for place, name in enumerate(columns):
        view.add_column(Text(printable(name)), justify="right" if place >= right else "left", overflow="fold")
    for row in rows:
        view.add_row(*(_Cell(printable(cell)) for cell in row))  # no markup: cells contain file and class names
    console.print(view)


class _Cell(Text):
    """Text in which no line breaks between a number and its `%`; rich breaks at every kind of space."""

    def wrap(self, *args: Any, **options: Any) -> Lines:
        held = Text(re.sub(r"(?<=\d) %", f"{_HELD}%", self.plain))
        lines = held.wrap(*args, **options)
        for line in lines:
            line.plain = line.plain.replace(_HELD, " ")
        return lines


def listing(columns: list[str], rows: list[list[str]], rest: str, right: int = 1) -> None:
    """`table` without a title; a terminal gets the first 20 rows, and how many more there are, with `rest`."""
    shown = rows[:_LISTED] if interactive() else rows
    table("", columns, shown, right)
    if len(shown) < len(rows):
        say(f"{len(rows) - len(shown):,} more {rest}")


def _separated(cells: Sequence[str]) -> str:
    """A line of tab-separated values; tabs and line breaks inside a cell become spaces."""
    return "\t".join(re.sub(r"[\t\r\n]+", " ", cell.strip()) for cell in cells)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, and log messages below an error: users cannot act on those of other libraries.

    One thread at a time, since both belong to the whole process, and the last one would restore the silence of another.
    Handlers that they give to the root logger are removed: with one, a later `logging.basicConfig` would do nothing.
    """
    with _silence:
        before, handlers = logging.root.manager.disable, logging.root.handlers[:]
        logging.disable(max(before, logging.WARNING))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)
            for handler in set(logging.root.handlers) - set(handlers):
                logging.root.removeHandler(handler)


def percent(share: float | None, interval: Any = None) -> str:
    """A proportion as a percentage, with its interval if given: `91.4 % (90.6 to 92.1)`; `-` where it is not known."""
    if share is None or math.isnan(share):
        return "-"
    if interval is None:
        return f"{100 * share:.1f} %"
    return f"{100 * share:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def decimals(error: float, otherwise: int = 3) -> int:
    """The decimals that show two significant digits of an error, 0 to 8; `otherwise` if it is unknown or zero.

    >>> decimals(0.00034), decimals(0.3), decimals(40.0)
    (5, 2, 0)
    """
    if not (math.isfinite(error) and error > 0):
        return otherwise
    return min(8, max(0, 1 - math.floor(math.log10(error))))


def change(ratio: float, more: str, less: str) -> tuple[float, str]:
    """A factor of at least 1, and the word for its direction.

    >>> change(3.9, "smaller", "larger"), change(0.8, "faster", "slower")
    ((3.9, 'smaller'), (1.25, 'slower'))
    """
    return (ratio, more) if ratio >= 1 else (1 / ratio, less)


def plural(number: int, what: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def data_name(source: str) -> str:
    """The name of a data.source: of a known set its own, of files and folders theirs without path and ending.

    >>> data_name("parquet:/data/photos.parquet"), data_name("webdataset:train-{000..099}.tar"), data_name("cifar10:/d")
    ('photos', 'train', 'cifar10')
    """
    kind, _, path = source.partition(":")
    if kind not in ("folder", "parquet", "csv", "webdataset"):
        return kind
    name = os.path.basename(path.rstrip("/"))
    if kind != "folder":
        name = re.split(r"[{*?\[]", os.path.splitext(name)[0])[0].rstrip("-_.")
    return kind if name in ("", ".", "..") else name


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rough_duration(seconds: float) -> str:
    """A rounded duration, for estimates: `2.7 s`, `42 s`, `12 min`, `2 h 10 min`."""
    if seconds < 90:
        return f"{round(seconds)} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float, unit: str = "B") -> str:
    """A number in thousands, millions or billions, three digits: `512 B`, `17.3 kB`, `11.2 MB`."""
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= scale * 0.9995:  # what rounds to 1000 of a unit is 1 of the next
            shown = count / scale
            return f"{shown:.3g} {prefix}{unit}" if abs(shown) < 999.5 else f"{shown:,.0f} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def counter(given: Callable[[int, int], None] | None, what: str) -> AbstractContextManager[Any]:
    """What a long function counts its images with: `given`, else `counting` if the output is interactive, else None."""
    return nullcontext(given) if given is not None or not interactive() else counting(what)


class _CellBar:
    """A progress bar in the output of a notebook's cell, replaced in place and emptied at the end.

    rich draws its own bars in a notebook only where ipywidgets are installed.
    """

    def __init__(self) -> None:
        self._handle: Any = None  # of the output, from the first state on
        self._last = -math.inf

    def draw(self, text: str, done: int = 0, total: int = 0, facts: str = "") -> None:
        """Show a state, unless the last one is too new. Without a `total`, how far it is is not known."""
        now = time.monotonic()
        if now - self._last < _CELL_SECONDS and done < total:
            return
        self._last = now
        known = f' value="{done}" max="{total}"' if total else ""
        words = printable("  ".join(filter(None, (text, f"{done:,}/{total:,}" if total else "", facts))))
        style = "white-space: pre-wrap; font-family: monospace"
        bar = f'<progress{known} aria-label="{escape(printable(text))}"></progress>'
        self._show(words, f'{bar} <span style="{style}">{escape(words)}</span>')

    def close(self) -> None:
        if self._handle is not None:
            self._show("", "")
            self._handle, self._last = None, -math.inf

    def _show(self, words: str, html: str) -> None:
        data = {"text/plain": words, "text/html": html}
        if self._handle is None:
            self._handle = import_module("IPython.display").display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


@contextmanager
def counting(what: str) -> Iterator[Any]:
    """A progress callback `(done, total)` for a long job, such as decoding images: draws a bar, or prints remarks."""
    if _redraws(console):
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=console, transient=True)
        job = bar.add_task(what, total=None)

        def drawn(done: int, total: int) -> None:
            # Shown only while counting, since an idle bar would pulse next to the training bar.
            _clear()
            bar.update(job, completed=done, total=total)
            if done < total:
                bar.start()
            else:
                bar.stop()

        try:
            yield drawn
        finally:
            bar.stop()
        return
    if interactive() and console.is_jupyter:
        cell = _CellBar()

        def shown(done: int, total: int) -> None:
            if done < total:
                cell.draw(what, done, total)
            else:
                cell.close()

        try:
            yield shown
        finally:
            cell.close()
        return
    started = last = time.monotonic()

    def printed(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 10 or (done == total and now - started > 2):
            last = now
            remark(f"{what}: {done} of {total}")

    yield printed


class TrainingView:
    """Shows training: a progress bar on a terminal and in a notebook, and a line per epoch. A `Watcher` of the loop."""

    def __init__(self) -> None:
        self.epochs = 0  # until `on_plan`
        self._bar: Progress | None = None
        self._cell = _CellBar() if interactive() and console.is_jupyter else None
        self._job: Any = None
        self._last_line = -math.inf  # so the first step has a line
        self._first: tuple[int, float] | None = None  # the first step since `on_plan`, and when it ended
        if _redraws(console):
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
                console=console, transient=True,
            )  # fmt: skip

    def __enter__(self) -> TrainingView:
        if self._bar:
            self._bar.start()
            self._job = self._bar.add_task("starting", total=None, facts="")
        if self._cell:
            self._cell.draw("starting")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._cell:
            self._cell.close()

    def on_plan(self, epochs: int) -> None:
        self.epochs, self._first = epochs, None  # each fold of a cross-validation counts its epochs from 0
        if self._bar and self._bar.tasks[0].finished:  # by the fold before; a bar that was full keeps its times
            self._bar.reset(self._job)

    def on_step(
        self, epoch: int, step: int, steps: int, loss: float, images_per_second: float, data_share: float
    ) -> None:
        now, done = time.monotonic(), epoch * steps + step
        first, since = self._first = self._first or (done, now)
        facts = f"loss {loss:.3f}  {images_per_second:,.0f} images/s  data wait {100 * data_share:.1f} %"
        if self._bar:
            self._bar.update(
                self._job, description=f"epoch {epoch + 1}/{self.epochs}", completed=done, total=self.epochs * steps,
                facts=facts,
            )  # fmt: skip
            return
        rest = self.epochs * steps - done
        # The first step includes compilation, and those before it were another process's.
        left = f"  {duration((now - since) / (done - first) * rest)} left" if done > first else ""
        if self._cell:
            self._cell.draw(f"epoch {epoch + 1}/{self.epochs}", done, self.epochs * steps, facts + left)
        elif now - self._last_line > _PLAIN_SECONDS:
            self._last_line = now
            say(f"epoch {epoch + 1}/{self.epochs}  step {step}/{steps}  {facts}{left}")

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._last_line = time.monotonic()
        parts = [
            f"epoch {row['epoch']:>3}/{self.epochs}",
            f"train loss {_number(row['train_loss'])}",
            *_judged(row),
            f"{row['images_per_second']:,.0f} images/s",
            f"data wait {100 * row['data_share']:.1f} %",
        ]
        say("  ".join(parts + ([f"skipped {row['skipped_steps']}"] if row["skipped_steps"] else [])))
        sys.stdout.flush()

    def note(self, text: str) -> None:
        say(text)


def _judged(row: Mapping[str, Any]) -> list[str]:
    """The scores of an epoch that was validated."""
    if "val_loss" in row:
        return [f"val loss {_number(row['val_loss'])}", f"val accuracy {_percent(row['val_accuracy'])}"]
    if "train_clean_accuracy" in row:  # everything is trained on
        return [f"clean train accuracy {_percent(row['train_clean_accuracy'])}"]
    return []


def _percent(value: float | None) -> str:
    return "not finite" if value is None else f"{100 * value:5.2f} %"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
