"""run.plot: figures of a run, to look at in a notebook or to save. Charts of pages are SVG, see `reporting.svg`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kitae.errors import KitaeError
from kitae.evaluation.calibration import BINS
from kitae.reporting.charts import known_curves
from kitae.reporting.figures import grid_figure
from kitae.reporting.results import Bins, Epoch, RunRecord, read_epochs
from kitae.reporting.samples import Samples
from kitae.reporting.style import (
    BLUE,
    DPI,
    GRID,
    INK,
    LABEL,
    MUTED,
    PAPER,
    SERIES,
    SMALL,
    VERMILLION,
    WIDTH,
    Image,
    dress,
    fit,
    labels,
    legend,
    new_figure,
    number,
    percent,
    text_width,
)

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

        "clean" is the accuracy on training images without augmentation.

        Raises:
            KitaeError: no epoch has ended yet.
        """
        rows = read_epochs(self._run)
        if not rows:
            raise KitaeError(f"{self._run.path}: no epoch has ended yet")
        return training_curves(rows, self._run.best_epoch())

    def confusion(self) -> Figure:
        """Which class is predicted as which, on test, or on validation where test was not opened.

        Raises:
            KitaeError: the run is not finished.
        """
        found = self._finished().evaluation
        counts = found.measured.counts
        if counts is None:
            raise KitaeError(f"{self._run.path}: evaluation.json has no confusion matrix")
        return confusion_matrix(counts, found.measured.classes, title=f"Confusion matrix, {found.where}")

    def calibration(self) -> Figure:
        """Accuracy on test against the confidence of the predictions, before and after the temperature.

        Raises:
            KitaeError: the run is not finished, did not open test, or its predictions.parquet was deleted.
        """
        record = self._finished()
        if record.reliability is None:
            raise KitaeError(f"{self._run.path}: has no predictions on test (predictions.parquet)")
        return reliability(*record.reliability, title=f"Calibration, {record.evaluation.where}")

    def mistakes(self, most: int = 12) -> Figure:
        """The test images that the model was surest about and got wrong; of a cross-validation, the out-of-fold ones.

        Args:
            most: how many to draw, at least 1.

        Raises:
            KitaeError: there is no mistake, the run is not finished, did not open test, or its images are not in the
                cache any more.
        """
        if most < 1:
            raise KitaeError(f"most: must be at least 1, not {most}")
        record = self._finished()
        found, samples = record.predicted, Samples.find(record)
        if found is None or samples is None or not len(samples.test):
            raise KitaeError(f"{self._run.path}: has no predictions on test, or its images are not in the cache")
        places = found.mistakes(most)
        if not places:
            raise KitaeError(f"{self._run.path}: has no mistake on {record.evaluation.where}")
        names = record.facts.classes
        return worst_mistakes(
            [samples.tested(place) for place in places],
            [names[found.predicted[place]] for place in places],
            [names[found.label[place]] for place in places],
            [float(found.confidence[place]) for place in places],
            title=f"Most confident mistakes, {record.evaluation.where}",
        )

    def _finished(self) -> RunRecord:
        self._run.require_finished()
        return RunRecord.open(self._run)


def training_curves(rows: Sequence[Epoch], best: int | None) -> Figure:
    """Loss, accuracy and learning rate over at least one epoch, as far as they are known, the epoch `best` marked."""
    epochs = [row.epoch for row in rows]
    shown = known_curves(rows)
    small = [name == "Learning rate" for name, _, _ in shown]
    figure = new_figure(height=0.7 + sum(1.5 if one else 2.5 for one in small), title="Training curves")
    ratios = [1.0 if one else 1.9 for one in small]
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for ax, (name, _, known) in zip(grid, shown, strict=True):
        shares = name == "Accuracy"
        dress(ax, heading=f"{name} (%)" if shares else name)
        ax.yaxis.set_major_formatter(FuncFormatter(percent if shares else number))
        for values, label, look in known:
            ax.plot(
                epochs,
                np.array(values, float),
                color=SERIES[look - 1],
                linewidth=1.8,
                label=label or None,
                marker="os^"[look - 1] if len(rows) <= 30 else None,
                markersize=4,
            )
        if best is not None:
            ax.axvline(best, color=INK, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        if shares:
            top = next((row.val_accuracy for row in rows if row.epoch == best), None)
            if top is not None:
                ax.plot([best], [top], "*", color=INK, markersize=12, zorder=5, clip_on=False)
        if name != "Learning rate":
            legend(ax)
    last = grid[-1]
    last.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
    if len(epochs) == 1:
        last.set_xlim(epochs[0] - 1, epochs[0] + 1)
    note = "" if best is None else f" (dashed: the best, {best})"
    last.set_xlabel("Epoch" + note, fontsize=LABEL, color=INK)
    return figure


def confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str], *, title: str = "Confusion matrix") -> Figure:
    """The confusion matrix; colour is the share of the true class (row), and cells show share and count if they fit.

    Args:
        counts: int [K, K], rows true, columns predicted. Up to 100 classes are named, beyond that numbered.
        classes: K names.
    """
    k = len(classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    cell = min(1.0, max(5.0 / k, 0.13 if k <= 100 else 13.0 / k))  # inches
    size = LABEL - 1 if k <= 12 else max(6.0, min(9.5, cell * 60))
    names = labels(classes, (1.3 if k <= 30 else 1.0) * DPI, size)
    if k > 100:
        names = [str(i) if i % (k // 50) == 0 else "" for i in range(k)]
    margin = max(text_width(name, size) for name in names) / DPI
    upright = margin > cell * 0.92
    left, bottom = margin + 0.5, (margin if upright else 0.2) + 0.5
    right, top = 0.25, 0.75
    side = cell * k
    width = max(WIDTH, left + side + right)
    left += (width - left - side - right) / 2
    height = bottom + side + top

    figure = new_figure(width, height, title, layout=None)
    figure.texts[0].set_y(1 - 0.1 / height)
    ax = figure.add_axes((left / width, bottom / height, side / width, side / height))
    dress(ax, grid="")
    import matplotlib

    # Square root, so that rare mistakes are seen; mistakes in another colour than hits.
    strength = np.sqrt(share)
    hits, mistakes = matplotlib.colormaps["Blues"](strength * 0.9), matplotlib.colormaps["Oranges"](strength * 0.9)
    colours = np.where(np.eye(k, dtype=bool)[..., None], hits, mistakes)
    colours[counts == 0] = 1.0
    ax.imshow(colours, interpolation="nearest", aspect="auto")
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(GRID)
    ax.tick_params(length=0, pad=3)
    ax.set_xticks(range(k), names, fontsize=size, rotation=90 if upright else 0)
    ax.set_yticks(range(k), names, fontsize=size)
    if k <= 30:
        ax.set_xticks(np.arange(k - 1) + 0.5, minor=True)
        ax.set_yticks(np.arange(k - 1) + 0.5, minor=True)
        ax.grid(True, which="minor", color=GRID, linewidth=0.6)
        ax.tick_params(which="minor", length=0)
    ax.set_xlabel("Predicted", fontsize=LABEL, color=INK)
    ax.set_ylabel("True", fontsize=LABEL, color=INK)
    subtitle = "Share of each true class: right in blue, wrong in orange"
    subtitle += "; %, and images below" if k <= 12 else " (%)" if k <= 20 else ""
    figure.text(0.012, 1 - 0.5 / height, subtitle, fontsize=SMALL, color=MUTED)
    for i, j in np.argwhere(counts) if k <= 20 else ():
        ink = PAPER if strength[i, j] > (0.72 if i == j else 0.85) else INK
        text = f"{100 * share[i, j]:.0f}" if share[i, j] >= 0.005 else "<1"
        if k <= 12:
            lines = [(i - 0.14, f"{text}%", min(11.0, cell * 21)), (i + 0.24, f"{counts[i, j]}", min(9.0, cell * 15))]
        else:
            lines = [(i, text, max(6.0, cell * 24))]
        for y, line, points in lines:
            ax.text(j, y, line, ha="center", va="center", fontsize=points, color=ink)
    return figure


def reliability(after: Bins, before: Bins | None, *, title: str) -> Figure:
    """Accuracy against confidence in bins, as bars and before the temperature as a line, above the sizes of the bins.

    Definition: Guo et al. 2017. The title gives the expected calibration error.
    """
    figure = new_figure(height=6.2, title=f"{title}: expected error {100 * after.error:.2f} %")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    dress(top, ylabel="Accuracy (%)", grid="both")
    top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    x, y, wide = after.centre, after.accuracy, 0.94 / BINS
    top.bar(x, y, width=wide, color=BLUE, alpha=0.85, label="accuracy, 95 % interval")
    top.errorbar(x, y, yerr=[y - after.low, after.high - y], fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    if before is not None:
        look = {"color": VERMILLION, "marker": "s", "markersize": 4, "linewidth": 1.4}
        top.plot(before.confidence, before.accuracy, label="before temperature", **look)
    legend(top, loc="lower left")
    top.set_xlim(0, 1)
    top.set_ylim(0, 1.02)
    from matplotlib.ticker import FuncFormatter

    for axis in (top.yaxis, top.xaxis, bottom.yaxis):
        axis.set_major_formatter(FuncFormatter(percent))
    dress(bottom, xlabel="Confidence (%)", ylabel="Images (%)")
    bottom.bar(x, after.images / after.images.sum(), width=wide, color=MUTED)
    return figure


def worst_mistakes(
    images: Sequence[Image],
    predicted: Sequence[str],
    true: Sequence[str],
    confidence: Sequence[float],
    *,
    title: str = "Most confident mistakes",
) -> Figure:
    """The most confident mistakes, each with the prediction, its confidence and the true class."""
    columns = 4
    room = int(WIDTH * DPI) / columns - 20 - text_width("said  100 %", SMALL)
    captions = [
        (f"said {fit(p, room, SMALL)} {100 * c:.0f} %", f"is {t}")
        for p, t, c in zip(predicted, true, confidence, strict=True)
    ]
    rows = [list(images[i : i + columns]) for i in range(0, len(images), columns)]
    lines = [captions[i : i + columns] for i in range(0, len(images), columns)]
    return grid_figure(rows, captions=lines, title=title, columns=columns)
