"""A run folder, finished or not."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from kitae.console import printable
from kitae.errors import KitaeError, TrainingError
from kitae.recipe import Recipe
from kitae.reporting.results.fields import Interval, Number, Record, as_record
from kitae.run import Run


class Epoch(Record):
    """A line of metrics.jsonl."""

    epoch: int
    train_loss: Number = None
    val_loss: Number = None
    train_accuracy: Number = None
    train_clean_accuracy: Number = None
    val_accuracy: Number = None
    learning_rate: Number = None
    images_per_second: Number = None
    seconds: Number = None
    validation_seconds: Number = None
    data_share: Number = None
    peak_memory_bytes: Number = None


class ClassScore(Record):
    """How one class did."""

    accuracy: Number = None
    accuracy_interval: Interval = None
    count: int = 0


class Confused(Record):
    """How many images of one class were classified as another; `share` is of the true class."""

    true: str
    predicted: str
    count: int
    share: float


class ClassRow(Record):
    """Precision, recall and F1 of one class; None where it has no image, or nothing was taken for it."""

    name: str
    count: int
    recall: float | None
    interval: Interval
    precision: float | None
    f1: float | None


class Others(Record):
    """Accuracy on the test images that are not also training or validation images."""

    count: int | None = None
    accuracy: Number = None
    accuracy_interval: Interval = None


class Fold(Record):
    """A fold of a cross-validation."""

    fold: int
    count: int
    accuracy: Number = None
    best_epoch: int | None = None
    trained_on: int | None = None


class Split(Record):
    """The numbers of one split in evaluation.json; proportions are in [0, 1]."""

    count: int | None = None
    accuracy: Number = None
    accuracy_interval: Interval = None
    top5: Number = None
    top5_interval: Interval = None
    balanced_accuracy: Number = None
    balanced_accuracy_interval: Interval = None
    macro_f1: Number = None
    macro_f1_interval: Interval = None
    loss: Number = None
    loss_interval: Interval = None
    brier: Number = None
    brier_interval: Interval = None
    ece: Number = None
    ece_interval: Interval = None
    per_class: dict[str, ClassScore] = Field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    without_duplicates: Others | None = None
    folds: tuple[Fold, ...] = ()
    intervals: dict[str, Any] = Field(default_factory=dict)

    @property
    def covers(self) -> str:
        """What the intervals cover; empty where it is not known."""
        return str(self.intervals.get("covers") or "")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the confusion matrix."""
        return tuple(self.per_class)

    @cached_property
    def counts(self) -> NDArray[np.int64] | None:
        """Confusion matrix, int64 [K, K], rows true; None where there is none that fits the classes."""
        size = len(self.per_class)
        if not size or len(self.confusion) != size or any(len(row) != size for row in self.confusion):
            return None
        return np.array(self.confusion, np.int64)

    def scores(self) -> list[ClassRow]:
        """A row a class, in the order of the outputs."""
        counts = self.counts
        right = None if counts is None else counts.diagonal()
        rows = []
        for k, (name, row) in enumerate(self.per_class.items()):
            precision = f1 = None
            if counts is not None and right is not None:
                said, true = int(counts[:, k].sum()), int(counts[k].sum())
                precision = int(right[k]) / said if said else None
                f1 = 2 * int(right[k]) / (said + true) if said + true else None
            rows.append(ClassRow(name=name, count=row.count, recall=row.accuracy, interval=row.accuracy_interval,
                                 precision=precision, f1=f1))  # fmt: skip
        return rows

    def confused(self, most: int) -> list[Confused]:
        """The pairs of classes that are mistaken most often."""
        counts, names = self.counts, self.classes
        if counts is None:
            return []
        wrong = counts * (1 - np.eye(len(names), dtype=np.int64))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
        return [
            Confused(true=names[i], predicted=names[j], count=int(wrong[i, j]), share=wrong[i, j] / counts[i].sum())
            for i, j in pairs
        ]


class Evaluation(Record):
    """evaluation.json."""

    test: Split | None = None
    out_of_fold: Split | None = None
    val: Split | None = None
    temperature: Number = None
    precision: str | None = None
    train_precision: str | None = None
    tta: str | None = None
    best_epoch: int | None = None

    @property
    def measured(self) -> Split:
        """Test where it was opened, else what the folds' models said, else validation, else nothing."""
        return self.test or self.out_of_fold or self.val or Split()

    @property
    def where(self) -> str:
        """What `measured` was measured on."""
        return "test" if self.test else "out-of-fold images" if self.out_of_fold else "validation"


class Facts(Record):
    """model.json, as far as pages need it."""

    classes: tuple[str, ...] = ()
    parameters: Number = None
    macs: Number = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Opening(Record):
    """A line of test_openings.jsonl."""

    when: str = ""
    why: str = ""


class Predicted:
    """predictions.parquet: what was said of every test image.

    Attributes:
        names: of the images. label, predicted: int64 [N]. confidence: float64 [N]. probabilities: float64 [N, K].
    """

    def __init__(self, table: Any, classes: tuple[str, ...]) -> None:
        number = {printable(name): place for place, name in enumerate(classes)}
        self.names: list[str] = table["name"].to_pylist()
        self.label = np.array([number[name] for name in table["label"].to_pylist()], np.int64)
        self.predicted = np.array([number[name] for name in table["predicted"].to_pylist()], np.int64)
        self.confidence = np.asarray(table["confidence"].to_numpy(), np.float64)
        self.probabilities = np.array(table["probabilities"].to_pylist(), np.float64).reshape(len(self.names), -1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.asarray(self.label == self.predicted)

    def mistakes(self, most: int) -> list[int]:
        """Positions of the wrong predictions that were most confident, most confident first."""
        wrong = np.flatnonzero(~self.correct)
        order: list[int] = wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most].tolist()
        return order

    def uncalibrated(self, temperature: float) -> NDArray[np.float64]:
        """Confidence before the temperature: p to the power T, normalised, is what the logits themselves gave."""
        power = np.exp(temperature * np.log(np.maximum(self.probabilities, 1e-38)))
        return np.asarray((power / power.sum(axis=1, keepdims=True)).max(axis=1))


class RunRecord(Record):
    """A run folder, finished or not."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    path: Path
    recipe: Recipe
    finished: bool
    epochs: tuple[Epoch, ...]
    best_epoch: int | None
    evaluation: Evaluation
    facts: Facts
    environment: dict[str, Any]
    openings: tuple[Opening, ...]
    predicted: Predicted | None

    @classmethod
    def open(cls, run: Run) -> RunRecord:
        """Read a run.

        Raises:
            KitaeError: a file is damaged; it is named.
        """
        facts = as_record(Facts, _or_empty(run.facts), run.path / "model.json")
        return cls(
            path=run.path,
            recipe=run.recipe,
            finished=run.finished,
            epochs=tuple(as_record(Epoch, row, run.path / "metrics.jsonl") for row in run.metrics()),
            best_epoch=run.best_epoch(),
            evaluation=as_record(Evaluation, run.evaluation() if run.finished else {}, run.path / "evaluation.json"),
            facts=facts,
            environment=_or_empty(run.environment),
            openings=tuple(as_record(Opening, row, run.path / "test_openings.jsonl") for row in run.openings()),
            predicted=read_predictions(run, facts.classes) if run.finished else None,
        )

    @property
    def best(self) -> Epoch | None:
        """The epoch whose weights are kept."""
        return next((row for row in self.epochs if row.epoch == self.best_epoch), None)


def read_predictions(run: Run, classes: tuple[str, ...]) -> Predicted | None:
    """The run's predictions on test, or None where their file was deleted to save room, or test was not opened.

    Raises:
        KitaeError: the file is damaged.
    """
    import pyarrow

    try:
        return Predicted(run.predictions(), classes)
    except TrainingError:
        return None
    except (pyarrow.ArrowException, KeyError, ValueError, TypeError) as error:
        raise KitaeError(f"{run.path / 'predictions.parquet'}: is damaged; evaluate the run again") from error


def _or_empty(read: Any) -> dict[str, Any]:
    """A file of the run that may not be there yet."""
    try:
        value: dict[str, Any] = read()
    except TrainingError:
        return {}
    return value
