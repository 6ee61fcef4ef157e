"""run.plot: figures of a run, to look at in a notebook or to save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kitae.errors import KitaeError
from kitae.reporting.figures.evaluation import confusion_matrix, reliability, worst_mistakes
from kitae.reporting.figures.training import training_curves
from kitae.reporting.results import RunRecord, read_predictions
from kitae.reporting.samples import Samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kitae.run import Run


class Plots:
    """Figures of a run; each is a matplotlib Figure that a notebook shows, and that `figure.savefig` writes.

    Drawn without pyplot, so no figure is left open and the user's rcParams stay as they are.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __repr__(self) -> str:
        return f"Plots({self._run.path}): curves(), confusion(), calibration(), mistakes()"

    def curves(self) -> Figure:
        """Loss, accuracy and learning rate over the epochs, the best epoch marked.

        Raises:
            KitaeError: no epoch has ended yet.
        """
        rows = self._run.metrics()
        if not rows:
            raise KitaeError(f"{self._run.path}: no epoch has ended yet")
        return training_curves(rows, best_epoch=self._run.best_epoch())

    def confusion(self) -> Figure:
        """Which class is taken for which, on test, or on validation where test was not opened.

        Raises:
            KitaeError: the run is not finished.
        """
        evaluation = self._run.evaluation()
        split = _measured(evaluation)
        matrix = evaluation.get(split, {}).get("confusion")
        if matrix is None:
            raise KitaeError(f"{self._run.path}: evaluation.json has no confusion matrix")
        return confusion_matrix(matrix, self._run.classes, title=f"Confusion matrix, {split.replace('_', ' ')}")

    def calibration(self) -> Figure:
        """Accuracy on test against the confidence of the predictions, before and after the temperature.

        Raises:
            KitaeError: the run is not finished, did not open test, or its predictions.parquet was deleted.
        """
        evaluation = self._run.evaluation()
        split = _measured(evaluation)
        found = None if split == "val" else read_predictions(self._run, self._run.classes)
        if found is None:
            raise KitaeError(f"{self._run.path}: has no predictions on test (predictions.parquet)")
        temperature = float(evaluation.get("temperature", 1.0))
        before = found.uncalibrated(temperature) if abs(temperature - 1) > 1e-3 else None
        title = f"Calibration, {split.replace('_', ' ')}"
        return reliability(
            found.confidence, found.correct, ece=evaluation[split].get("ece"), before=before, title=title
        )

    def mistakes(self, most: int = 12) -> Figure:
        """The test images that the model was surest about and got wrong.

        Args:
            most: how many to draw, at least 1.

        Raises:
            KitaeError: there is no mistake, the run is not finished, did not open test, or its images are not in the
                cache any more.
        """
        if most < 1:
            raise KitaeError(f"most: must be at least 1, not {most}")
        record = RunRecord.open(self._run)
        found = record.predicted
        samples = None if found is None else Samples.find(record, self._run)
        if found is None or samples is None or not len(samples.test):
            raise KitaeError(f"{self._run.path}: has no predictions on test, or its images are not in the cache")
        places = found.mistakes(most)
        if not places:
            raise KitaeError(f"{self._run.path}: every test image was classified correctly")
        names = record.facts.classes
        return worst_mistakes(
            [samples.tested(place) for place in places],
            [names[found.predicted[place]] for place in places],
            [names[found.label[place]] for place in places],
            [float(found.confidence[place]) for place in places],
            title="Most confident mistakes, test",
        )


def _measured(evaluation: Mapping[str, Any]) -> str:
    """The split that figures show."""
    return next((name for name in ("test", "out_of_fold", "val") if name in evaluation), "val")
