"""What a folder holds, read and validated once: a run, a study, a compression.

The models name the fields that pages show. A field that a file does not have is None or empty; one of the wrong type
makes the file damaged, and the error names both. Numbers that are not finite are None. What a later version of Kitae
adds to a file is ignored, but for a compression, whose page shows it under its own name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kitae.console import printable
from kitae.errors import KitaeError, TrainingError
from kitae.recipe import Recipe
from kitae.run import Run

_MAX_JSON_BYTES = 100_000_000


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(_finite(end) is None for end in value):
        return None
    return value


Number = Annotated[float | None, BeforeValidator(_finite)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_ends)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


# --------------------------------------------------------------------------------------------------------------- a run


class Epoch(_Record):
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


class ClassScore(_Record):
    """How one class did."""

    accuracy: Number = None
    accuracy_interval: Interval = None
    count: int = 0


class Confused(_Record):
    """So many images of one class were taken for another; `share` is of the true class."""

    true: str
    predicted: str
    count: int
    share: float


class Split(_Record):
    """The numbers of one split in evaluation.json; proportions are in [0, 1]."""

    count: int | None = None
    accuracy: Number = None
    accuracy_interval: Interval = None
    top5: Number = None
    top5_interval: Interval = None
    balanced_accuracy: Number = None
    balanced_accuracy_interval: Interval = None
    loss: Number = None
    loss_interval: Interval = None
    brier: Number = None
    brier_interval: Interval = None
    ece: Number = None
    ece_interval: Interval = None
    per_class: dict[str, ClassScore] = {}
    confusion: tuple[tuple[int, ...], ...] = ()
    intervals: dict[str, Any] = {}

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
        """Confusion matrix, int64 [K, K], rows true; None where it does not fit the classes."""
        size = len(self.per_class)
        if len(self.confusion) != size or any(len(row) != size for row in self.confusion):
            return None
        return np.array(self.confusion, np.int64)

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


class Evaluation(_Record):
    """evaluation.json."""

    test: Split | None = None
    val: Split | None = None
    temperature: Number = None
    precision: str | None = None
    train_precision: str | None = None
    tta: str | None = None
    best_epoch: int | None = None

    @property
    def measured(self) -> Split:
        """Test where it was opened, else validation, else nothing."""
        return self.test or self.val or Split()


class Facts(_Record):
    """model.json, as far as pages need it."""

    classes: tuple[str, ...] = ()
    parameters: Number = None
    macs: Number = None


class Opening(_Record):
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


class RunRecord(_Record):
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
        facts = _record(Facts, _or_empty(run.facts), run.path / "model.json")
        return cls(
            path=run.path,
            recipe=run.recipe,
            finished=run.finished,
            epochs=tuple(_record(Epoch, row, run.path / "metrics.jsonl") for row in run.metrics()),
            best_epoch=run.best_epoch(),
            evaluation=_record(Evaluation, run.evaluation() if run.finished else {}, run.path / "evaluation.json"),
            facts=facts,
            environment=_or_empty(run.environment),
            openings=tuple(_record(Opening, row, run.path / "test_openings.jsonl") for row in run.openings()),
            predicted=read_predictions(run, facts.classes) if run.finished else None,
        )

    @property
    def gap(self) -> float | None:
        """Accuracy on clean training images minus validation accuracy, at the last epoch."""
        last = self.epochs[-1] if self.epochs else None
        if last is None or last.train_clean_accuracy is None or last.val_accuracy is None:
            return None
        return last.train_clean_accuracy - last.val_accuracy


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


# ------------------------------------------------------------------------------------------------------------- a study


class Effect(_Record):
    """One effect, in the unit of its metric, or a factor where `ratio`."""

    name: str
    kind: str = "difference"
    estimate: Number = None
    low: Number = None
    high: Number = None
    p_holm: Number = None
    pairs: int | None = None
    ratio: bool = False
    shown: bool = False
    uneven: bool = False
    covers: str = "seeds"

    @property
    def neutral(self) -> float:
        return 1.0 if self.ratio else 0.0


class Noise(_Record):
    """How much runs that differ in nothing but the seed scatter."""

    sd: Number = None
    low: Number = None
    high: Number = None
    df: Number = None
    reference: str | None = None
    reference_mean: Number = None
    reference_sd: Number = None


class Analysis(_Record):
    """Effects on one metric."""

    unit: str = ""
    better: int = 0
    noise: Noise = Noise()
    effects: tuple[Effect, ...] = ()

    @property
    def ratio(self) -> bool:
        return any(effect.ratio for effect in self.effects)

    @property
    def covers(self) -> str:
        """What the intervals cover."""
        return next((effect.covers for effect in self.effects), "seeds")


class Claim(_Record):
    """A claim written down before the first run, and what became of it."""

    says: str
    estimate: Number = None
    low: Number = None
    high: Number = None
    ratio: bool = False
    verdict: str = ""
    remark: str = ""


class VariantNumber(_Record):
    """One metric of one variant over its seeds."""

    mean: Number = None
    sd: Number = None
    values: tuple[Number, ...] = ()


class Variant(_Record):
    """What was run."""

    name: str
    runs: int
    overrides: dict[str, Any] = {}
    numbers: dict[str, VariantNumber] = {}


class Band(_Record):
    """Mean and range over seeds, a value an epoch."""

    mean: tuple[Number, ...] = ()
    low: tuple[Number, ...] = ()
    high: tuple[Number, ...] = ()


class Curve(_Record):
    """The curves of one variant."""

    epoch: tuple[Number, ...] = ()
    val_accuracy: Band | None = None
    train_loss: Band | None = None


class StudyRuns(_Record):
    """How many runs were planned and finished, and what became of the others."""

    planned: int = 0
    finished: int = 0
    failed: tuple[dict[str, Any], ...] = ()


class StudyRecord(_Record):
    """effects.json, and the study as it was written down before the first run."""

    name: str
    about: str = ""
    design: str = ""
    metric: str
    seeds: tuple[int, ...] = ()
    settings: dict[str, Any] = {}
    runs: StudyRuns = StudyRuns()
    analyses: dict[str, Analysis] = {}
    sentences: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    variants: tuple[Variant, ...] = ()
    curves: dict[str, Curve] = {}
    levels: dict[str, dict[str, int]] = {}
    factors: dict[str, tuple[str, ...]] = {}
    numeric: tuple[str, ...] = ()
    aliases: dict[str, tuple[tuple[str, str, float], ...]] = {}

    @classmethod
    def open(cls, folder: Path) -> StudyRecord | None:
        """A study's results; None where they have not been worked out yet.

        Raises:
            KitaeError: the file is damaged.
        """
        file = folder / "effects.json"
        return _record(cls, read_json(file), file) if file.is_file() else None

    @property
    def main(self) -> Analysis:
        """Of the metric that the study was made for."""
        return self.analyses.get(self.metric) or Analysis()


# ------------------------------------------------------------------------------------------------------- a compression


class Candidate(_Record):
    """One file that was measured."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    prune: str = ""
    ratio: Number = None
    precision: str = ""
    calibration: str = ""
    parameters: Number = None
    nonzero: Number = None
    macs: Number = None
    bytes: Number = None
    packed_bytes: Number = None
    accuracy: Number = None
    accuracy_interval: Interval = None
    drop: Number = None
    drop_interval: Interval = None
    flips: Number = None
    latency_ms: Number = None
    latency_ms_interval: Interval = None
    speedup: Number = None
    speedup_interval: Interval = None
    front: bool = False
    winner: bool = False
    control: bool = False


class Budget(_Record):
    """The fields of the settings that pages name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    max_drop: Number = None
    max_bytes: Number = None
    max_latency_ms: Number = None
    threads: int | None = None


class Tested(_Record):
    """The original and the winner on test."""

    baseline: Candidate
    winner: Candidate
    drop: Number = None
    drop_interval: Interval = None
    count: int | None = None
    within_budget: bool = False


class Control(_Record):
    """The original timed against itself."""

    ratio: Number = None
    ratio_interval: Interval = None


class Latency(_Record):
    """How times were taken."""

    rounds: Number = None
    covers: str = ""
    control: Control = Control()
    noise: Number = None


class LeftOut(_Record):
    """A candidate that could not be had."""

    name: str
    why: str = ""


class Layer(_Record):
    """One layer of the original alone in 8 bits."""

    layer: str
    divergence: Number = None
    flips: Number = None
    accuracy: Number = None


class CompressionRecord(_Record):
    """compression.json, as `kitae compress` writes it. `model_extra` holds what a later version adds."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format: int = 1
    kitae: str = ""
    run: str = ""
    recipe: str = ""
    spec: Budget
    machine: dict[str, Any] = {}
    images: dict[str, int] = {}
    within_budget: bool = False
    sure: Any = None
    why_not: str | None = ""
    stopped: str | None = ""
    left_out: tuple[LeftOut, ...] = ()
    baseline: Candidate
    winner: Candidate
    size: str = "bytes"
    smaller: Number = None
    faster: Number = None
    test: Tested | None = None
    latency: Latency = Latency()
    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1)]
    sensitivity: tuple[Layer, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> CompressionRecord:
        """Read a compression.

        Raises:
            KitaeError: the file is damaged, or was not written by `kitae compress`: a page without the numbers that
                every compression has would look like a result.
        """
        file = folder / "compression.json"
        return _record(cls, read_json(file), file)


# --------------------------------------------------------------------------------------------------------------- files

Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        KitaeError: it cannot be read, or is damaged.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise KitaeError(f"{path}: larger than {_MAX_JSON_BYTES} bytes, so not ours")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KitaeError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise KitaeError(f"{path}: is damaged (not JSON)") from error
    if not isinstance(value, dict):
        raise KitaeError(f"{path}: is damaged (not a JSON object)")
    return value


def _record(model: type[Model], value: Mapping[str, Any], file: Path) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise KitaeError(f"{file}: is damaged ({field}: {first['msg']})") from error


def _or_empty(read: Any) -> dict[str, Any]:
    """A file of the run that may not be there yet."""
    try:
        value: dict[str, Any] = read()
    except TrainingError:
        return {}
    return value
