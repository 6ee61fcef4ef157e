"""What was won and lost by pruning and quantizing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from kitae.reporting.figures.axes import bars, intervals, percent_axis, size_axis
from kitae.reporting.figures.images import paste
from kitae.reporting.style import (
    BLUE,
    DPI,
    INK,
    LABEL,
    MARKERS,
    MUTED,
    ORANGE,
    PAPER,
    SERIES,
    SMALL,
    VERMILLION,
    WIDTH,
    Row,
    dress,
    finite,
    fit,
    labels,
    legend,
    new_figure,
    number,
    save,
    size_text,
)


def draw_sparsity(
    curves: Mapping[str, Sequence[Row]],
    path: str | Path,
    *,
    baseline: float | None = None,
    xlabel: str = "Parameters removed (%)",
    title: str = "Accuracy against sparsity",
) -> Path:
    """Accuracy of each way of pruning over the share of parameters removed.

    Args:
        curves: name -> rows {sparsity, accuracy, accuracy_interval (optional)}.
        baseline: accuracy of the unpruned model.
    """
    if not any(len(rows) for rows in curves.values()):
        raise ValueError("no curve to draw")
    figure = new_figure(height=4.4, title=title)
    ax = dress(figure.subplots(), xlabel=xlabel, ylabel="Accuracy (%)", grid="both")
    if baseline is not None:
        ax.axhline(baseline, color=INK, linewidth=1, linestyle=(0, (3, 3)), label=f"unpruned {100 * baseline:.1f} %")
    for i, (name, rows) in enumerate(curves.items()):
        ordered = sorted(rows, key=lambda row: finite([row.get("sparsity")])[0])
        x = finite(row.get("sparsity") for row in ordered)
        y = np.array(finite(row.get("accuracy") for row in ordered))
        low, high = intervals([("", row) for row in ordered], y)
        colour = SERIES[i % len(SERIES)]
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(x, y, color=colour, marker=MARKERS[i % len(MARKERS)], markersize=6, linewidth=1.8,
                label=fit(name, 2.0 * DPI, SMALL))  # fmt: skip
    percent_axis(ax, "x")
    percent_axis(ax, "y")
    legend(ax, columns=2, loc="lower left")
    return save(figure, path)


def draw_filter_masks(
    masks: ArrayLike,
    path: str | Path,
    *,
    weights: ArrayLike | None = None,
    limit: int = 64,
    title: str = "Filters of the first layer",
) -> Path:
    """The first filters and what pruning took from them.

    Args:
        masks: bool [O, C, h, w], true where a weight is kept.
        weights: float [O, C, h, w]; kept weights are coloured by their value. One tile a channel.
    """
    kept = np.asarray(masks, bool)
    if kept.ndim != 4 or kept.size == 0:
        raise ValueError(f"masks must be [O, C, h, w], not {kept.shape}")
    values = np.ones(kept.shape) if weights is None else np.nan_to_num(np.asarray(weights, float))
    if values.shape != kept.shape:
        raise ValueError(f"weights are {values.shape}, masks {kept.shape}")
    share = 1 - kept.mean()
    total, channels, h, w = kept.shape
    kept, values = kept[:limit, :3], values[:limit, :3]
    o, c = kept.shape[:2]
    bound = np.abs(values[kept]).max(initial=1e-12)
    import matplotlib

    colours = matplotlib.colormaps["RdBu"](values / bound * 0.45 + 0.5)[..., :3]
    if weights is None:
        colours = np.broadcast_to(np.array([0x00, 0x72, 0xB2]) / 255.0, (*kept.shape, 3)).copy()
    colours[~kept] = np.array([0x3A, 0x3F, 0x44]) / 255.0
    # One picture cell by cell: c tiles of h x w a filter, one blank cell between tiles, two between filters.
    tile_w, tile_h = c * w + (c - 1), h
    columns = min(o, max(4, min(12, int(WIDTH * DPI) // ((tile_w + 2) * 12))))
    lines = -(-o // columns)
    canvas = np.ones((lines * (tile_h + 2) - 2, columns * (tile_w + 2) - 2, 3))
    for i in range(o):
        y, x = i // columns * (tile_h + 2), i % columns * (tile_w + 2)
        for j in range(c):
            canvas[y : y + h, x + j * (w + 1) : x + j * (w + 1) + w] = colours[i, j]
    scale = max(1, (int(WIDTH * DPI) - 24) // canvas.shape[1])
    scale = min(scale, 28)
    pixels = (canvas.repeat(scale, 0).repeat(scale, 1) * 255).round().astype(np.uint8)
    told = f"{100 * share:.1f} % of the weights removed (dark)"
    if weights is not None:
        told += "; kept ones: blue positive, red negative, white near 0"
    if (o, c) != (total, channels):
        told += f"; {o} of {total} filters, {c} of {channels} channels shown"
    return paste(pixels, path, title=title, note=told)


def draw_pareto(
    points: Sequence[Row],
    path: str | Path,
    *,
    budget: float | None = None,
    winner: str | None = None,
    baseline: str | None = None,
    called: str = "winner",
    size_label: str = "Size of the file",
    title: str = "Smaller against more accurate",
) -> Path:
    """Every candidate by size and accuracy, coloured by latency; the front, the budget and the winner are marked.

    Args:
        points: {name, bytes, accuracy} and, where measured, latency_ms; the front is computed from bytes and accuracy.
            Those with a true `control` cannot be chosen: they are diamonds, and no part of the front.
        budget: the lowest accuracy allowed.
        winner, baseline: a `name` of `points`.
        called: what the legend calls the winner.
    """
    size = np.array(finite(point.get("bytes") for point in points))
    accuracy = np.array(finite(point.get("accuracy") for point in points))
    latency = np.array(finite(point.get("latency_ms") for point in points))
    there = np.isfinite(size) & np.isfinite(accuracy) & (size > 0)
    if not there.any():
        raise ValueError("no point with bytes and accuracy")
    control = np.array([bool(point.get("control")) for point in points])
    names = [str(point.get("name", i)) for i, point in enumerate(points)]
    order = [int(i) for i in np.lexsort((-accuracy, size)) if there[i]]
    front: list[int] = []
    for i in order:
        if not control[i] and (not front or accuracy[i] > accuracy[front[-1]]):
            front.append(i)

    figure = new_figure(height=5.4, title=title)
    ax = dress(figure.subplots(), xlabel=size_label, ylabel="Accuracy (%)", grid="both")
    if budget is not None:
        ax.axhline(budget, color=VERMILLION, linewidth=1.4, linestyle=(0, (4, 3)), label=f"budget {100 * budget:.2f} %")
        ax.axhspan(-1, budget, color=VERMILLION, alpha=0.06, linewidth=0)
    ax.step(size[front], accuracy[front], where="post", color=MUTED, linewidth=1.4, label="front", zorder=2)
    timed = there & np.isfinite(latency)
    if timed.any():
        scale = {"vmin": latency[timed].min(), "vmax": latency[timed].max()}  # one for dots and diamonds
        for some, marker in ((timed & ~control, "o"), (timed & control, "D")):
            if some.any():
                dots = ax.scatter(size[some], accuracy[some], c=latency[some], cmap="viridis", s=54, marker=marker,
                                  edgecolors=INK, linewidths=0.6, zorder=3,
                                  label="control" if marker == "D" else None, **scale)  # fmt: skip
        bar = figure.colorbar(dots, ax=ax, orientation="horizontal", fraction=0.05, aspect=40, pad=0.03)
        bar.set_label("Latency (ms)", fontsize=LABEL, color=INK)
        bar.ax.tick_params(labelsize=LABEL - 1, colors=MUTED, labelcolor=INK)
        bar.ax.xaxis.set_major_formatter(number)
        bar.outline.set_visible(False)
    rest = there & ~timed
    if rest.any():
        ax.scatter(size[rest], accuracy[rest], c=PAPER, s=54, edgecolors=INK, linewidths=1, zorder=3,
                   label="latency not measured" if timed.any() else None)  # fmt: skip
    for chosen, marker, colour, what in ((baseline, "s", INK, "original"), (winner, "*", ORANGE, called)):
        if chosen is None or chosen not in names or not there[names.index(chosen)]:
            continue
        i = names.index(chosen)
        label = f"{what}: {fit(chosen, 1.7 * DPI, SMALL)}, {size_text(size[i])}"
        filled = marker == "*"
        ax.scatter(
            [size[i]],
            [accuracy[i]],
            marker=marker,
            s=330 if filled else 130,
            facecolors=colour if filled else "none",
            edgecolors=INK,
            linewidths=1.4,
            zorder=4,
            label=label,
        )
    low, high = float(accuracy[there].min()), float(accuracy[there].max())
    if budget is not None:
        low, high = min(low, budget), max(high, budget)
    room = max((high - low) * 0.08, 0.002)
    ax.set_ylim(low - room, high + room)
    size_axis(ax, size[there])
    percent_axis(ax, "y")
    legend(ax, columns=2, loc="lower left", markers=0.55)
    return save(figure, path)


def draw_compression(
    rows: Sequence[Row],
    path: str | Path,
    *,
    baseline: Row,
    winner: Row,
    max_drop: float | None,
    size: str = "bytes",
    within_budget: bool = True,
) -> Path:
    """The Pareto picture of a compression's candidates, as compression.json has them.

    Args:
        max_drop: points of accuracy that the budget allows to be lost.
        size: the column by which small was judged.
        within_budget: otherwise `winner` is called the closest.
    """
    known = max_drop is not None and baseline.get("accuracy") is not None
    return draw_pareto(
        [{**row, "bytes": row.get(size)} for row in rows],
        path,
        budget=baseline["accuracy"] - max_drop / 100 if known and max_drop is not None else None,
        winner=str(winner.get("name")),
        baseline=str(baseline.get("name")),
        called="winner" if within_budget else "closest",
        size_label="Size of the file, packed" if size == "packed_bytes" else "Size of the file",
    )


def draw_latency(
    rows: Sequence[Row],
    path: str | Path,
    *,
    control: float | None = None,
    title: str = "Latency on this machine",
) -> Path:
    """Median milliseconds of each model, with its interval, and how many times faster than the first one it is.

    Args:
        rows: {name, milliseconds} and, where known, milliseconds_interval ([low, high]) and speedup against the first
            row (as it was measured, in turns; the medians' own ratio may differ from it).
        control: ratio of two timings of one and the same model (A/A), told below the bars.
    """
    if not rows:
        raise ValueError("no row to draw")
    names = labels([row.get("name", i) for i, row in enumerate(rows)], 1.8 * DPI, LABEL - 1)

    def say(value: float, row: Row) -> str:
        ratio = finite([row.get("speedup")])[0]
        return f"{value:.3g} ms" + (f"  ({ratio:.1f}×)" if math.isfinite(ratio) and row is not rows[0] else "")

    xlabel = "Milliseconds, less is better"
    if control is not None:
        xlabel += f"\n(control: the same model twice, {control:.3f}×)"
    figure = new_figure(height=1.5 + 0.42 * len(rows), title=title)
    ax = figure.subplots()
    colours = [MUTED] + [BLUE] * (len(rows) - 1)
    bars(ax, rows, names, "milliseconds", "milliseconds_interval", BLUE, say, colours=colours)
    dress(ax, xlabel=xlabel, grid="x")
    ax.xaxis.set_major_formatter(number)
    return save(figure, path)
