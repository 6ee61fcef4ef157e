"""How results are displayed: one line at a prompt, a table in a notebook, a data frame.

Everything here is plain text and HTML, so that it works where matplotlib, pandas and Jinja are not installed.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kitae import console
from kitae.errors import KitaeError, require

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 20  # of a table in a notebook
# What a file with unexpected contents raises.
_DAMAGED = (AttributeError, KitaeError, LookupError, StopIteration, TypeError, ValueError)


def block(
    title: str,
    lines: Sequence[str] = (),
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    left: int = 1,
    most: int = MAX_ROWS,
) -> str:
    """A titled table as HTML, every string escaped.

    Args:
        lines: sentences above the table. columns: heads. left: the number of columns of text; the others hold numbers.
        rows: only the first `most` are shown, followed by their total number.
    """
    parts = [f"<div><strong>{_text(title)}</strong>", *(f"<p>{_text(line)}</p>" for line in lines)]
    if rows:
        head = "".join(f"<th{_align(place < left)}>{_text(name)}</th>" for place, name in enumerate(columns))
        parts.append(f"<table>{f'<thead><tr>{head}</tr></thead>' if any(columns) else ''}<tbody>")
        parts += [
            f"<tr>{''.join(f'<td{_align(place < left)}>{_text(cell)}</td>' for place, cell in enumerate(row))}</tr>"
            for row in rows[:most]
        ]
        parts.append("</tbody></table>")
    if len(rows) > most:
        parts.append(f"<p>{most} of {len(rows):,} rows; <code>.to_pandas()</code> has them all.</p>")
    return "".join([*parts, "</div>"])


def folded(title: str, text: str) -> str:
    """Text behind a click, as HTML."""
    return f"<details><summary>{_text(title)}</summary><pre>{_text(text)}</pre></details>"


def _text(text: object) -> str:
    return html.escape(console.printable(text))


def _align(text: bool) -> str:
    return f' style="text-align:{"left" if text else "right"}"'


def frame(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> pd.DataFrame:
    """A data frame of rows, or of columns. Without pandas, a MissingExtraError."""
    return require("pandas").DataFrame(rows)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------------------------- runs


class RunLike(Protocol):
    """The parts of a run that are shown here."""

    path: Path
    recipe: Any

    @property
    def finished(self) -> bool: ...
    @property
    def resume_command(self) -> str: ...
    def fold(self, number: int) -> Path: ...
    def evaluation(self) -> dict[str, Any]: ...
    def metrics(self) -> list[dict[str, Any]]: ...


def run_line(run: RunLike) -> str:
    """A run in one line: where it is, what was trained, and how good it is so far."""
    try:
        state = _state(run)
    except _DAMAGED:
        state = "damaged"
    return console.printable(f"Run({run.path}: {_trained(run)}, {state})")


def _trained(run: RunLike) -> str:
    return f"{run.recipe.model.name} on {console.data_name(run.recipe.data.source)}"


def _state(run: RunLike) -> str:
    if not run.finished:
        tested, folds = folds_done(run)
        if tested < folds:  # the model on everything comes after them
            return f"not finished, {tested} of {folds} folds"
        rows = run.metrics()
        ended = rows[-1]["epoch"] if rows else 0  # the row of the probe, epoch 0, is no epoch of training
        return f"not finished, {ended} of {run.recipe.train.last_epoch} epochs"
    where, split = next(iter(_measured(run.evaluation()).items()))
    return f"{where} accuracy {console.percent(split['accuracy'])}"


def folds_done(run: RunLike) -> tuple[int, int]:
    """How many folds of a cross-validation are tested, and of how many; the run of one fold has none of its own."""
    data = run.recipe.data
    folds = (data.folds or 0) if data.whole else 0
    return sum((run.fold(number) / "evaluation.json").is_file() for number in range(1, folds + 1)), folds


def _measured(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The splits that were measured, by their names in words; the first is what the run is judged by."""
    names = {"test": "test", "out_of_fold": "out-of-fold", "val": "validation"}
    return {where: evaluation[name] for name, where in names.items() if evaluation.get(name)}


def run_html(run: RunLike) -> str:
    """A run's results as a table in HTML."""
    lines = []
    try:
        rows = run_rows(run.evaluation(), run.metrics()) if run.finished else []
        if not run.finished:
            lines = [f"{_state(run)}; resume it with: {run.resume_command}"]
    except _DAMAGED as error:
        rows, lines = [], [f"cannot be shown: {error}"]
    title = f"{run.recipe.name}: {_trained(run)} ({run.path})"
    return block(title, lines, ["", "value (95 % interval)"], rows, most=len(rows))


_CLASSES = 20  # classes listed for a cross-validation; the page lists all


def run_rows(evaluation: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The results of a finished run: what, and its value."""
    found = _measured(evaluation)
    rows = []
    for where, split in found.items():
        images = f" ({split['count']:,} images)" if "folds" in split else ""
        rows.append([f"{where} accuracy{images}", console.percent(split["accuracy"], split.get("accuracy_interval"))])
        if where == "test":
            rows += without_duplicates(split)
        if "folds" in split:
            each = [fold["accuracy"] for fold in split["folds"]]
            rows.append([f"range over {len(each)} folds", f"{100 * min(each):.1f} to {100 * max(each):.1f} %"])
            rows += [[f"  recall of {name}", console.percent(row["accuracy"], row["accuracy_interval"])]
                     for name, row in list(split["per_class"].items())[:_CLASSES]]  # fmt: skip
    where, measured = next(iter(found.items()))
    rows += [
        [f"balanced {where} accuracy", console.percent(measured["balanced_accuracy"])],
        [f"{where} loss", f"{measured['loss']:.4f}"],
        ["calibration error", console.percent(measured["ece"])],
    ]
    if metrics:
        last, kept = metrics[-1]["epoch"], evaluation["best_epoch"]
        name = "kept epoch" if "out-of-fold" in found else "best epoch"
        head = "; 0 is the linear head" if kept == 0 else ""
        trained = [name, f"{kept} of {last}{head}"] if last else ["trained", "linear head, no epoch of fine-tuning"]
        rows.append(trained)
        seconds = sum(row["seconds"] + (row.get("validation_seconds") or 0) for row in metrics)
        rows.append(["training time", console.duration(seconds)])
    rows.append(["test opened", console.plural(evaluation["test_openings"], "time")])
    return rows


def without_duplicates(split: Mapping[str, Any]) -> list[list[str]]:
    """A row for the test accuracy without images that are also training or validation images, where there are any."""
    others = split.get("without_duplicates")
    if others is None:
        return []
    accuracy = console.percent(others["accuracy"], others["accuracy_interval"])
    return [[f"without duplicates ({others['count']:,} images)", accuracy]]


def class_columns(classes: Sequence[str]) -> list[str]:
    """Names of a column per class, beside the columns `image`, `class` and `confidence` of predictions."""
    columns = ["image", "class", "confidence"]
    for name in classes:
        while name in columns:
            name = f"{name} (class)"
        columns.append(name)
    return columns[3:]
