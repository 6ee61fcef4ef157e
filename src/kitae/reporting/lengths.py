"""When a technique helps: its effect against the length of the training, for the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kitae.reporting.style import INK, LABEL, MARKERS, PAPER, SERIES, SMALL, dress, legend, new_figure, number, save

_APART = 1.035  # neighbouring series are drawn side by side, so that their intervals can be told apart


def draw_lengths(curves: Sequence[Mapping[str, Any]], path: str | Path, *, title: str) -> Path:
    """Effects against epochs on a logarithmic axis: a line per technique with 95 % intervals, a panel per width.

    A point is filled if its effect is shown after Holm's correction.

    Args:
        curves: per technique its `name` and `points`, each a mapping of epochs, width (a number or None), estimate,
            low, high (points of accuracy) and shown.
    """
    widths = sorted({point["width"] for curve in curves for point in curve["points"]}, key=lambda w: (w is None, w))
    figure = new_figure(width=6.4 + 2.2 * (len(widths) - 1), height=4.4, title=title)
    lengths = [{p["epochs"] for c in curves for p in c["points"] if p["width"] == width} for width in widths]
    ratios = [1.0 + 0.5 * (len(found) - 1) for found in lengths]
    axes = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for ax, width, found in zip(axes, widths, lengths, strict=True):
        dress(ax, xlabel="Epochs" if len(widths) == 1 else f"Epochs, width {width}")
        ax.axhline(0.0, color=INK, linewidth=1.0, zorder=1)
        ax.set_xscale("log")
        for place, curve in enumerate(curves):
            points = sorted((p for p in curve["points"] if p["width"] == width), key=lambda p: float(p["epochs"]))
            if not points:
                continue
            colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            x = [p["epochs"] * _APART ** (place - (len(curves) - 1) / 2) for p in points]
            ax.plot(x, [p["estimate"] for p in points], color=colour, linewidth=1.6, zorder=2)
            ax.vlines(x, [p["low"] for p in points], [p["high"] for p in points], color=colour, linewidth=1.4, zorder=2)
            for at, p in zip(x, points, strict=True):
                face = colour if p["shown"] else PAPER
                ax.plot([at], [p["estimate"]], marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)
            ax.plot([], [], marker=marker, color=colour, markersize=6, label=curve["name"])
        ticks = sorted(found)
        ax.set_xticks(ticks, [number(tick) for tick in ticks])
        ax.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
        ax.minorticks_off()
    axes[0].set_ylabel("Effect on accuracy (points)", fontsize=LABEL, color=INK)
    legend(axes[0], columns=3, loc="lower left")
    note = "bars: 95 % intervals over seeds; filled: shown after Holm's correction"
    figure.supxlabel(note, x=0.012, ha="left", fontsize=SMALL - 1, color=INK)
    return save(figure, path)
