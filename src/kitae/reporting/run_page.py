"""The page of a run, finished or not: a conclusion from its numbers, what to do next, and the details."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kitae.errors import KitaeError
from kitae.reporting import charts
from kitae.reporting.results import CompressionRecord, Epoch, RunRecord, Split
from kitae.reporting.samples import Photo, Samples
from kitae.reporting.values import UNKNOWN, Cell, between, finite, number, share
from kitae.run import Run

_HEADLINES = (
    ("accuracy", "Accuracy", 100, " %"),
    ("top5", "Top-5 accuracy", 100, " %"),
    ("balanced_accuracy", "Balanced accuracy", 100, " %"),
    ("macro_f1", "Macro F1", 100, " %"),
    ("loss", "Loss (negative log-likelihood)", 1, ""),
    ("brier", "Brier score", 1, ""),
    ("ece", "Expected calibration error", 100, " %"),
)
_MOST_MISTAKES, _MOST_CONFUSED, _PICTURED, _PER_PAIR = 12, 10, 4, 4
MAX_EPOCHS = 400  # rows of the table
_CLEAN_IMAGES = 1000  # on which accuracy without augmentation is taken after each epoch
_Z = 1.96
_OVERFIT = 0.05  # a gap that is significantly larger asks for regularisation

Command = tuple[str, str]
"""What a command is for, and the command."""


def content(record: RunRecord, run: Run) -> dict[str, Any]:
    """The variables of run.html."""
    samples = Samples.find(record, run) if record.epochs else None
    split = record.evaluation.measured
    pairs = split.confused(_MOST_CONFUSED)
    found = record.predicted
    counts = samples.counts() if samples else None
    evaluation = record.evaluation
    splits = [("Test", evaluation.test), ("Out of fold", evaluation.out_of_fold), ("Validation", evaluation.val)]
    headline = [(name, one) for name, one in splits if one is not None]
    return {
        "over": "Training run",
        "title": record.recipe.name,
        "subtitle": f"{record.recipe.model.name} on {record.recipe.data.source}",
        "warnings": [],
        "answer": answer(record),
        "commands": commands(record),
        "run": record,
        "where": evaluation.where,
        "best": record.best,
        "total_seconds": sum((row.seconds or 0.0) + (row.validation_seconds or 0.0) for row in record.epochs),
        "openings": openings(record),
        "splits": headline,
        "headline": _headline([one for _, one in headline]),
        "headline_caption": _settings(record),
        "counts": None if counts is None else charts.class_counts(record.facts.classes, counts),
        "count_names": list(counts or ()),
        "class_photos": samples.of_classes() if samples else [],
        "seen": _seen(samples),
        "quality": samples.quality() if samples else None,
        "curves": charts.curves(record.epochs, record.best_epoch) if record.epochs else None,
        "curve_caption": _curve_caption(record),
        "epoch_rows": record.epochs[-MAX_EPOCHS:],
        "time": _time(record.epochs),
        "recalls": charts.recalls(split) if split.per_class else None,
        "class_rows": split.scores(),
        "confusion": charts.confusion(split, evaluation.where),
        "confused": pairs,
        "pair_photos": [] if samples is None else [
            (pair, photos) for pair in pairs[:_PICTURED]
            if (photos := samples.confused(pair.true, pair.predicted, _PER_PAIR))
        ],
        "mistake_photos": samples.mistakes(_MOST_MISTAKES) if samples else [],
        "mistakes": [] if found is None else [
            {
                "name": found.names[i],
                "true": record.facts.classes[found.label[i]],
                "predicted": record.facts.classes[found.predicted[i]],
                "confidence": float(found.confidence[i]),
            }
            for i in found.mistakes(_MOST_MISTAKES)
        ],
        "wrong": 0 if found is None else int((~found.correct).sum()),
        "calibration": None if record.reliability is None else charts.reliability(*record.reliability),
        "calibration_rows": _calibration(record),
        "files": files(record),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- conclusion


def answer(record: RunRecord) -> list[str]:
    """The conclusion: how good the model is, where it is weak, and whether it underfits or overfits."""
    if not record.finished:
        return [_unfinished(record)]
    split = record.evaluation.measured
    where = f"on {record.evaluation.where}"
    if record.evaluation.out_of_fold is None and record.evaluation.test is None:
        where += " (test was not opened)"
    interval = between(split.accuracy_interval, 100)
    first = f"{share(split.accuracy)} {where}{f' ({interval})' if interval else ''}."
    return [
        " ".join(part for part in (first, _weak(split)) if part),
        *filter(None, (_folds(record), _gap(record), _copies(record))),
    ]


def _folds(record: RunRecord) -> str:
    """What was cross-validated, and what the model at hand was trained on."""
    split = record.evaluation.out_of_fold
    if split is None or not split.folds or split.count is None:
        return ""
    each = [fold.accuracy for fold in split.folds if fold.accuracy is not None]
    spread = f", from {share(min(each))} to {share(max(each))}" if each else ""
    return (
        f"Cross-validation: each of {split.count:,} images was judged by the one of {len(split.folds)} models that has "
        f"not seen it (out-of-fold accuracy {share(split.accuracy)}{spread}). This model was trained on all of them."
    )


def _unfinished(record: RunRecord) -> str:
    done = f"This run is not finished: {len(record.epochs)} of {record.recipe.train.last_epoch} epochs are done."
    best = record.best
    if best is None or best.val_accuracy is None:
        return done
    return f"{done} The best so far is {share(best.val_accuracy)} on validation, in epoch {best.epoch}."


def _weak(split: Split) -> str:
    """The weakest class and what it is confused with, if it is significantly weaker than the whole."""
    rows = [row for row in split.scores() if row.recall is not None and row.interval is not None]
    if not rows or split.accuracy is None:
        return ""
    largest = max(rows, key=lambda row: row.count)
    always = largest.count / max(sum(row.count for row in rows), 1)
    if split.accuracy_interval is not None and split.accuracy_interval[0] <= always:
        return f"That is not significantly better than always answering {largest.name} ({share(always)})."
    row = min(rows, key=lambda row: row.recall or 0.0)
    if row.interval is None or row.interval[1] >= split.accuracy:
        return "No class is significantly weaker than the others."
    taken = next((pair for pair in split.confused(len(rows) ** 2) if pair.true == row.name), None)
    text = f"{row.name} is the weak class: {share(row.recall, 0)}"
    if taken is not None:
        text += f", {100 * taken.share:.0f} of 100 taken for {taken.predicted}"
    return f"{text}."


def _gap(record: RunRecord) -> str:
    """The gap between train and validation at the epoch whose weights are kept, and what it suggests."""
    best, val = record.best, record.evaluation.val
    if best is None or best.train_clean_accuracy is None or best.val_accuracy is None or val is None or not val.count:
        return ""
    gap = best.train_clean_accuracy - best.val_accuracy
    error = _Z * math.sqrt(
        sum(p * (1 - p) / n for p, n in ((best.train_clean_accuracy, _CLEAN_IMAGES), (best.val_accuracy, val.count)))
    )
    points = f"{abs(100 * gap):.1f} point{'' if f'{abs(100 * gap):.1f}' == '1.0' else 's'}"
    last = record.epochs[-1].epoch == best.epoch
    if gap - error > _OVERFIT:
        return (
            f"Training accuracy is {points} above validation: the network overfits. More images, stronger augmentation "
            "or a smaller network may help."
        )
    if gap - error > 0:
        text = f"The gap between train and validation is {points}"
    else:
        text = f"Train and validation differ by no more than chance ({points})"
    ends = ", and the last epoch was the best" if last else ""
    return f"{text}{ends}: a larger network or longer training may help."


def _copies(record: RunRecord) -> str:
    """The effect of copies of training or validation images on the test accuracy."""
    test = record.evaluation.test
    others = None if test is None else test.without_duplicates
    if others is None or others.accuracy is None or test is None or test.count is None or others.count is None:
        return ""
    many = test.count - others.count
    return (
        f"{many:,} test image{' is' if many == 1 else 's are'} also in train or validation; without "
        f"{'it' if many == 1 else 'them'} it is {share(others.accuracy)} ({between(others.accuracy_interval, 100)})."
    )


def commands(record: RunRecord) -> list[Command]:
    """What to do next."""
    folder = shlex.quote(str(record.path))
    if not record.finished:
        return [("Resume training", f"kitae train --resume {folder}")]
    longer = 2 * record.recipe.train.last_epoch
    recipe = shlex.quote(str(record.path / "recipe.yaml"))
    found = [
        ("Classify new images", f"kitae predict {folder} IMAGES"),
        *([] if record.recipe.data.whole else [("Make it small and fast", f"kitae compress {folder}")]),
        ("Train twice as long", f"kitae train {recipe} --set train.epochs={longer}"),
    ]
    if not record.recipe.data.source.startswith(("cifar", "fashion", "mnist")):
        source = shlex.quote(record.recipe.data.source)
        found.append(("Look for broken images, duplicates and label conflicts", f"kitae data check {source}"))
    return found


def openings(record: RunRecord) -> str:
    """One line on how often test was opened, and why."""
    if not record.openings:
        return "Test has not been opened: no choice and no number here comes from it."
    why = [f"{one.why or 'unknown'}{f' ({one.when[:10]})' if one.when else ''}" for one in record.openings]
    if len(why) == 1:
        return f"Test was opened once: {why[0]}."
    return f"Test was opened {len(why)} times: {'; '.join(why)}."


# ------------------------------------------------------------------------------------------------------------- details


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
    return [*rows, ("Images", [(number(split.count), "") for split in splits])] if splits else []


def _settings(record: RunRecord) -> str:
    """What the intervals cover, and with which settings the numbers were taken."""
    evaluation = record.evaluation
    settings = [] if evaluation.temperature is None else [f"temperature {evaluation.temperature:.3f}"]
    settings += [f"measured in {evaluation.precision}"] if evaluation.precision else []
    settings += [f"trained in {evaluation.train_precision}"] if evaluation.train_precision else []
    settings += [f"test-time augmentation {evaluation.tta}"] if evaluation.tta not in (None, "none") else []
    covers = f" cover {evaluation.measured.covers}" if evaluation.measured.covers else ""
    return f"95 % intervals{'; '.join([covers, ', '.join(settings)] if settings else [covers])}."


def _curve_caption(record: RunRecord) -> str:
    parts = []
    if record.recipe.augment.train or record.recipe.augment.mix:
        parts.append("Training loss and accuracy are on augmented images, so they may lie below validation.")
    if any(row.train_clean_accuracy is not None for row in record.epochs):
        parts.append(f"Clean: up to {_CLEAN_IMAGES:,} training images without augmentation.")
    return " ".join(parts)


def _seen(samples: Samples | None) -> list[tuple[str, list[Photo]]]:
    if samples is None:
        return []
    try:
        return samples.seen()
    except KitaeError:  # ops of one's own that are not known here
        return []


def _time(rows: Sequence[Epoch]) -> Any:
    """The parts of the time, where they are known."""
    timed = [row for row in rows if row.seconds is not None]
    if not timed:
        return None
    waited = sum((row.seconds or 0.0) * (row.data_share or 0.0) for row in timed)
    steps = sum(row.seconds or 0.0 for row in timed) - waited
    validation = sum(row.validation_seconds or 0.0 for row in timed)
    parts = [("training steps", steps), ("data: reading and augmenting", waited), ("validation", validation)]
    parts = [part for part in parts if part[1] > 0]
    return charts.time_spent(parts) if parts else None


def _calibration(record: RunRecord) -> list[tuple[str, str]]:
    """Expected calibration error before and after the temperature."""
    found, temperature = record.reliability, record.evaluation.temperature
    if found is None or temperature is None:
        return []
    after, before = found
    fitted = "validation" if record.evaluation.out_of_fold is None else "out-of-fold images"
    name = f"after (temperature {temperature:.3f}, fitted on {fitted})"
    return [("before", share((before or after).error, 2)), (name, share(after.error, 2))]


@dataclass(frozen=True)
class File:
    """A file of the model: what it is, where, its bytes, and milliseconds of one image where that was measured."""

    what: str
    path: str
    size: float | None
    latency: float | None = None
    note: str = ""


def files(record: RunRecord) -> list[File]:
    """The weights, and the exported and compressed files beside the run."""
    folder = record.path.resolve()
    found = [File("PyTorch weights", "best.safetensors", _bytes(folder / "best.safetensors"))]
    exported = folder.with_name(f"{folder.name}.onnx")
    found.append(File("exported", exported.name, _bytes(exported)))
    small = folder.with_name(f"{folder.name}-small")
    try:
        record_ = CompressionRecord.open(small)
    except KitaeError:
        return [one for one in found if one.size is not None]
    if record_.run == folder.name:
        machine = str(record_.machine.get("processor") or "")
        note = f"measured by kitae compress{f' on {machine}' if machine else ''}"
        name = "model.onnx" if record_.within_budget else "closest.onnx"
        before, after = record_.baseline, record_.winner
        found.append(File("ONNX, float32", "", before.bytes, before.latency_ms, note))
        found.append(File("compressed", f"{small.name}/{name}", after.bytes, after.latency_ms, note))
    return [one for one in found if one.size is not None]


def _bytes(path: Path) -> float | None:
    try:
        return float(path.stat().st_size)
    except OSError:
        return None
