"""What a run folder has to show, drawn as far as it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kitae.reporting.figures.evaluation import confusion_matrix, draw_per_class, draw_worst_mistakes, reliability
from kitae.reporting.figures.methods import draw_label_smoothing
from kitae.reporting.figures.training import training_curves
from kitae.reporting.results import read_predictions
from kitae.reporting.style import Image, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    split = _measured(evaluation)
    figures = {
        "curves": curves(run),
        "confusion": confusion(run, evaluation),
        "calibration": calibration(run, evaluation),
    }
    for name, figure in figures.items():
        if figure is not None:
            there[name] = save(figure, run.figures / f"{name}.png")
    per_class, where = evaluation.get(split, {}).get("per_class"), split.replace("_", " ")
    if per_class:
        file = run.figures / "per-class.png"
        there["per_class"] = draw_per_class(per_class, file, title=f"Accuracy by class, {where}")
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


def curves(run: Run) -> Figure | None:
    """Loss, accuracy and learning rate over the epochs; None before the first epoch has ended."""
    rows = run.metrics()
    return training_curves(rows, best_epoch=run.best_epoch()) if rows else None


def confusion(run: Run, evaluation: Mapping[str, Any]) -> Figure | None:
    """The confusion matrix of test, of all folds, or of validation; None where nothing was measured."""
    split = _measured(evaluation)
    matrix, where = evaluation.get(split, {}).get("confusion"), split.replace("_", " ")
    return None if matrix is None else confusion_matrix(matrix, run.classes, title=f"Confusion matrix, {where}")


def calibration(run: Run, evaluation: Mapping[str, Any]) -> Figure | None:
    """Accuracy against confidence on test or out of fold; None where neither is, or its predictions were deleted."""
    split = _measured(evaluation)
    found = read_predictions(run, run.classes) if split != "val" else None
    if found is None:
        return None
    temperature = float(evaluation.get("temperature", 1.0))
    before = found.uncalibrated(temperature) if abs(temperature - 1) > 1e-3 else None
    title = f"Calibration, {split.replace('_', ' ')}"
    return reliability(found.confidence, found.correct, ece=evaluation[split].get("ece"), before=before, title=title)


def _measured(evaluation: Mapping[str, Any]) -> str:
    """The split that figures show."""
    return next((name for name in ("test", "out_of_fold", "val") if name in evaluation), "val")
