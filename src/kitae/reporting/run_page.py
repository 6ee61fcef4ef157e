"""What the page of a run says, finished or not."""

from __future__ import annotations

import statistics
from typing import Any

from kitae.reporting.figures import draw_run
from kitae.reporting.pictures import read_picture
from kitae.reporting.results import RunRecord, Split
from kitae.reporting.values import UNKNOWN, Cell, between, count, finite
from kitae.run import Run

_HEADLINES = (
    ("accuracy", "Accuracy", 100, " %"),
    ("top5", "Top-5 accuracy", 100, " %"),
    ("balanced_accuracy", "Balanced accuracy", 100, " %"),
    ("loss", "Loss (negative log-likelihood)", 1, ""),
    ("brier", "Brier score", 1, ""),
    ("ece", "Expected calibration error", 100, " %"),
)
_MOST_MISTAKES, _MOST_CONFUSED = 20, 10


def content(record: RunRecord, run: Run) -> dict[str, Any]:
    """What run.html names; draws the run's figures."""
    evaluation = run.evaluation() if run.finished else {}
    pictures = {name: read_picture(path) for name, path in draw_run(run, evaluation).items()}
    splits = [(label, split) for label, split in (("Test", record.evaluation.test), ("Validation",
              record.evaluation.val)) if split]  # fmt: skip
    speeds = [row.images_per_second for row in record.epochs if row.images_per_second is not None]
    found = record.predicted
    return {
        "over": "Training run",
        "title": record.recipe.name,
        "subtitle": f"{record.recipe.model.name} on {record.recipe.data.source}",
        "warnings": [] if record.finished else [_unfinished(record)],
        "run": record,
        "best": next((row for row in record.epochs if row.epoch == record.best_epoch), None),
        "total_seconds": sum(row.seconds or 0.0 for row in record.epochs),
        "speed": statistics.median_high(speeds) if speeds else None,
        "splits": splits,
        "headline": _headline([split for _, split in splits]),
        "headline_caption": _settings(record),
        "pictures": pictures,
        "curve_caption": _curve_caption(record),
        "confused": record.evaluation.measured.confused(_MOST_CONFUSED),
        "mistakes": [] if found is None else [
            {
                "name": found.names[i],
                "true": record.facts.classes[found.label[i]],
                "predicted": record.facts.classes[found.predicted[i]],
                "confidence": float(found.confidence[i]),
            }
            for i in found.mistakes(_MOST_MISTAKES)
        ],
        "mistakes_caption": "" if found is None else
            f"{int((~found.correct).sum())} mistakes in {len(found.names)} images",
    }  # fmt: skip


def _unfinished(record: RunRecord) -> str:
    done = f"{len(record.epochs)} of {record.recipe.train.epochs} epochs are done"
    return f"This run is not finished: {done}. It was not tested; numbers below are from validation."


def _headline(splits: list[Split]) -> list[tuple[str, list[Cell]]]:
    """Every headline metric of every split that was measured, with its interval."""
    rows: list[tuple[str, list[Cell]]] = []
    for key, label, scale, unit in _HEADLINES:
        cells: list[Cell] = []
        for split in splits:
            value, digits = finite(getattr(split, key)), 2 if scale == 100 else 4
            interval = between(getattr(split, f"{key}_interval"), scale, digits)
            cells.append((UNKNOWN, "") if value is None else (f"{value * scale:.{digits}f}{unit}", interval))
        if any(text != UNKNOWN for text, _ in cells):
            rows.append((label, cells))
    return [*rows, ("Images", [(count(split.count), "") for split in splits])] if splits else []


def _settings(record: RunRecord) -> str:
    """What the intervals cover, and with which settings the numbers were taken."""
    evaluation = record.evaluation
    told = [] if evaluation.temperature is None else [f"temperature {evaluation.temperature:.3f}"]
    told += [f"{name} {value}" for name in ("precision", "tta") if (value := getattr(evaluation, name)) not in
             (None, "none")]  # fmt: skip
    covers = f" cover {evaluation.measured.covers}" if evaluation.measured.covers else ""
    return f"95 % intervals{'; '.join([covers, ', '.join(told)] if told else [covers])}."


def _curve_caption(record: RunRecord) -> str:
    parts = []
    if record.recipe.augment.train or record.recipe.augment.mix:
        parts.append("Training accuracy is on augmented images, so it may lie below validation.")
    if (gap := record.gap) is not None:
        parts.append(f"Train-validation gap at the end: {100 * gap:+.1f} points.")
    return " ".join(parts)
