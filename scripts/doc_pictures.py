"""Draw what technique pages define: docs/images/label-smoothing.png and stochastic-depth.png.

    python scripts/doc_pictures.py

The pictures of augmentation come from `kitae show augment`, those of results from the studies and benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kitae.models.layers import linear_rates
from kitae.reporting.style import (
    BLUE,
    DPI,
    GRID,
    INK,
    LABEL,
    ORANGE,
    SMALL,
    VERMILLION,
    dress,
    labels,
    legend,
    new_figure,
    percent,
    save,
    text_width,
)  # fmt: skip

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def percent_axis(ax: Axes, which: str) -> None:
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(percent))


def draw_label_smoothing(
    path: str | Path,
    *,
    classes: int = 10,
    smoothing: float = 0.1,
    names: Sequence[str] | None = None,
    title: str = "Hard against smoothed labels",
) -> Path:
    """The two target distributions, and the loss each gives as the model grows surer of the true class.

    The smoothed target is 1 - eps + eps/K for the true class and eps/K elsewhere (Szegedy et al. 2016, as torch does).
    Args:
        classes: K >= 2. names: K names for the first panel.
        smoothing: eps in (0, 1).
    """
    k, eps = classes, smoothing
    if k < 2 or not 0 < eps < 1 or (names is not None and len(names) != k):
        raise ValueError("at least 2 classes, as many names, and smoothing in (0, 1)")
    true = k // 3
    hard = np.eye(k)[true]
    smooth = (1 - eps) * hard + eps / k
    figure = new_figure(height=6.4, title=title)
    top, bottom = figure.subplots(2, 1)

    dress(top, heading="Target (%)")
    x = np.arange(k)
    top.bar(x - 0.2, hard, 0.38, color=ORANGE, label="hard")
    top.bar(x + 0.2, smooth, 0.38, color=BLUE, label=f"smoothed, ε = {eps:g}")
    top.set_ylim(0, 1.12)
    if k <= 12:
        for i in range(k):
            size = SMALL if k <= 10 else 8
            top.text(i + 0.2, smooth[i] + 0.015, f"{100 * smooth[i]:.3g}", ha="center", fontsize=size, color=INK)
    shown = labels(names, 0.9 * DPI, LABEL - 1) if names is not None else [str(i) for i in range(k)]
    slot = 5.4 / k * DPI
    upright = max(text_width(n, LABEL - 1) for n in shown) > slot * 0.9
    step = max(1, -(-k // 14))
    top.set_xticks(x[::step], shown[::step], rotation=90 if upright and names is not None else 0)
    if names is None:
        top.set_xlabel(f"Class (true: {true})", fontsize=LABEL, color=INK)
    percent_axis(top, "y")
    legend(top)

    dress(bottom, heading="Loss", xlabel="Probability the model gives the true class (%, rest shared evenly)")
    p = np.concatenate([np.linspace(0.02, 0.98, 97), 1 - np.logspace(-1.7, -14, 300)])
    other = np.log((1 - p) / (k - 1))
    for target, colour, style, name in ((hard, ORANGE, "-", "hard"), (smooth, BLUE, "-", "smoothed")):
        mass = target[true]
        loss = -(mass * np.log(p) + (1 - mass) * other)
        bottom.plot(p, loss, style, color=colour, linewidth=2, label=name)
    best = 1 - eps + eps / k
    least = -(best * math.log(best) + (1 - best) * math.log((1 - best) / (k - 1)))
    bottom.plot([best], [least], "o", color=INK, markersize=6, zorder=5, label=f"least at {100 * best:.3g} %")
    bottom.set_xlim(0, 1.01)
    bottom.set_ylim(0, 3)
    percent_axis(bottom, "x")
    legend(bottom)
    return save(figure, path)


def draw_stochastic_depth(
    survival: Sequence[float],
    path: str | Path,
    *,
    observed: Sequence[float] | None = None,
    title: str = "Stochastic depth: how often each block is kept",
) -> Path:
    """Survival probability of each residual block in training, first to last (Huang et al. 2016).

    Args:
        survival: in [0, 1], one a block. observed: shares counted in training, drawn as points.
    """
    if not len(survival):
        raise ValueError("no block to draw")
    n = len(survival)
    figure = new_figure(height=3.8, title=title)
    ax = dress(figure.subplots(), xlabel="Residual block", ylabel="Kept (%)")
    x = np.arange(1, n + 1)
    ax.bar(x, survival, 0.78, color=BLUE, label=f"on average {sum(survival):.3g} of {n} blocks")
    ax.bar(x, [1 - s for s in survival], 0.78, bottom=list(survival), color=GRID, label="skipped")
    if observed is not None:
        ax.plot(x, observed, "s", color=VERMILLION, markersize=6, label="observed")
    ax.set_ylim(0, 1.12)
    if n <= 12:
        for i, s in enumerate(survival):
            ax.text(i + 1, 1.04, f"{100 * s:.3g}", ha="center", fontsize=SMALL, color=INK)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    ax.set_xlim(0.4, n + 0.6)
    ax.yaxis.set_major_formatter(percent)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    legend(ax, loc="lower left")
    return save(figure, path)


def draw(folder: Path) -> list[Path]:
    """Both pictures, into a folder."""
    return [
        draw_label_smoothing(folder / "label-smoothing.png", classes=10, smoothing=0.1),
        draw_stochastic_depth([1 - rate for rate in linear_rates(0.2, 27)], folder / "stochastic-depth.png"),
    ]


if __name__ == "__main__":
    for file in draw(IMAGES):
        print(file)
