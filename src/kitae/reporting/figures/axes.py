"""What several figures need of their axes: ticks in per cent and bytes, intervals, bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kitae.reporting.style import INK, SMALL, Row, finite, percent, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def intervals(
    rows: Sequence[tuple[str, Row]], value: NDArray[np.float64], key: str = "accuracy_interval"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds; where a row has none, the value itself."""
    low, high = value.copy(), value.copy()
    for i, (_, row) in enumerate(rows):
        pair = row.get(key)
        if pair is not None and len(pair) == 2:
            a, b = finite(pair)
            low[i], high[i] = np.fmin(a, value[i]), np.fmax(b, value[i])
    return low, high


def percent_axis(ax: Axes, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(percent))


def bars(
    ax: Axes,
    rows: Sequence[Row],
    names: Sequence[str],
    key: str,
    interval: str,
    colour: str,
    say: Callable[[float, Row], str],
    *,
    dots: bool = False,
    colours: Sequence[str] | None = None,
) -> None:
    """Horizontal bars (or dots, whose axis need not start at 0) with intervals, what `say` makes of value and row
    written at the right."""
    values = np.array(finite(row.get(key) for row in rows))
    low, high = intervals([("", row) for row in rows], values, interval)
    y = np.arange(len(rows))
    ends = np.where(np.isfinite(high), high, 0.0)
    start = float(np.nanmin(low)) if dots else 0.0
    span = max(float(ends.max()) - start, 1e-12 if not dots else 0.01)
    if dots:
        ax.plot(values, y, "o", color=colour, markersize=7)
    else:
        ax.barh(y, np.nan_to_num(values), 0.66, color=list(colours) if colours else colour)
    known = high > low
    reach = [(values - low)[known], (high - values)[known]]
    ax.errorbar(values[known], y[known], xerr=reach, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    for i, value in enumerate(values):
        text = say(value, rows[i]) if math.isfinite(value) else "not measured"
        ax.text(
            ends[i] + span * 0.02 + (0 if math.isfinite(value) else start),
            i,
            text,
            va="center",
            fontsize=SMALL,
            color=INK,
        )
    ax.set_xlim(start - (0.08 * span if dots else 0), start + span * 1.28)
    ax.set_yticks(y, names)
    ax.set_ylim(len(rows) - 0.4, -0.6)


def size_axis(ax: Axes, sizes: NDArray[np.float64]) -> None:
    """A logarithmic axis of bytes with few round ticks."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = float(sizes.min()) / 1.25, float(sizes.max()) * 1.25
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [s * 10.0**e for e in range(13) for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 2:
        ticks = sorted({float(f"{t:.2g}") for t in np.linspace(low, high, 6)[1:-1]})
    if len(ticks) > 7:
        ticks = ticks[:: -(-len(ticks) // 7)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(size_text)
