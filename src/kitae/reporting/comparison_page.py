"""The page that compares several runs: which is better, how their recipes differ, and the recall of each class."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kitae.evaluation.intervals import paired_difference
from kitae.recipe import differences
from kitae.reporting import charts
from kitae.reporting.results import RunRecord, Split
from kitae.reporting.values import between, share, words

_MOST_CLASSES = 2000
_OPS = "augment.train"


def content(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The variables of comparison.html.

    Args:
        records: two or more runs.
    """
    names = short_names([record.path for record in records])
    split = "test" if all(record.evaluation.test for record in records) else "validation"
    found = [record.evaluation.test if split == "test" else record.evaluation.val for record in records]
    known = [
        (name, one) for name, one in zip(names, found, strict=True) if one is not None and one.accuracy is not None
    ]
    return {
        "over": "Comparison",
        "title": " and ".join(names) if len(names) == 2 else f"{len(names)} runs",
        "subtitle": "" if len(names) == 2 else ", ".join(names),
        "warnings": [f"{name} is not finished." for name, record in zip(names, records, strict=True)
                     if not record.finished],
        "answer": answer(names, records, split),
        "commands": commands(names, records, split),
        "split": split,
        "runs": list(zip(names, records, found, strict=True)),
        "accuracies": charts.accuracies([(name, one.accuracy or 0.0, one.accuracy_interval) for name, one in known],
                                        split) if known else None,
        "curves": charts.compared_curves([(name, record.epochs) for name, record in zip(names, records, strict=True)]),
        "fields": fields(records),
        "names": names,
        "classes": _classes(found),
        "pairs": _pairs(names, records),
    }  # fmt: skip


def short_names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as tell them apart."""
    resolved = [path.resolve() for path in paths]
    names = [path.name for path in resolved]
    if len(set(names)) == len(names):
        return names
    common = Path(os.path.commonpath(resolved))
    names = [str(path.relative_to(common)) for path in resolved]
    return names if len(set(names)) == len(names) else [f"{k + 1}: {name}" for k, name in enumerate(names)]


def answer(names: Sequence[str], records: Sequence[RunRecord], split: str) -> list[str]:
    """Which run is the best, and whether that is more than chance."""
    scored = _scored(names, records, split)
    if len(scored) < 2:
        return ["Fewer than two of these runs are finished, so there is nothing to compare yet."]
    (best, name, winner), (second, other, runner) = scored[:2]
    first = f"{name} is the best: {share(best)} on {split}, {other} has {share(second)}."
    difference = _paired(winner, runner) if split == "test" else None
    if difference is None:
        later = "The two were not measured on the same images, so their difference has no interval here."
    else:
        estimate, low, high = difference
        span = f"{100 * estimate:.1f} points ({100 * low:+z.1f} to {100 * high:+z.1f}, paired, on the same images)"
        later = (f"The difference of {span} is more than chance." if low > 0 else
                 f"The difference of {span} may be chance.")  # fmt: skip
    return [
        first,
        f"{later} It covers the test images, not the seeds; kitae study covers those. Choosing between runs by their "
        "test accuracy makes that accuracy optimistic."
        if split == "test" else later,
    ]  # fmt: skip


def _scored(names: Sequence[str], records: Sequence[RunRecord], split: str) -> list[tuple[float, str, RunRecord]]:
    """Accuracy, name and record of the runs that have one, the best first."""
    found = [
        (one.accuracy, name, record) for name, record in zip(names, records, strict=True)
        if (one := record.evaluation.test if split == "test" else record.evaluation.val) is not None
        and one.accuracy is not None
    ]  # fmt: skip
    return sorted(found, key=lambda item: -item[0])


def commands(names: Sequence[str], records: Sequence[RunRecord], split: str) -> list[tuple[str, str]]:
    """What to do next: what a command is for, and the command."""
    scored = _scored(names, records, split)
    if len(scored) < 2:
        return [(f"Resume {name}", f"kitae train --resume {shlex.quote(str(record.path))}")
                for name, record in zip(names, records, strict=True) if not record.finished]  # fmt: skip
    _, name, best = scored[0]
    folder, recipe = shlex.quote(str(best.path)), shlex.quote(str(best.path / "recipe.yaml"))
    return [
        (f"Look at the mistakes of {name}", f"kitae report {folder} --open"),
        (f"Train {name} with another seed, to see how much chance does", f"kitae train {recipe} --seed "
         f"{best.recipe.train.seed + 1}"),
    ]  # fmt: skip


def _paired(one: RunRecord, other: RunRecord) -> tuple[float, float, float] | None:
    """Accuracy of `one` minus that of `other` on the same test images, with its interval."""
    a, b = one.predicted, other.predicted
    if a is None or b is None or a.names != b.names or one.facts.classes != other.facts.classes:
        return None
    if not np.array_equal(a.label, b.label):
        return None
    found = paired_difference(b.predicted, a.predicted, a.label)
    low, high = found["interval"]
    return float(found["difference"]), float(low), float(high)


def _pairs(names: Sequence[str], records: Sequence[RunRecord]) -> list[tuple[str, str, str]]:
    """Every run against the first one: name, points, interval."""
    rows = []
    for name, record in zip(names[1:], records[1:], strict=True):
        difference = _paired(record, records[0])
        if difference is not None:
            rows.append((name, f"{100 * difference[0]:+.2f}", between(difference[1:], 100, 2)))
    return rows


def fields(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """The fields of the recipes that differ, with each run's value; the ops of `augment.train` are one field."""
    changed: dict[str, None] = {}
    for record in records[1:]:
        for one, other in ((records[0], record), (record, records[0])):
            found = [line.split(" was ", 1)[0] for line in differences(one.recipe, other.recipe)]
            changed |= dict.fromkeys(_OPS if name.startswith(_OPS) else name for name in found)
    dumps = [record.recipe.model_dump(mode="json") for record in records]
    return [(field, [_text(_field(dump, field)) for dump in dumps]) for field in changed if field != "name"]


def _field(value: Any, name: str) -> Any:
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    """A field of a recipe: ops with their parameters, or any other value."""
    if isinstance(value, list):
        ops = [next(iter(op.items())) for op in value if isinstance(op, Mapping) and op]
        return ", ".join(f"{name}{_parameters(given)}" for name, given in ops) or "none"
    return words(value)


def _parameters(given: Any) -> str:
    return f" ({', '.join(f'{key} {words(value)}' for key, value in given.items())})" if given else ""


def _classes(found: Sequence[Split | None]) -> list[tuple[str, list[tuple[float | None, str]]]]:
    """Recall of each class in each run."""
    first = next((one for one in found if one is not None), None)
    rows = []
    for name in list(first.per_class)[:_MOST_CLASSES] if first is not None else ():
        cells: list[tuple[float | None, str]] = []
        for one in found:
            row = None if one is None else one.per_class.get(name)
            cells.append((None, "") if row is None else (row.accuracy, between(row.accuracy_interval, 100)))
        rows.append((name, cells))
    return rows
