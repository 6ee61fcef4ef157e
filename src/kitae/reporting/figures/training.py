"""Training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kitae.reporting.style import (
    BLUE,
    GREEN,
    INK,
    LABEL,
    SKY,
    VERMILLION,
    Row,
    dress,
    finite,
    legend,
    new_figure,
    number,
    percent,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(rows: Sequence[Row], *, best_epoch: int | None = None, title: str = "Training curves") -> Figure:
    """Loss, accuracy and learning rate over the epochs, the best epoch marked.

    Args:
        rows: the lines of metrics.jsonl, at least one; whatever a line lacks is left out.
        best_epoch: a value of `epoch` in `rows`; None takes the highest val_accuracy.
    """
    if not rows:
        raise ValueError("no epoch to draw")
    epochs = finite(row.get("epoch", i + 1) for i, row in enumerate(rows))
    series = {key: finite(row.get(key) for row in rows) for key in {key for row in rows for key in row}}
    if best_epoch is None and np.isfinite(series.get("val_accuracy", [math.nan])).any():
        best_epoch = int(epochs[int(np.nanargmax(series["val_accuracy"]))])

    panels: list[tuple[str, list[tuple[str, str, str, str]]]] = [
        ("Loss", [("train_loss", "train", BLUE, "o"), ("val_loss", "validation", VERMILLION, "s")]),
        (
            "Accuracy (%)",
            [
                ("train_accuracy", "train", BLUE, "o"),
                ("train_clean_accuracy", "train, not augmented", SKY, "^"),
                ("val_accuracy", "validation", VERMILLION, "s"),
            ],
        ),
        ("Learning rate", [("learning_rate", "", GREEN, "o")]),
    ]
    shown = [
        (name, lines) for name, lines in panels if any(np.isfinite(series.get(k, [math.nan])).any() for k, *_ in lines)
    ]
    if not shown:
        raise ValueError("the rows hold neither loss nor accuracy nor learning rate")

    figure = new_figure(height=0.7 + sum(1.5 if name == "Learning rate" else 2.5 for name, _ in shown), title=title)
    ratios = [1.0 if name == "Learning rate" else 1.9 for name, _ in shown]
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for ax, (name, lines) in zip(grid, shown, strict=True):
        dress(ax, heading=name)
        for key, label, colour, marker in lines:
            values = series.get(key)
            if values is None or not np.isfinite(values).any():
                continue
            ax.plot(
                epochs,
                values,
                color=colour,
                linewidth=1.8,
                label=label or None,
                marker=marker if len(rows) <= 30 else None,
                markersize=4,
            )
        if best_epoch is not None:
            ax.axvline(best_epoch, color=INK, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        if name == "Accuracy (%)":
            ax.yaxis.set_major_formatter(FuncFormatter(percent))
            at = epochs.index(best_epoch) if best_epoch in epochs else None
            best = series.get("val_accuracy", [])[at] if at is not None and "val_accuracy" in series else math.nan
            if at is not None and math.isfinite(best):
                ax.plot([epochs[at]], [best], "*", color=INK, markersize=12, zorder=5, clip_on=False)
        else:
            ax.yaxis.set_major_formatter(FuncFormatter(number))
        if name != "Learning rate":
            legend(ax)
    last = grid[-1]
    last.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
    if len(epochs) == 1:
        last.set_xlim(epochs[0] - 1, epochs[0] + 1)
    note = ""
    if best_epoch is not None:
        note = f"  (dashed: best epoch {best_epoch})"
    last.set_xlabel("Epoch" + note, fontsize=LABEL, color=INK)
    return figure
