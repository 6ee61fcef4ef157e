"""The page that compares several runs: which is better, how their recipes differ, and the recall of each class."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kitae.console import data_name, listed
from kitae.evaluation.intervals import paired_difference
from kitae.recipe import flat
from kitae.reporting import charts
from kitae.reporting.results import RunRecord, Split
from kitae.reporting.values import between, share, words


class Entry(NamedTuple):
    """A run of the comparison, and what was measured of it on the split that all of them are compared on."""

    name: str
    record: RunRecord
    split: Split | None

    @property
    def accuracy(self) -> float | None:
        return None if self.split is None else self.split.accuracy


def entries(records: Sequence[RunRecord]) -> tuple[list[Entry], str]:
    """Two or more runs by their names, and what they are compared on: test, if all of them opened it, else the images
    out of fold, if all were cross-validated, else validation."""
    names = short_names([record.run.path for record in records])
    judged = [record.evaluation for record in records]
    where, found = "test", [one.test for one in judged]
    if not all(found):
        where, found = "out-of-fold images", [one.out_of_fold for one in judged]
    if not all(found):
        where, found = "validation", [one.val for one in judged]
    return list(map(Entry, names, records, found)), where


def content(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The variables of comparison.html, of two or more runs."""
    runs, where = entries(records)
    names = [run.name for run in runs]
    accuracies = [(run.name, run.accuracy, run.split.accuracy_interval) for run in runs
                  if run.split is not None and run.accuracy is not None]  # fmt: skip
    return {
        "over": "Comparison",
        "title": " and ".join(names) if len(names) == 2 else f"{len(names)} runs",
        "subtitle": "" if len(names) == 2 else ", ".join(names),
        "warnings": [f"{run.name} is not finished." for run in runs if not run.record.finished],
        "answer": answer(runs, where),
        "commands": commands(runs, where),
        "where": where,
        "runs": runs,
        "names": names,
        "accuracies": charts.accuracies(accuracies, where) if accuracies else None,
        "curves": charts.compared_curves([(run.name, run.record.epochs) for run in runs]),
        "fields": fields(records),
        "classes": list(dict.fromkeys(name for run in runs if run.split is not None for name in run.split.classes)),
        "pairs": _pairs(runs) if where != "validation" else [],  # predictions are of test
    }


def short_names(paths: Sequence[Path]) -> list[str]:
    """The names of different folders, with as many parents as tell them apart."""
    resolved = [path.resolve() for path in paths]
    names = [path.name for path in resolved]
    if len(set(names)) == len(names):
        return names
    common = Path(os.path.commonpath(resolved))
    return [str(path.relative_to(common)) for path in resolved]


def answer(runs: Sequence[Entry], where: str) -> list[str]:
    """Which run is the best, and whether that is more than chance."""
    ranked = _ranked(runs)
    if len(ranked) < 2:
        if sum(run.record.finished for run in runs) < 2:
            return ["Fewer than two of these runs are finished, so there is nothing to compare yet."]
        return ["These runs were measured on different splits, so their accuracies cannot be compared."]
    if (reason := _incomparable(ranked, where)) is not None:
        return [f"{reason}, so their accuracies do not say which is better."]
    best, second = ranked[:2]
    tied = [run.name for run in ranked if run.accuracy == best.accuracy]
    first = f"{best.name} is the best: {share(best.accuracy)} on {where}, {second.name} has {share(second.accuracy)}."
    if len(tied) > 1:
        first = f"{listed(tied)} have the same accuracy on {where}: {share(best.accuracy)}."
    difference = _paired(best.record, second.record) if where != "validation" else None
    if difference is None:
        later = "Their predictions of the same images are not known, so their difference has no interval here."
    else:
        estimate, low, high = difference
        span = f"{100 * estimate:.1f} points ({100 * low:+z.1f} to {100 * high:+z.1f}, paired, on the same images)"
        chance = "is more than chance" if low > 0 else "may be chance"
        later = f"Their difference is {span}." if len(tied) > 1 else f"The difference of {span} {chance}."
        what = "groups" if best.record.evaluation.groups else "images"
        later += f" This covers the choice of {what}, not of seeds; use kitae study for those."
    if where == "test":
        later += " Choosing between runs by their test accuracy makes that accuracy optimistic."
    return [first, later]


def _incomparable(runs: Sequence[Entry], where: str) -> str | None:
    """Why the accuracies of these runs cannot be compared; None if they can, or if that is not known."""
    first = runs[0].record
    for run in (run.record for run in runs[1:]):
        if set(run.facts.classes) != set(first.facts.classes):
            return "These runs have different classes"
        if where != "validation" and run.predicted is not None and first.predicted is not None:
            same = sorted(run.predicted.names) == sorted(first.predicted.names)
        else:
            same = None in (run.held_out, first.held_out) or run.held_out == first.held_out
        if not same:
            return "These runs were measured on different images"
    return None


def _ranked(runs: Sequence[Entry]) -> list[Entry]:
    """The runs that have an accuracy, the best first."""
    return sorted((run for run in runs if run.accuracy is not None), key=lambda run: -(run.accuracy or 0.0))


def _look(record: RunRecord) -> str:
    """The command that shows mistakes: `kitae show mistakes` if any are recorded, else the page."""
    folder = shlex.quote(str(record.run.path))
    return f"kitae show mistakes {folder}" if record.has_mistakes else f"kitae report {folder} --open"


def commands(runs: Sequence[Entry], where: str) -> list[tuple[str, str]]:
    """What to do next: what a command is for, and the command."""
    ranked = _ranked(runs)
    if len(ranked) > 1 and _incomparable(ranked, where) is not None:
        return [(f"Look at the mistakes of {run.name}", _look(run.record)) for run in ranked]
    if len(ranked) < 2:
        return [(f"Resume {run.name}", run.record.run.resume_command) for run in runs if not run.record.finished]
    name, best, _ = ranked[0]
    again = f"kitae train {shlex.quote(str(best.run.recipe_file))} --seed {best.recipe.train.seed + 1}"
    return [
        (f"Look at the mistakes of {name}", _look(best)),
        (f"Train {name} with another seed, to see how much results vary by chance", again),
    ]


def _paired(one: RunRecord, other: RunRecord) -> tuple[float, float, float] | None:
    """Accuracy of `one` minus that of `other` on the same test images, with its interval."""
    a, b = one.predicted, other.predicted
    if a is None or b is None or a.names != b.names or one.facts.classes != other.facts.classes:
        return None
    if not np.array_equal(a.label, b.label):
        return None
    difference, (low, high) = paired_difference(b.predicted, a.predicted, a.label, a.groups)
    return difference, low, high


def _pairs(runs: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """Every run against the first one: name, points, interval."""
    found = [(run.name, _paired(run.record, runs[0].record)) for run in runs[1:]]
    return [(name, f"{100 * one[0]:+.2f}", between(one[1:], 100, 2)) for name, one in found if one is not None]


def fields(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """The fields of the recipes that differ, with each run's value; a list of ops is one field."""
    recipes = [flat(record.recipe.model_dump(mode="json"), lists=False) for record in records]
    names = sorted({name for recipe in recipes for name, value in recipe.items() if value != {}} - {"name"})
    rows: list[tuple[str, list[Any]]] = [(name, [recipe.get(name) for recipe in recipes]) for name in names]
    short = [data_name(str(recipe["data.source"])) for recipe in recipes]
    if len(set(short)) == len({recipe["data.source"] for recipe in recipes}):  # else only the paths tell them apart
        rows = [(name, short if name == "data.source" else row) for name, row in rows]
    return [(name, [_text(value) for value in row]) for name, row in rows if any(value != row[0] for value in row)]


def _text(value: Any) -> str:
    """A field of a recipe: ops with their parameters, or any other value."""
    ops = [next(iter(op.items())) for op in value if isinstance(op, Mapping) and op] if isinstance(value, list) else []
    told = [(name, ", ".join(f"{key} {words(one)}" for key, one in (given or {}).items())) for name, given in ops]
    if told:
        return ", ".join(f"{name} ({given})" if given else name for name, given in told)
    return "none" if value == [] else words(value)
