"""What a study keeps of a run: its numbers and curves, and what the numbers' names mean.

Names of numbers (a study's `metric` and `also`):

    test.accuracy, val.accuracy, val.loss, test.per_class.cat.accuracy, ...   a number of evaluation.json, by its path
    gap                  accuracy on clean training images minus validation accuracy, in the last epoch
    train_loss, val_loss in the last epoch; with mixing or smoothing, train_loss is not plain cross-entropy
    best_epoch           the epoch whose weights were kept
    epoch_seconds        median time of an epoch, without the first if there are more
    training_seconds     time of all epochs, for runs whose epochs do not all take as long or that may stop early
    images_per_second    median over epochs
    peak_memory_bytes    highest over epochs
    STEP.NAME            what a step under `after` returns: robustness.blur_accuracy, prune.accuracy, ...
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kitae.reporting.values import finite

# The numbers of one split in evaluation.json; a study's metric is checked against them before anything is trained.
EVALUATION = ("accuracy", "top5", "balanced_accuracy", "macro_f1", "loss", "brier", "ece")
OF_RUN = (
    "gap", "train_loss", "val_loss", "best_epoch", "epoch_seconds", "training_seconds", "images_per_second",
    "peak_memory_bytes",
)  # fmt: skip
# A point for each epoch that has it.
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "train_clean_accuracy")
# Of evaluation.json: no results. How often test was opened also depends on how often the study was cut.
_LEFT_OUT = ("intervals", "confusion", "classes_absent", "count", "test_openings")


def known(name: str, steps: Collection[str] = ()) -> bool:
    """Whether a run can have a number of this name; `steps` are the study's steps under `after`."""
    split, _, rest = name.partition(".")
    if split in ("test", "val"):
        return rest in EVALUATION or rest.startswith("per_class.")
    return name in OF_RUN or step_of(name, steps) is not None


def step_of(name: str, steps: Collection[str]) -> str | None:
    """The step whose number or setting this is, as `prune.accuracy`; your own steps may have dots in their names.

    >>> step_of("my.module:function.score", ["my.module:function"])
    'my.module:function'
    """
    fitting = [step for step in steps if name.startswith(f"{step}.") and len(name) > len(step) + 1]
    return max(fitting, key=len, default=None)


def numbers(evaluation: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The finite numbers of a run by their names; see the top of the file.

    Args:
        evaluation: as evaluation.json: {"test": {"accuracy": 0.9, ...}, "val": {...}}.
        epochs: as metrics.jsonl, one mapping per epoch.
    """
    measured: dict[str, Any] = {}
    if epochs:

        def column(name: str, rows: Sequence[Mapping[str, Any]] = epochs) -> list[Any]:
            return [row[name] for row in rows if row.get(name) is not None]

        trained = [row for row in epochs if row.get("epoch") != 0]  # 0 is the probe
        # The first epoch compiles kernels and reads from disk.
        last, timed = epochs[-1], trained[1:] or trained or epochs
        clean, val = last.get("train_clean_accuracy"), last.get("val_accuracy")
        measured = {
            "train_loss": last.get("train_loss"),
            "val_loss": last.get("val_loss"),
            "gap": None if clean is None or val is None else clean - val,  # null if outputs were not finite
            "epoch_seconds": statistics.median(column("seconds", timed) or [math.nan]),
            "images_per_second": statistics.median(column("images_per_second", timed) or [math.nan]),
            "training_seconds": sum(column("seconds")) or None,
            "peak_memory_bytes": max(column("peak_memory_bytes"), default=None) or None,
        }
    return flatten(evaluation, leave_out=_LEFT_OUT) | flatten(measured)


def flatten(tree: Mapping[str, Any], prefix: str = "", leave_out: Collection[str] = ()) -> dict[str, float]:
    """Numbers of a nested mapping by their dotted paths, without lists, text and NaN.

    Args:
        leave_out: names to leave out; below `per_class` they are names of classes.
    """
    found: dict[str, float] = {}
    for key, value in tree.items():
        if key in leave_out and not prefix.endswith("per_class."):
            continue
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.", leave_out)
        elif (number := finite(value)) is not None:
            found[f"{prefix}{key}"] = number
    return found


def curves(epochs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The columns of metrics.jsonl that a study draws."""
    names = ("epoch", *CURVES)
    return [{name: value for name in names if (value := finite(row.get(name))) is not None} for row in epochs]
