"""Charts of a run for pages: curves, classes, confusion, calibration, time. Every function returns a Chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from kitae.console import duration, plural
from kitae.evaluation.calibration import BINS
from kitae.reporting.results import Bins, Epoch, Split
from kitae.reporting.svg import (
    LINE,
    WIDTH,
    Chart,
    Form,
    Plot,
    Row,
    Scale,
    fit,
    frame,
    interval_mark,
    legend,
    rows_chart,
    series,
    spread,
    text_width,
)
from kitae.reporting.values import between, large, share

MAX_ROWS = 15  # of a chart; a table beside it has them all
MAX_CONFUSION = 200  # classes
_LEFT, _RIGHT = 46.0, 118.0  # beside curves: ticks, and final values


def per_cent(value: float) -> str:
    """A proportion as a tick."""
    return f"{100 * value:.6g} %"


# ----------------------------------------------------------------------------------------------------------- training


_CURVES: tuple[tuple[str, Form, tuple[tuple[str, str, int], ...]], ...] = (
    ("Loss", "{:.3g}".format, (("train_loss", "train", 1), ("val_loss", "validation", 2))),
    ("Accuracy", share, (("train_accuracy", "train", 1), ("train_clean_accuracy", "clean", 3),
                         ("val_accuracy", "validation", 2))),
    ("Learning rate", "{:.2g}".format, (("learning_rate", "", 3),)),
)  # fmt: skip
"""Heading, form of a value, lines: a field of Epoch, its label and series."""


def curves(rows: Sequence[Epoch], best: int | None) -> Chart:
    """Loss, accuracy and learning rate over the epochs; final values at the lines, the best epoch dashed."""
    panels = []
    for name, form, lines in _CURVES:
        drawn = [(*_points(rows, key), label, look) for key, label, look in lines]
        if known := [line for line in drawn if any(value is not None for value in line[1])]:
            panels.append((name, form, known))
    heights = [66.0 if name == "Learning rate" else 130.0 for name, _, _ in panels]
    last, chosen = rows[-1], next((row for row in rows if row.epoch == best), None)
    summary = f"{plural(last.epoch, 'epoch')}."
    if chosen is not None and chosen.val_accuracy is not None:
        summary += f" Best epoch {best}: {share(chosen.val_accuracy)} on validation."
    if last.train_loss is not None and last.val_loss is not None:
        summary += f" Loss at the end: {last.train_loss:.3g} in training, {last.val_loss:.3g} on validation."
    chart = Chart("curves", "Training curves", summary, sum(heights) + 44 * len(panels) + 34)
    top, ends = 24.0, (float(rows[0].epoch), float(last.epoch))
    span = ends if ends[0] < ends[1] else (ends[0] - 1, ends[0] + 1)
    below = "Epoch" + (f" (dashed: the best, {best})" if chosen is not None else "")
    for (name, form, known), height in zip(panels, heights, strict=True):
        every = [[value for value in values if value is not None] for _, values, _, _ in known]
        late = [value for values in every for value in values[len(values) // 4 :]]  # early ones may be cut
        low, high, cut = robust([value for values in every for value in values], late, form)
        if name == "Learning rate":
            low = min(low, 0.0)
        x = Scale(*span, _LEFT, WIDTH - _RIGHT)
        plot = Plot(chart, x, Scale(low, high, top + height, top))
        chart.text(_LEFT, top - 8, name + cut, "h")
        y_form: Form = per_cent if form is share else "{:.3g}".format
        plot.axes(below if name == panels[-1][0] else "", "{:g}".format, y_form, x_ticks=x.whole(5))
        if chosen is not None:
            chart.line(x(chosen.epoch), top, x(chosen.epoch), top + height, "d")
        for xs, values, _, look in known:
            plot.line(xs, values, f"s{look}")
            if len(rows) <= 30:
                for at, value in zip(xs, values, strict=True):
                    if value is not None:
                        chart.circle(x(at), plot.y(value), 2.4, f"f{look}")
        final = [(value, label, look) for _, values, label, look in known if (value := values[-1]) is not None]
        places = spread([plot.y(value) + 4 for value, _, _ in final], LINE - 2, top + 6, top + height + 2)
        for (value, label, look), y in zip(final, places, strict=True):
            chart.text(WIDTH - _RIGHT + 8, y, f"{form(value)} {label}".strip(), f"c{look}", width=_RIGHT - 8)
        top += height + 44
    return chart


def _points(rows: Sequence[Epoch], key: str) -> tuple[list[float], list[float | None]]:
    """Epochs and values of a field of the metrics; of a score only the epochs that were validated."""
    shown = [row for row in rows if row.validated or key in ("train_loss", "train_accuracy", "learning_rate")]
    return [float(row.epoch) for row in shown], [getattr(row, key) for row in shown]


def robust(
    values: Sequence[float], keep: Sequence[float] = (), form: Callable[[float], str] = "{:.3g}".format
) -> tuple[float, float, str]:
    """Ends of an axis that a few values cannot stretch (Tukey's fences, four times the quartiles' distance).

    Args:
        keep: of the values, those that are inside whatever they are.
        form: a value as text, for the note.

    Returns:
        low, high, and a note where something is cut off.
    """
    array = np.asarray(values, float)
    low, high = float(array.min()), float(array.max())
    first, third = np.quantile(array, [0.25, 0.75])
    reach = 4 * float(third - first)
    cut = ""
    if len(array) >= 8 and reach > 0:
        top, bottom = max([float(third + reach), *keep]), min([float(first - reach), *keep])
        if high > top:
            cut, high = f" (up to {form(high)}, cut off)", top
        if low < bottom:
            cut, low = f" (from {form(low)}, cut off)", bottom
    room = 0.06 * (high - low) or abs(high) * 0.1 or 0.1
    return (max(0.0, low - room) if low >= 0 else low - room), high + room, cut


def time_spent(rows: Sequence[Epoch]) -> Chart | None:
    """One bar of the seconds that each part took, and a line for each; None before an epoch has ended."""
    waited = sum(row.seconds * row.data_share for row in rows)
    steps = sum(row.seconds for row in rows) - waited
    validation = sum(row.validation_seconds or 0.0 for row in rows)
    parts = [("training steps", steps), ("data: reading and augmenting", waited), ("validation", validation)]
    parts = [part for part in parts if part[1] > 0]
    if not parts:
        return None
    total = sum(seconds for _, seconds in parts)
    summary = ", ".join(f"{name} {share(seconds / total)}" for name, seconds in parts)
    chart = Chart("time", "Where the time went", f"{duration(total)}: {summary}.", 0)
    x = 10.0
    for place, (name, seconds) in enumerate(parts):
        width = (WIDTH - 20) * seconds / total
        chart.rect(x, 6, width, 24, f"f{place + 1}", f"{name}: {share(seconds / total)}")
        x += width
    y = 50.0
    for place, (name, seconds) in enumerate(parts):
        chart.rect(10, y - 10, 11, 11, f"f{place + 1}")
        chart.text(28, y, name, "l")
        exact = f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
        chart.text(WIDTH - 10, y, f"{exact}, {share(seconds / total)}", "v", anchor="end")
        y += LINE + 2
    chart.height = y - 4
    return chart


def class_counts(names: Sequence[str], counts: Mapping[str, Sequence[int]]) -> Chart:
    """Images of each class, split by split; of many classes those with the fewest and the most."""
    totals = [sum(of) for of in zip(*counts.values(), strict=True)]
    order = sorted(range(len(names)), key=lambda k: -totals[k])
    if len(order) > MAX_ROWS:
        order = [*order[:5], *order[5 - MAX_ROWS :]]
    most = max(max(totals), 1)

    def bar(parts: Sequence[int], chart: Chart, scale: Scale, y: float) -> None:
        x = scale(0)
        for place, (split, part) in enumerate(zip(counts, parts, strict=True)):
            width = scale(part) - scale(0)
            chart.rect(x, y - 5, width, 9, f"f{place + 1}", f"{split}: {part:,}")
            x += width

    rows = []
    for k in order:
        parts = [of[k] for of in counts.values()]
        rows.append(Row(names[k], " + ".join(f"{part:,}" for part in parts), partial(bar, parts)))
    summary = "; ".join(f"{names[k]}: {totals[k]:,}" for k in order)
    return rows_chart("counts", "Images of each class", summary, rows, 0, most, lambda v: f"{v:,.0f}",
                      items=[(f"f{k + 1}", name) for k, name in enumerate(counts)])  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- evaluation


def recalls(split: Split) -> Chart | None:
    """Recall of each class with its interval, the lowest first, beside the accuracy of all images.

    None where no class has one.
    """
    known = sorted((row.accuracy, name) for name, row in split.per_class.items() if row.accuracy is not None)
    if not known:
        return None
    rows, lows = [], []
    for value, name in known[:MAX_ROWS]:
        row = split.per_class[name]
        ends = row.accuracy_interval
        lows.append(ends[0] if ends else value)
        mark = partial(interval_mark, value=value, ends=ends, look="s1")
        span = f"({between(ends, 100, 0)})" if ends else ""
        rows.append(Row(name, share(value), mark, f"{row.count:,} images", span))
    whole = split.accuracy
    label = "Recall, 95 % interval" + (f"; dashed: all images, {share(whole)}" if whole is not None else "")
    summary = "; ".join(f"{row.label}: {row.value}" for row in rows)
    low = math.floor(10 * min(lows)) / 10
    return rows_chart("recalls", "Recall of each class", summary, rows, min(low, 0.9), 1.0, per_cent, label=label,
                      dashed=whole)  # fmt: skip


def confusion(split: Split, name: str, *, whole: bool = False) -> Chart | None:
    """The confusion matrix; colour is the share of the true class (row).

    Args:
        whole: for a figure that may be large: any number of classes, the names of up to 100, and the numbers of images.
    """
    counts, names = split.counts, split.classes
    if counts is None or (len(names) > MAX_CONFUSION and not whole):
        return None
    k = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = k <= (100 if whole else 40)
    size = 11.0 if k <= 14 else min(9.0, 200 / k) if named else 9.0
    room = min(max(text_width(one, size) for one in names) + 8, 104.0) if named else 30.0
    cell = (WIDTH - room - 14) / k
    below = room if named else 24.0
    worst = "; ".join(f"{p.true} as {p.predicted} {share(p.share)}" for p in split.confused(5)) or "no mistakes"
    summary = f"Rows are true classes, columns predicted ones, on {name}. Most frequent: {worst}."
    chart = Chart("confusion", "Confusion matrix", summary, 22 + cell * k + below + 20)
    left, top = room + 10, 22.0
    chart.text(left, 14, "Predicted", "t")
    chart.text(left - 6, 14, "True", "t", anchor="end")
    chart.rect(left, top, cell * k, cell * k, "frame")
    for i, j in np.argwhere(counts > 0).tolist():
        value = float(shares[i, j])
        strength = math.sqrt(value)  # so that rare mistakes are seen
        look = "hit" if i == j else "miss"
        about = f"{names[i]} as {names[j]}: {counts[i, j]:,} ({share(value)})"
        x, y = left + cell * j, top + cell * i
        chart.parts.append(f'<g fill-opacity="{0.08 + 0.62 * strength:.2f}">')
        chart.rect(x + 0.5, y + 0.5, cell - 1 if cell > 4 else cell, cell - 1 if cell > 4 else cell, look, about)
        chart.parts.append("</g>")
        if k <= (20 if whole else 14):
            text = f"{100 * value:.0f}" if value >= 0.005 else "<1"
            counted, points = whole and k <= 12, min(11.0, cell * 0.42)
            base = y + cell / 2 + (0 if counted else points * 0.36)
            chart.text(x + cell / 2, base, text, "in", anchor="middle", size=points)
            if counted:
                size_below = min(9.0, cell * 0.28)
                chart.text(x + cell / 2, y + 0.85 * cell, counts[i, j], "in", anchor="middle", size=size_below)
    every = 1 if named else max(1, k // 10)
    short = [fit(one, room - 4, size) for one in names]
    for i, one in enumerate(names):
        if i % every:
            continue
        label = (one if short.count(short[i]) == 1 else f"{i}: {one}") if named else str(i)
        middle = cell * (i + 0.5)
        chart.text(left - 6, top + middle + size / 3, label, "l", anchor="end", width=room - 4, size=size)
        chart.text(left + middle + size / 3, top + cell * k + 8, label, "l", anchor="end", width=room - 4, turn=-90,
                   size=size)  # fmt: skip
    return chart


def reliability(after: Bins, before: Bins | None) -> Chart:
    """Accuracy against confidence in bins, after and before the temperature, above the sizes of the bins.

    Without `before` none is named: no temperature was fitted, it changes nothing, or views were averaged.
    """
    summary = f"confidence and accuracy differ by {share(after.error, 2)} on average."
    summary = summary.capitalize() if before is None else f"After the temperature, {summary}"
    chart = Chart("calibration", "Calibration", summary, 372)
    both = [("f1", "after the temperature (bars: 95 %)"), ("f2", "before")]
    items = [("f1", "accuracy (bars: 95 %)")] if before is None else both
    y = legend(chart, _LEFT, 16, items)
    plot = Plot(chart, Scale(0, 1, _LEFT, WIDTH - 14), Scale(0, 1, 260, y))
    plot.axes("", None, per_cent, y_ticks=(0, 0.25, 0.5, 0.75, 1))
    chart.line(plot.x(0), plot.y(0), plot.x(1), plot.y(1), "d")
    if before is not None:
        plot.line(before.confidence.tolist(), before.accuracy.tolist(), "s2")
        for a, b in zip(before.confidence, before.accuracy, strict=True):
            chart.circle(plot.x(a), plot.y(b), 3, "f2")
    for _, a, b, low, high, many in zip(*after, strict=True):
        chart.line(plot.x(a), plot.y(low), plot.x(a), plot.y(high), "w s1")
        chart.circle(plot.x(a), plot.y(b), 4, "f1", f"confidence {share(a)}, accuracy {share(b)}, {many:,} images")
    most = int(after.images.max())
    bars = Plot(chart, plot.x, Scale(0, most, 336, 286))
    bars.axes("Confidence; below: how many images have it", per_cent, large, x_ticks=(0, 0.25, 0.5, 0.75, 1),
              y_ticks=(0, most))  # fmt: skip
    for centre, many in zip(after.centre, after.images.tolist(), strict=True):
        x, end = (bars.x(centre + half / BINS) for half in (-0.5, 0.5))
        chart.rect(x + 1, bars.y(many), end - x - 2, 336 - bars.y(many), "n")
    return chart


# -------------------------------------------------------------------------------------------------------- several runs


def accuracies(rows: Sequence[tuple[str, float, tuple[float, float] | None]], split: str) -> Chart:
    """The accuracy of several runs with their intervals."""
    drawn = [Row(name, share(value), partial(interval_mark, value=value, ends=ends, look=series("s", place)))
             for place, (name, value, ends) in enumerate(rows)]  # fmt: skip
    ends = [end for _, value, interval in rows for end in (value, *(interval or ()))]
    low, high, _ = robust(ends, ends)
    summary = "; ".join(f"{row.label}: {row.value}" for row in drawn)
    return rows_chart("accuracies", f"Accuracy on {split}", summary, drawn, low, min(high, 1.0), per_cent,
                      label=f"Accuracy on {split}, 95 % interval")  # fmt: skip


def compared_curves(runs: Sequence[tuple[str, Sequence[Epoch]]]) -> Chart | None:
    """Validation accuracy of several runs over their epochs."""
    drawn = [_points(rows, "val_accuracy") for _, rows in runs]
    values = [value for _, known in drawn for value in known if value is not None]
    epochs = [row.epoch for _, rows in runs for row in rows]
    if not values:
        return None
    ended = [(name, known[-1]) for (name, _), (_, known) in zip(runs, drawn, strict=True) if known]
    summary = "; ".join(f"{name} ends at {share(value)}" for name, value in ended)
    chart = Chart("curves", "Validation accuracy over the epochs", summary, 0)
    low, high, cut = robust(values, form=share)
    top = legend(chart, _LEFT, 14, [(series("f", k), name) for k, (name, _) in enumerate(runs)]) + (20 if cut else 4)
    if cut:  # otherwise the title of the chart says it
        chart.text(_LEFT, top - 8, f"Validation accuracy{cut}", "h")
    span = (min(epochs), max(epochs)) if min(epochs) < max(epochs) else (min(epochs) - 1, max(epochs) + 1)
    plot = frame(chart, top, span, (low, min(high, 1.0)))
    plot.axes("Epoch", "{:g}".format, per_cent, x_ticks=plot.x.whole())
    for place, (xs, known) in enumerate(drawn):
        plot.line(xs, known, series("s", place))
    return chart
