"""Axes of the figures that scripts and benchmarks draw, in the style of the package's own figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes

from kitae.reporting.style import INK, LABEL, MUTED, PAPER, SMALL, fit

GRID = "#e3e7eb"
# Okabe and Ito's palette (2008), told apart under every common colour vision. Yellow is left out: too pale on white.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)


def dress(ax: Axes, *, xlabel: str = "", ylabel: str = "", heading: str = "", grid: str = "y") -> Axes:
    """Give axes the house look: two spines, quiet grid (`x`, `y`, `both` or empty), labelled axes."""
    ax.set_facecolor(PAPER)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
        spine.set_linewidth(0.8)
    ax.tick_params(labelsize=LABEL - 1, colors=MUTED, labelcolor=INK, width=0.8, length=3)
    ax.set_axisbelow(True)
    ax.grid(False)
    if grid:
        ax.grid(True, axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    if xlabel:
        ax.set_xlabel(xlabel, fontsize=LABEL, color=INK)
    if ylabel:
        ax.set_ylabel(ylabel, fontsize=LABEL, color=INK)
    if heading:
        ax.set_title(heading, loc="left", fontsize=LABEL, fontweight="bold", color=INK, pad=6)
    return ax


def legend(ax: Axes, *, columns: int = 3, loc: Literal["lower left", "lower right"] = "lower right") -> None:
    """A legend above the axes, where it can cover no data."""
    ax.legend(
        loc=loc,
        bbox_to_anchor=(1.0 if "right" in loc else 0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def labels(names: Sequence[object], width: float, size: float) -> list[str]:
    """Names shortened to `width` pixels and still different from each other (else numbered)."""
    short = [fit(name, width, size) for name in names]
    return [
        s if short.count(s) == 1 and s.strip("□… ") else fit(f"{i}: {name}", width, size)
        for i, (s, name) in enumerate(zip(short, names, strict=True))
    ]


def percent(value: float, _: object = None) -> str:
    """A proportion as a tick label."""
    return f"{100 * value:.6g}"


def number(value: float, _: object = None) -> str:
    """A plain number as a tick label, without mathtext."""
    return f"{value:.6g}"
