"""run.plot: figures of a run, to look at in a notebook or to save."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kitae.errors import KitaeError
from kitae.reporting.figures import runs
from kitae.reporting.figures.evaluation import worst_mistakes
from kitae.reporting.results import RunRecord
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
        return self._drawn(runs.curves(self._run), "no epoch has ended yet")

    def confusion(self) -> Figure:
        """Which class is taken for which, on test, or on validation where test was not opened.

        Raises:
            KitaeError: the run is not finished.
        """
        return self._drawn(runs.confusion(self._run, self._run.evaluation()), "evaluation.json has no confusion matrix")

    def calibration(self) -> Figure:
        """Accuracy on test against the confidence of the predictions, before and after the temperature.

        Raises:
            KitaeError: the run is not finished, did not open test, or its predictions.parquet was deleted.
        """
        missing = "has no predictions on test (predictions.parquet)"
        return self._drawn(runs.calibration(self._run, self._run.evaluation()), missing)

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

    def _drawn(self, figure: Any, missing: str) -> Figure:
        if figure is None:
            raise KitaeError(f"{self._run.path}: {missing}")
        return figure  # type: ignore[no-any-return]
