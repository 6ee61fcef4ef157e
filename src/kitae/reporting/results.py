"""The contents of a run folder, read and validated once; of others see `compression_results` and `study_results`.

The models name the fields that pages show. A field that a file need not have is None or empty where it is not there.
One that is missing or of the wrong type makes the file damaged, and the error names both. Numbers that are not finite
are None. What a later version of Kitae adds to a file is ignored, but for a compression, whose page shows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kitae.console import printable
from kitae.data.splits import Splits
from kitae.errors import KitaeError, TrainingError
from kitae.evaluation.calibration import BINS, bin_of
from kitae.evaluation.intervals import proportion
from kitae.recipe import Recipe
from kitae.run import Run


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends(value: Any) -> Any:
    unknown = isinstance(value, list | tuple) and any(_finite(end) is None for end in value)
    return None if unknown else value


Floats = NDArray[np.float64]
Number = Annotated[float | None, BeforeValidator(_finite)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_ends)]


class Record(BaseModel):
    """A part of a file; what it does not name is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def checked(cls, value: Mapping[str, Any], file: Path, error: type[KitaeError] = KitaeError) -> Self:
        """Validate a value that was read from a file. If it does not fit, an `error` names file and field."""
        try:
            return cls.model_validate(value)
        except ValidationError as problem:
            first = problem.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise error(f"{file}: is damaged ({field}: {first['msg']})") from problem

    def data(self) -> dict[str, Any]:
        """The fields that were given, for JSON: those of a file that was read, in the order of the model."""
        return self.model_dump(mode="json", exclude_unset=True)


class Epoch(Record):
    """A line of metrics.jsonl."""

    epoch: int
    train_loss: Number = None
    val_loss: Number = None
    train_accuracy: Number = None
    train_clean_accuracy: Number = None
    val_accuracy: Number = None
    learning_rate: float
    images_per_second: float
    seconds: float
    validation_seconds: Number = None
    data_share: float
    peak_memory_bytes: Number = None

    @property
    def validated(self) -> bool:
        """Whether the network was validated after this epoch, also if the scores are not finite."""
        return not self.model_fields_set.isdisjoint(("val_loss", "val_accuracy", "train_clean_accuracy"))


class Score(Record):
    """The scores on some of the images: those of a class, or those without copies in other splits."""

    accuracy: Number = None
    accuracy_interval: Interval = None
    precision: Number = None
    precision_interval: Interval = None
    f1: Number = None
    f1_interval: Interval = None
    count: int = 0


@dataclass(frozen=True)
class Confused:
    """How many images of one class were classified as another; `share` is of the true class."""

    true: str
    predicted: str
    count: int
    share: float


class Fold(Record):
    """A fold of a cross-validation."""

    fold: int
    count: int
    accuracy: float
    best_epoch: int | None
    trained_on: int


class Split(Record):
    """The numbers of one split in evaluation.json; proportions are in [0, 1]."""

    count: int = 0
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
    per_class: dict[str, Score] = Field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    without_duplicates: Score | None = None
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

    def confused(self, most: int | None = None) -> list[Confused]:
        """The pairs of classes that are mistaken most often."""
        if self.counts is None:
            return []
        names, wrong, true = self.classes, self.counts.copy(), self.counts.sum(axis=1)
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [(*divmod(int(place), len(names)), int(wrong.flat[place])) for place in order if wrong.flat[place]]
        return [Confused(names[i], names[j], count, count / int(true[i])) for i, j, count in pairs]


class Evaluation(Record):
    """What evaluation.json says, as far as pages show it."""

    test: Split | None = None
    out_of_fold: Split | None = None
    val: Split | None = None
    temperature: Number = None
    precision: str | None = None
    train_precision: str | None = None
    tta: str | None = None
    groups: dict[str, int] = Field(default_factory=dict)

    @property
    def of_views(self) -> bool:
        """Whether probabilities are means over the views of test-time augmentation."""
        return self.tta not in (None, "none")

    @property
    def splits(self) -> dict[str, Split]:
        """Those that were measured, by their names in a table."""
        named = {"Test": self.test, "Out of fold": self.out_of_fold, "Validation": self.val}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def measured(self) -> Split:
        """The test split if it was opened, else out-of-fold, else validation, else an empty split."""
        return next(iter(self.splits.values()), Split())

    @property
    def where(self) -> str:
        """What `measured` was measured on."""
        return "test" if self.test else "out-of-fold images" if self.out_of_fold else "validation"


class Facts(Record):
    """model.json, as far as pages need it."""

    classes: tuple[str, ...] = ()
    parameters: Number = None
    macs: Number = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    clean_images: int = 1000  # on which train_clean_accuracy is measured


class Opening(Record):
    """A line of test_openings.jsonl."""

    when: str
    why: str


class Bins(NamedTuple):
    """The bins of a reliability diagram that hold a prediction (Guo et al. 2017): for each its centre, the mean
    confidence, the accuracy with the ends of its interval (float64), and the number of images (int64).
    """

    centre: Floats
    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    images: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of accuracy and confidence."""
        return float(np.abs((self.confidence - self.accuracy) * self.images).sum() / self.images.sum())


class Predicted:
    """predictions.parquet: the prediction for every test image.

    Attributes:
        names: of the images. label, predicted: int64 [N]. confidence: float64 [N]. probabilities: float64 [N, K].
        groups: int64 [N], equal for images of one group; None without groups.
    """

    def __init__(self, table: Any, classes: tuple[str, ...]) -> None:
        number = {printable(name): place for place, name in enumerate(classes)}
        self.names: list[str] = table["name"].to_pylist()
        self.label = np.array([number[name] for name in table["label"].to_pylist()], np.int64)
        self.predicted = np.array([number[name] for name in table["predicted"].to_pylist()], np.int64)
        self.confidence = np.asarray(table["confidence"].to_numpy(), np.float64)
        values = table["probabilities"].combine_chunks().flatten()  # as numbers of Python: 4 times the bytes
        self.probabilities = np.asarray(values, np.float64).reshape(len(self.names), len(classes))
        self.correct: NDArray[np.bool_] = self.label == self.predicted
        self.groups = np.asarray(table["group"].to_numpy(), np.int64) if "group" in table.column_names else None

    def mistakes(self, most: int | None = None) -> list[int]:
        """Positions of the wrong predictions, the most confident first; at most `most`."""
        wrong = np.flatnonzero(~self.correct)
        order: list[int] = wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most].tolist()
        return order

    def uncalibrated(self, temperature: float) -> Floats:
        """Confidence of single views before the temperature: p to the power T, normalised, is what the logits gave."""
        power = np.exp(temperature * np.log(np.maximum(self.probabilities, 1e-38)))
        return np.asarray((power / power.sum(axis=1, keepdims=True)).max(axis=1))

    def bins(self, confidence: Floats) -> Bins:
        """The predictions, binned by the given confidence, float64 [N]."""
        where, found = bin_of(confidence), []
        for place in np.unique(where):
            inside = where == place
            right, groups = self.correct[inside], None if self.groups is None else self.groups[inside]
            low, high = proportion(right, groups) or (0.0, 1.0)  # a single group says nothing about others
            found.append(((place + 0.5) / BINS, confidence[inside].mean(), right.mean(), low, high, len(right)))
        return Bins(*map(np.array, zip(*found, strict=True)))


class RunRecord(Record, arbitrary_types_allowed=True):
    """A run folder, finished or not."""

    run: Run
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
        """Read a run. A damaged file is a KitaeError that names it."""
        # This and the environment are written when training starts, so a run that failed before has neither.
        facts = Facts.checked(run.facts() if run.facts_file.exists() else {}, run.facts_file)
        return cls(
            run=run,
            recipe=run.recipe,
            finished=run.finished,
            epochs=read_epochs(run),
            best_epoch=run.best_epoch(),
            evaluation=Evaluation.checked(run.evaluation() if run.finished else {}, run.evaluation_file),
            facts=facts,
            environment=run.environment() if run.begun else {},
            openings=tuple(Opening.checked(row, run.openings_file) for row in run.openings()),
            predicted=_predictions(run, facts.classes) if run.finished else None,
        )

    @property
    def best(self) -> Epoch | None:
        """The epoch whose weights are kept."""
        return next((row for row in self.epochs if row.epoch == self.best_epoch), None)

    @property
    def training_seconds(self) -> float:
        """How long training and validation took."""
        validation = sum(row.validation_seconds or 0.0 for row in self.epochs)
        return sum(row.seconds for row in self.epochs) + validation

    @property
    def has_mistakes(self) -> bool:
        """Whether predictions are recorded, and one of them is wrong."""
        return self.predicted is not None and not self.predicted.correct.all()

    @cached_property
    def held_out(self) -> str | None:
        """`Splits.held_out`; None where the run has no splits yet. Only comparisons need it."""
        file = self.run.path / "splits.npz"
        return Splits.load(file).held_out if file.is_file() else None

    @cached_property
    def reliability(self) -> tuple[Bins, Bins | None] | None:
        """The predictions on test binned by confidence, and by that before the temperature if it differs.

        Of a mean over views only the first: what the views gave before the temperature is not in it.
        """
        found, temperature = self.predicted, self.evaluation.temperature or 1.0
        if found is None:
            return None
        changed = abs(temperature - 1) > 1e-3 and not self.evaluation.of_views
        return found.bins(found.confidence), found.bins(found.uncalibrated(temperature)) if changed else None


def read_epochs(run: Run) -> tuple[Epoch, ...]:
    """The epochs of a run that have ended."""
    return tuple(Epoch.checked(row, run.metrics_file) for row in run.metrics())


def _predictions(run: Run, classes: tuple[str, ...]) -> Predicted | None:
    """The predictions on test, or None where their file was deleted to save room, or test was not opened."""
    import pyarrow

    file = run.path / "predictions.parquet"
    if not file.is_file():
        return None
    try:
        return Predicted(run.predictions(), classes)
    except (TrainingError, pyarrow.ArrowException, KeyError, ValueError, TypeError) as error:
        raise KitaeError(f"{file}: is damaged; delete it; the page then omits the predictions") from error
