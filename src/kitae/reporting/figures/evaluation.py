"""Figures of a split: confusion, calibration, mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from kitae.reporting.bins import confidence_bins, wilson_intervals
from kitae.reporting.figures.images import grid_figure
from kitae.reporting.style import (
    BLUE,
    DPI,
    GRID,
    INK,
    LABEL,
    MUTED,
    PAPER,
    SMALL,
    VERMILLION,
    WIDTH,
    Image,
    dress,
    fit,
    labels,
    legend,
    new_figure,
    percent,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_matrix(confusion: ArrayLike, classes: Sequence[str], *, title: str = "Confusion matrix") -> Figure:
    """The confusion matrix; colour is the share of the true class (row), and cells show share and count if they fit.

    Args:
        confusion: integer [K, K], rows true, columns predicted. Up to 100 classes are named, beyond that numbered.
        classes: K names.
    """
    counts = np.asarray(confusion)
    k = len(classes)
    if counts.shape != (k, k) or k == 0:
        raise ValueError(f"confusion is {counts.shape}, classes are {k}")
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.zeros(counts.shape, float), where=totals > 0)

    cell = min(1.0, max(5.0 / k, 0.13 if k <= 100 else 13.0 / k))  # inches
    size = LABEL - 1 if k <= 12 else max(6.0, min(9.5, cell * 60))
    names = labels(classes, (1.3 if k <= 30 else 1.0) * DPI, size)
    if k > 100:
        names = [str(i) if i % (k // 50) == 0 else "" for i in range(k)]
    margin = max(text_width(name, size) for name in names) / DPI
    upright = max(text_width(name, size) for name in names) / DPI > cell * 0.92
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
    if k <= 20:
        for i, j in np.ndindex(k, k):
            if counts[i, j] == 0:
                continue
            ink = PAPER if strength[i, j] > (0.72 if i == j else 0.85) else INK
            text = f"{100 * share[i, j]:.0f}" if share[i, j] >= 0.005 else "<1"
            if k <= 12:
                ax.text(j, i - 0.14, f"{text}%", ha="center", va="center", fontsize=min(11.0, cell * 21), color=ink)
                ax.text(
                    j, i + 0.24, f"{counts[i, j]}", ha="center", va="center", fontsize=min(9.0, cell * 15), color=ink
                )
            else:
                ax.text(j, i, text, ha="center", va="center", fontsize=max(6.0, cell * 24), color=ink)
    return figure


def reliability(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    before: ArrayLike | None = None,
    ece: float | None = None,
    bins: int = 15,
    title: str = "Calibration",
) -> Figure:
    """Accuracy against confidence in equal-width bins, and how many predictions each bin holds (Guo et al. 2017).

    Args:
        confidence: float [N] in [0, 1], the probability of the predicted class.
        correct: bool [N].
        before: float [N], the same before temperature scaling; drawn as a line.
        ece: expected calibration error; told in the title where given.
    """
    p, hit = np.asarray(confidence, float).ravel(), np.asarray(correct, bool).ravel()
    if p.shape != hit.shape or p.size == 0:
        raise ValueError(f"confidence is {p.shape}, correct is {hit.shape}")
    if ece is not None:
        title = f"{title}: expected error {100 * ece:.2f} %"
    figure = new_figure(height=6.2, title=title)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    edges = np.linspace(0, 1, bins + 1)
    centre, _, accuracy, count = confidence_bins(p, hit, edges)
    filled = count > 0
    low, high = wilson_intervals(accuracy[filled], count[filled])

    dress(top, ylabel="Accuracy (%)", grid="both")
    top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    top.bar(
        centre[filled], accuracy[filled], width=0.94 / bins, color=BLUE, alpha=0.85, label="accuracy, 95 % interval"
    )
    top.errorbar(
        centre[filled],
        accuracy[filled],
        yerr=[accuracy[filled] - low, high - accuracy[filled]],
        fmt="none",
        ecolor=INK,
        elinewidth=1,
        capsize=2,
    )
    if before is not None:
        _, mean_before, accuracy_before, count_before = confidence_bins(np.asarray(before, float).ravel(), hit, edges)
        there = count_before > 0
        top.plot(
            mean_before[there],
            accuracy_before[there],
            color=VERMILLION,
            marker="s",
            markersize=4,
            linewidth=1.4,
            label="before temperature",
        )
    legend(top, loc="lower left")
    top.set_xlim(0, 1)
    top.set_ylim(0, 1.02)
    from matplotlib.ticker import FuncFormatter

    for axis in (top.yaxis, top.xaxis, bottom.yaxis):
        axis.set_major_formatter(FuncFormatter(percent))
    dress(bottom, xlabel="Confidence (%)", ylabel="Images (%)")
    bottom.bar(centre, count / count.sum(), width=0.94 / bins, color=MUTED)
    return figure


def worst_mistakes(
    images: Sequence[Image],
    predicted: Sequence[str],
    true: Sequence[str],
    confidence: Sequence[float],
    *,
    columns: int = 4,
    title: str = "Most confident mistakes",
) -> Figure:
    """The most confident mistakes, each with the prediction, its confidence and the true class."""
    if not len(images) == len(predicted) == len(true) == len(confidence) or not len(images):
        raise ValueError("images, predicted, true and confidence must be as many, and at least one")
    room = int(WIDTH * DPI) / columns - 20 - text_width("said  100 %", SMALL)
    captions = [
        (f"said {fit(p, room, SMALL)} {100 * c:.0f} %", f"is {t}")
        for p, t, c in zip(predicted, true, confidence, strict=True)
    ]
    rows = [list(images[i : i + columns]) for i in range(0, len(images), columns)]
    lines = [captions[i : i + columns] for i in range(0, len(images), columns)]
    return grid_figure(rows, None, None, captions=lines, title=title, columns=columns)
