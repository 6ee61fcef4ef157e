"""What a run folder has to show, drawn as far as it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kitae.reporting.figures.evaluation import draw_confusion, draw_per_class, draw_reliability, draw_worst_mistakes
from kitae.reporting.figures.methods import draw_label_smoothing
from kitae.reporting.figures.training import draw_training_curves
from kitae.reporting.results import read_predictions
from kitae.reporting.style import Image

if TYPE_CHECKING:
    from kitae.run import Run


class Mistake(Protocol):
    """A wrong prediction: true and predicted class by number, and the probability given to the latter."""

    @property
    def label(self) -> int: ...
    @property
    def predicted(self) -> int: ...
    @property
    def confidence(self) -> float: ...


def draw_run(
    run: Run, evaluation: Mapping[str, Any], mistakes: Sequence[tuple[Image, Mistake]] = ()
) -> dict[str, Path]:
    """Draw into the run's folder of figures whatever can be drawn of it by now.

    Args:
        evaluation: as evaluation.json; empty while the run is not finished.
        mistakes: the worst ones with their images; none leaves a picture of them that is there already.

    Returns:
        The pictures that are there, by what they show: curves, confusion, per_class, calibration, mistakes, smoothing.
    """
    there: dict[str, Path] = {}
    rows = run.metrics()
    split = next((name for name in ("test", "out_of_fold", "val") if name in evaluation), "val")
    measured, where = evaluation.get(split, {}), split.replace("_", " ")
    if rows:
        there["curves"] = draw_training_curves(rows, run.figures / "curves.png", best_epoch=run.best_epoch())
    if "confusion" in measured:
        file = run.figures / "confusion.png"
        there["confusion"] = draw_confusion(
            measured["confusion"], run.classes, file, title=f"Confusion matrix, {where}"
        )
    if measured.get("per_class"):
        file = run.figures / "per-class.png"
        there["per_class"] = draw_per_class(measured["per_class"], file, title=f"Accuracy by class, {where}")
    found = read_predictions(run, run.classes) if split != "val" else None
    if found is not None:
        temperature = float(evaluation.get("temperature", 1.0))
        there["calibration"] = draw_reliability(
            found.confidence, found.correct, run.figures / "calibration.png", ece=measured.get("ece"),
            before=found.uncalibrated(temperature) if abs(temperature - 1) > 1e-3 else None,
            title=f"Calibration, {where}",
        )  # fmt: skip
    file = run.figures / "mistakes.png"
    if mistakes:
        names = run.classes
        there["mistakes"] = draw_worst_mistakes(
            [image for image, _ in mistakes],
            [names[m.predicted] for _, m in mistakes],
            [names[m.label] for _, m in mistakes],
            [m.confidence for _, m in mistakes],
            file,
            title=f"Most confident mistakes, {where}",
        )
    elif file.is_file():
        there["mistakes"] = file
    if run.recipe.train.label_smoothing > 0 and evaluation:
        names = run.classes
        there["smoothing"] = draw_label_smoothing(
            run.figures / "label-smoothing.png",
            classes=len(names),
            smoothing=run.recipe.train.label_smoothing,
            names=names if len(names) <= 12 else None,
        )
    return there
