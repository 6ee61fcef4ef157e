"""Draw what pages about augmentation and techniques show: docs/images/*.png, but for ledger-when.png, and curves.svg.

    python scripts/doc_pictures.py

The pictures of augmentation are those of `kitae show augment`; those of results come from the studies and benchmarks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from axes import BLUE, GRID, ORANGE, dress, legend, percent
from kitae.cli.research import augment
from kitae.models.layers import linear_rates
from kitae.reporting import charts
from kitae.reporting.results import Epoch
from kitae.reporting.style import INK, LABEL, SMALL, new_figure, save

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
PHOTOS = "photos-mini"  # in colour
RUN = ROOT / "benchmarks" / "results" / "cifar10-strong-18-epochs"  # a cosine with a warm-up


def percent_axis(ax: Axes, which: str) -> None:
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(percent))


def draw_label_smoothing(path: Path, classes: int = 10, smoothing: float = 0.1) -> Path:
    """The two target distributions, and the loss each gives as the model grows surer of the true class.

    The smoothed target is 1 - eps + eps/K for the true class and eps/K elsewhere (Szegedy et al. 2016, as torch does).
    """
    k, eps = classes, smoothing
    true = k // 3
    hard = np.eye(k)[true]
    smooth = (1 - eps) * hard + eps / k
    figure = new_figure(height=6.4, title="Hard against smoothed labels")
    top, bottom = figure.subplots(2, 1)

    dress(top, heading="Target (%)")
    x = np.arange(k)
    top.bar(x - 0.2, hard, 0.38, color=ORANGE, label="hard")
    top.bar(x + 0.2, smooth, 0.38, color=BLUE, label=f"smoothed, ε = {eps:g}")
    top.set_ylim(0, 1.12)
    for i in range(k):
        top.text(i + 0.2, smooth[i] + 0.015, f"{100 * smooth[i]:.3g}", ha="center", fontsize=SMALL, color=INK)
    top.set_xticks(x, [str(i) for i in range(k)])
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


def draw_stochastic_depth(path: Path, survival: Sequence[float]) -> Path:
    """Survival probability of each residual block in training, first to last (Huang et al. 2016)."""
    n = len(survival)
    figure = new_figure(height=3.8, title="Stochastic depth: how often each block is kept")
    ax = dress(figure.subplots(), xlabel="Residual block", ylabel="Kept (%)")
    x = np.arange(1, n + 1)
    ax.bar(x, survival, 0.78, color=BLUE, label=f"on average {sum(survival):.3g} of {n} blocks")
    ax.bar(x, [1 - s for s in survival], 0.78, bottom=list(survival), color=GRID, label="skipped")
    ax.set_ylim(0, 1.12)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14))
    ax.set_xlim(0.4, n + 0.6)
    ax.yaxis.set_major_formatter(percent)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    legend(ax, loc="lower left")
    return save(figure, path)


def draw_curves(path: Path, run: Path) -> Path:
    """Loss, accuracy and learning rate of a published run, as its page shows them."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text(charts.curves([Epoch.model_validate(json.loads(line)) for line in lines], None).file())
    return path


def draw(folder: Path) -> list[Path]:
    """The pictures of definitions, and curves, into a folder."""
    return [
        draw_label_smoothing(folder / "label-smoothing.png"),
        draw_stochastic_depth(folder / "stochastic-depth.png", [1 - rate for rate in linear_rates(0.2, 27)]),
        draw_curves(folder / "curves.svg", RUN),
    ]


if __name__ == "__main__":
    augment(PHOTOS, out=IMAGES)
    for file in draw(IMAGES):
        print(file)
