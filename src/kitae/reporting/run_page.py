"""The page of a run, finished or not: a conclusion from its numbers, what to do next, and the details."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from kitae.console import data_name, percent
from kitae.data.spec import SPLIT
from kitae.errors import KitaeError, TrainingError
from kitae.files import read_json
from kitae.folders import SIGNS
from kitae.recipe import assignments, shipped
from kitae.reporting import charts
from kitae.reporting.compression_results import CompressionRecord
from kitae.reporting.results import RunRecord, Split
from kitae.reporting.samples import Samples
from kitae.reporting.values import Cell, between, finite, number, points, share
from kitae.views import folds_done

_HEADLINES = {
    "accuracy": "Accuracy",
    "top5": "Top-5 accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "loss": "Loss (negative log-likelihood)",
    "brier": "Brier score",
    "ece": "Expected calibration error",
}
_Z = 1.96
_OVERFIT = 0.05  # a gap that is significantly larger asks for regularisation
_MINUTES, _EPOCHS = 5, 10  # of a fine-tuning that is proposed, at least
_WIDEST = 512  # channels that can be doubled
# How a source is read and split. A plan chooses the share of validation, and the folds have an option.
_READ_BY = {field.removeprefix("data.") for field in SPLIT} - {"source", "val_fraction", "folds", "fold"}

Command = tuple[str, str]
"""What a command is for, and the command."""
File = tuple[str, str, int, float | None, str]
"""What a file is, its path, its bytes, and where a compression measured it the milliseconds of one image and how."""


class Verdict(NamedTuple):
    """What a training lacked, from which both the advice and the commands follow.

    Attributes:
        lacks: fine-tuning, if only a linear head was trained; a longer one, if it did not improve on the head; size, or
            length, of a network that may underfit; regularisation of one that overfits. Empty where nothing is known
            to help.
        said: a sentence, or empty.
    """

    lacks: Literal["tuning", "length", "size", "regularisation", ""]
    said: str


def content(record: RunRecord) -> dict[str, Any]:
    """The variables of run.html."""
    samples = Samples.find(record) if record.epochs else None
    split = record.evaluation.measured
    counts = samples.counts() if samples else {}
    held = "train" if record.recipe.data.whole else "val"  # a model on everything has no validation images
    return {
        "over": "Training run",
        "title": record.recipe.name,
        "subtitle": f"{record.recipe.model.name} on {data_name(record.recipe.data.source)}",
        "warnings": [],
        "answer": answer(record),
        "commands": commands(record),
        "decode": f"kitae evaluate {shlex.quote(str(record.run.path))} --split {held}",
        "run": record,
        "samples": samples,
        "headline": _headline(record.evaluation.splits),
        "counts": charts.class_counts(record.facts.classes, counts) if counts else None,
        "count_names": list(counts),
        "curves": charts.curves(record.epochs, record.best_epoch) if any(row.epoch for row in record.epochs) else None,
        "time": charts.time_spent(record.epochs),
        "recalls": charts.recalls(split),
        "confusion": charts.confusion(split, record.evaluation.where),
        "calibration": None if record.reliability is None else charts.reliability(*record.reliability),
        "files": files(record),
    }


# ---------------------------------------------------------------------------------------------------------- conclusion


def answer(record: RunRecord) -> list[str]:
    """The conclusion: how good the model is, where it is weak, and whether it underfits or overfits."""
    if not record.finished:
        return [_unfinished(record)]
    split = record.evaluation.measured
    where = f"on {record.evaluation.where}"
    if record.evaluation.where == "validation" and not record.openings:
        where += " (test was not opened)"
    interval = between(split.accuracy_interval, 100)
    first = f"{share(split.accuracy)} {where}{f' ({interval})' if interval else ''}."
    return [f"{first} {_weak(split)}".strip(), *filter(None, (_folds(record), verdict(record).said, _copies(record)))]


def _folds(record: RunRecord) -> str:
    """What was cross-validated, and what the model at hand was trained on."""
    split = record.evaluation.out_of_fold
    if split is None or not split.folds:
        return ""
    each = [fold.accuracy for fold in split.folds]
    return (
        f"Cross-validation: each of {split.count:,} images was judged by the one of {len(split.folds)} models that has "
        f"not seen it (out-of-fold accuracy {share(split.accuracy)}, from {share(min(each))} to {share(max(each))}). "
        "This model was trained on all of them."
    )


def _unfinished(record: RunRecord) -> str:
    ended = record.epochs[-1].epoch if record.epochs else 0  # the row of the probe, epoch 0, is no epoch of training
    done = f"{ended} of {record.recipe.train.last_epoch} epochs"
    if record.recipe.data.whole:  # its folds are trained first
        tested, folds = folds_done(record.run)
        done = f"{tested} of {folds} folds and {done} of the model on everything"
    done, best = f"This run is not finished: {done} are done.", record.best
    if best is None or best.val_accuracy is None:
        return done
    by = f"in epoch {best.epoch}" if best.epoch else "by the linear head"
    return f"{done} The best so far is {share(best.val_accuracy)} on validation, {by}."


def _weak(split: Split) -> str:
    """The weakest of the classes that are significantly weaker than the whole, and what it is confused with.

    A class of few images may have a lower recall by chance.
    """
    recalls = {name: row.accuracy for name, row in split.per_class.items() if row.accuracy is not None}
    if not recalls or split.accuracy is None:
        return ""
    counts = {name: split.per_class[name].count for name in recalls}
    largest = max(counts, key=counts.__getitem__)
    always = counts[largest] / sum(counts.values())
    if split.accuracy_interval is not None and split.accuracy_interval[0] <= always:
        return f"That is not significantly better than always predicting {largest} ({share(always)})."
    # A class whose images are of one group has no interval, but counts as one of the others.
    highs = {name: ends[1] for name in recalls if (ends := split.per_class[name].accuracy_interval)}
    weak = [name for name, high in highs.items() if high < split.accuracy]
    if not weak:
        return "No class is significantly weaker than the others." if highs else ""
    name = min(weak, key=recalls.__getitem__)
    taken = next((pair for pair in split.confused() if pair.true == name), None)
    which = "the weakest class" if recalls[name] == min(recalls.values()) else "weaker than the others"
    text = f"{name} is {which}: recall {share(recalls[name], 0)}"
    if taken is not None:
        text += f", {100 * taken.share:.0f} of 100 predicted as {taken.predicted}"
    return f"{text}."


def verdict(record: RunRecord) -> Verdict:
    """What a finished training lacked."""
    if record.epochs and not record.epochs[-1].epoch:
        return _head(record)
    if record.best is not None and not record.best.epoch:
        return Verdict("length", "No epoch of fine-tuning was better than the linear head that it began with, whose "
                       "weights are kept: longer training may help.")  # fmt: skip
    return _gap(record)


def _head(record: RunRecord) -> Verdict:
    """Why nothing but a linear head was trained."""
    done, minutes = "Only a linear head was trained on the pretrained network", _minutes(record)
    if record.recipe.data.whole and record.recipe.train.last_epoch:
        return Verdict("", f"{done}: in most folds, fine-tuning was no better.")
    if minutes is None:
        return Verdict("tuning", f"{done}: no epoch of fine-tuning was asked for.")
    return Verdict("tuning", f"{done}: {minutes:g} minute{'' if minutes == 1 else 's'} left no time to fine-tune it.")


def _gap(record: RunRecord) -> Verdict:
    """The gap between train and validation at the epoch whose weights are kept, and what it suggests."""
    best, val = record.best, record.evaluation.val
    if best is None or best.train_clean_accuracy is None or best.val_accuracy is None or val is None:
        return Verdict("", "")
    gap = best.train_clean_accuracy - best.val_accuracy
    measured = ((best.train_clean_accuracy, record.facts.clean_images), (best.val_accuracy, val.count))
    of_train, of_val = (p * (1 - p) / n for p, n in measured)
    if record.evaluation.groups:  # the interval covers the choice of groups; a single group has none
        low, high = val.accuracy_interval or (-math.inf, math.inf)
        of_val = ((high - low) / (2 * _Z)) ** 2
    error = _Z * math.sqrt(of_train + of_val)
    apart = points(abs(100 * gap), 1)
    last = record.epochs[-1].epoch == best.epoch
    if gap - error > _OVERFIT:
        return Verdict("regularisation", f"Training accuracy is {apart} above validation: the network overfits. More "
                       "images, stronger augmentation or a smaller network may help.")  # fmt: skip
    if gap + error < 0:
        return Verdict("", f"Validation accuracy is {apart} above training accuracy: perhaps the validation images are "
                       "easier, or labels of training images are wrong.")  # fmt: skip
    if gap - error > 0:
        text = f"The gap between train and validation is {apart}"
    else:
        text = f"Train and validation differ by no more than chance ({apart})"
    ends = ", and the last epoch was the best" if last else ""
    if best.val_accuracy == 1:
        return Verdict("", f"{text}{ends}.")
    return Verdict("size", f"{text}{ends}: a larger network or longer training may help.")


def _copies(record: RunRecord) -> str:
    """The effect of copies of training or validation images on the test accuracy."""
    test = record.evaluation.test
    if test is None or test.without_duplicates is None:
        return ""
    others = test.without_duplicates
    if not others.count:
        return "Every test image is also in train or validation, so this accuracy says nothing about new images."
    many = test.count - others.count
    return (
        f"{many:,} test image{' is' if many == 1 else 's are'} also in train or validation; accuracy without "
        f"{'it' if many == 1 else 'them'} is {percent(others.accuracy, others.accuracy_interval)}."
    )


def commands(record: RunRecord) -> list[Command]:
    """What to do next."""
    folder = shlex.quote(str(record.run.path))
    if not record.finished:
        return [("Resume training", record.run.resume_command)]
    found = [
        ("Classify new images", f"kitae predict {folder} IMAGES"),
        *([] if record.recipe.data.whole else [("Make it small and fast", f"kitae compress {folder}")]),
        *([("List the mistakes", f"kitae show mistakes {folder}")] if record.has_mistakes else []),
        *_better(record),
    ]
    if not record.recipe.data.source.startswith(("cifar", "fashion", "mnist")):
        check = f"kitae data check {shlex.quote(record.recipe.data.source)}{_sets(_read_by(record))}"
        found.append(("Look for broken images, duplicates and label conflicts", check))
    return found


def _better(record: RunRecord) -> list[Command]:
    """The commands for what the training lacked."""
    lacks, recipe = verdict(record).lacks, shlex.quote(str(record.run.recipe_file))
    if lacks == "tuning":
        return [("Fine-tune the network too", _fine_tune(record))]
    if lacks == "regularisation":
        source = shlex.quote(record.recipe.data.source)
        return [("Search for stronger augmentation, in many trainings", f"kitae search {source} --recipe {recipe}")]
    model, longer = record.recipe.model, 2 * record.recipe.train.last_epoch
    found: list[Command] = []
    # Pretrained weights only fit their own width.
    if lacks == "size" and model.width is not None and model.width <= _WIDEST and not model.pretrained:
        found.append(("Train a network twice as wide", f"kitae train {recipe} --set model.width={2 * model.width}"))
    if lacks in ("size", "length") and longer:
        found.append(("Train twice as long", f"kitae train {recipe} --set train.epochs={longer}"))
    return found


def _fine_tune(record: RunRecord) -> str:
    """The command that fine-tunes where only a head was trained: planned again with more minutes, or by its recipe."""
    data, model, minutes = record.recipe.data, record.recipe.model, _minutes(record)
    more = f" --minutes {max(_MINUTES, math.ceil(4 * (minutes or 0)))}"
    if record.recipe.name == data_name(data.source)[:100]:  # as a plan is named
        source = f"{data.source}:" if data.source in shipped() else data.source  # otherwise the recipe of that name
        folds = f" --folds {data.folds}" if data.whole else ""
        seed = f" --seed {record.recipe.train.seed}" if record.recipe.train.seed else ""
        limit = {"data.limit": data.limit} if data.limit is not None else {}
        weights = {"model.pretrained": model.pretrained} if isinstance(model.pretrained, str) else {}
        sets = _sets({**_read_by(record), **limit, **weights})
        return f"kitae train {shlex.quote(source)} --model {shlex.quote(model.name)}{folds}{seed}{more}{sets}"
    file = record.run.asked_length  # written where the minutes cut the length that was asked for
    asked = read_json(file, error=TrainingError) if file.is_file() else {}
    fields = (("train.epoch_steps", "epoch_steps"), ("train.schedule.warmup_epochs", "warmup_epochs"))
    sets = _sets({field: asked[name] for field, name in fields if asked.get(name)})
    epochs = f" --epochs {asked.get('epochs') or _EPOCHS}"
    return f"kitae train {shlex.quote(str(record.run.recipe_file))}{epochs}{sets}{more if minutes else ''}"


def _read_by(record: RunRecord) -> dict[str, Any]:
    """The fields by which the run's images were read and split, where they are not the defaults."""
    read = record.recipe.data.model_dump(include=_READ_BY, exclude_defaults=True)
    return {f"data.{name}": value for name, value in read.items()}


def _sets(fields: Mapping[str, Any]) -> str:
    """The fields as an option of a command."""
    return f" --set {shlex.join(assignments(fields))}" if fields else ""


def _minutes(record: RunRecord) -> float | None:
    """The time limit of the run, if it had one."""
    return finite(record.environment.get("minutes"))


# ------------------------------------------------------------------------------------------------------------- details


def _headline(splits: Mapping[str, Split]) -> list[tuple[str, list[Cell]]]:
    """Every headline metric of every split that was measured, with its interval."""
    rows: list[tuple[str, list[Cell]]] = []
    for key, label in _HEADLINES.items():
        found = [(getattr(split, key), getattr(split, f"{key}_interval")) for split in splits.values()]
        whole = key in ("loss", "brier")
        cells = [(number(value, ".4f"), between(ends, 1, 4)) if whole else (share(value, 2), between(ends, 100, 2))
                 for value, ends in found]  # fmt: skip
        if any(value is not None for value, _ in found):
            rows.append((label, cells))
    return [*rows, ("Images", [(number(split.count), "") for split in splits.values()])] if splits else []


def files(record: RunRecord) -> list[File]:
    """The weights, and the exported and compressed files beside the run, but not those of weights it had before."""
    folder, best = record.run.path.resolve(), record.run.best
    trained = best.stat().st_mtime if best.is_file() else 0.0
    exported = folder.with_name(f"{folder.name}.onnx")
    named = (("PyTorch weights", best), ("exported", exported))
    found: list[File] = [
        (what, file.name, file.stat().st_size, None, "")
        for what, file in named
        if file.is_file() and file.stat().st_mtime >= trained
    ]
    small = folder.with_name(f"{folder.name}-small")
    try:
        compressed = CompressionRecord.open(small)
    except KitaeError:
        return found
    if compressed.run != folder.name or (small / SIGNS["compression"]).stat().st_mtime < trained:
        return found
    note = f"measured by kitae compress on {compressed.machine['processor']}"
    before, after, file = compressed.baseline, compressed.winner, f"{small.name}/{compressed.file}"
    return [
        *found,
        ("ONNX, float32", "", before.bytes, before.latency_ms, note),
        ("compressed", file, after.bytes, after.latency_ms, note),
    ]
