"""Charts of a compression: the front, accuracy against sparsity, latency. Each function returns a Chart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise

from kitae import console
from kitae.reporting.charts import per_cent
from kitae.reporting.compression_results import Candidate, CompressionRecord
from kitae.reporting.svg import (
    LINE,
    WIDTH,
    Chart,
    Point,
    Row,
    Scale,
    frame,
    interval_mark,
    legend,
    rows_chart,
    series,
    text_width,
)
from kitae.reporting.values import milliseconds, share, times_between

Box = tuple[float, float, float, float]  # left, top, right, bottom

_LEFT, _END = 50.0, WIDTH - 12
_DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1), (1, -2), (1, 2))
_PLACES = [(radius * x, radius * y) for radius in (10.0, 16.0, 28.0, 44.0, 64.0, 88.0) for x, y in _DIRECTIONS]
"""Offsets at which a label may be placed: from its point to the nearest point of the label."""
_MOST_LABELS = 16  # points that all have a label
_KEY_LEFT = 10.0
_CLOSE = 28.0  # from a point to its label, where all have one; those further away could not be told apart
_ON_A_LINE, _NEARER_ANOTHER = 30.0, 40.0  # extra distance in pixels that a label accepts to avoid this


def front(record: CompressionRecord) -> Chart:
    """Every candidate by size and accuracy; the front, the original and the winner are labelled.

    So are all others, where they are few: by a number and a key below if there is no room for their labels.
    Controls cannot be chosen: they are diamonds, and no part of the front.
    """
    rows, winner = record.candidates, record.winner.name
    sizes, values = [record.bytes_of(row) for row in rows], [row.accuracy for row in rows]
    budget = record.baseline.accuracy - record.spec.max_drop / 100
    low, high = min(*values, budget), max(*values, budget)
    room = max(0.12 * (high - low), 0.004)
    told = [f"{record.label(row)}: {console.size(size)}" for row, size in zip(rows, sizes, strict=True)]
    summary = "; ".join(f"{text}, {share(value)}" for text, value in zip(told, values, strict=True))
    chart = Chart("front", "Size against accuracy", summary, 0)
    items = [("f2", "winner" if record.within_budget else "closest"), ("f1", "candidate")]
    items += [("f4", "control, cannot win")] if any(row.control for row in rows) else []
    top = legend(chart, _LEFT, 14, items) + 16
    bottom = top + 280
    plot = frame(chart, top, (min(sizes) / 1.35, max(sizes) * 1.6), (low - room, high + room), tall=280, left=_LEFT,
                 right=12, log=True)  # fmt: skip
    chart.rect(_LEFT, plot.y(budget), _END - _LEFT, bottom - plot.y(budget), "over")
    plot.axes("Size of the file" + (", packed" if record.size == "packed_bytes" else ""), console.size, per_cent)
    chart.line(_LEFT, plot.y(budget), _END, plot.y(budget), "limit")
    chart.text(_END - 4, bottom - 6, f"budget: at least {share(budget)}", "t", anchor="end")
    places = {row.name: (plot.x(record.bytes_of(row)), plot.y(row.accuracy)) for row in rows}
    steps: list[Point] = []
    named = {winner, record.baseline.name}
    for row in sorted(rows, key=lambda row: (record.bytes_of(row), -row.accuracy)):
        x, y = places[row.name]
        if not row.control and (not steps or y < steps[-1][1]):  # no other is both smaller and more accurate
            steps += [(x, steps[-1][1]), (x, y)] if steps else [(x, y)]
            named.add(row.name)
    chart.path(steps, "d")
    for row, text in zip(rows, told, strict=True):
        about = f"{text}, {share(row.accuracy, 2)}, {milliseconds(row.latency_ms)}"
        if row.name == winner:
            chart.star(*places[row.name], 9, "f2", about)
        elif row.control:
            chart.diamond(*places[row.name], 6, "f4", about)
        else:
            chart.circle(*places[row.name], 5, "f1", about)
    order = sorted(rows, key=lambda row: (row.name != winner, record.bytes_of(row)))
    labels = {row.name: (record.label(row), places[row.name]) for row in order}
    lines = [(a[0], b[1], b[0], a[1]) for a, b in pairwise(steps)]  # each goes to the right or up
    _label_all(chart, labels, named, lines, (_LEFT, top - 6, WIDTH - 2, bottom))
    return chart


def _label_all(
    chart: Chart, labels: Mapping[str, tuple[str, Point]], named: set[str], lines: list[Box], within: Box
) -> None:
    """Label every point close by, or else those that are `named` anywhere, and number the others if they are few."""
    few = len(labels) <= _MOST_LABELS
    marks = [(x - 7, y - 7, x + 7, y + 7) for _, (x, y) in labels.values()]
    tried, taken = Chart(chart.name, chart.title, chart.description, chart.height), list(marks)
    if few and all(_label(tried, *one, taken, marks, lines, within, _CLOSE) for one in labels.values()):
        chart.parts += tried.parts
        return
    taken = list(marks)
    written = {name for name in labels if name in named and _label(chart, *labels[name], taken, marks, lines, within)}
    key: list[str] = []
    for name, (label, at) in labels.items():
        number = str(len(key) + 1)
        if few and name not in written and _label(chart, number, at, taken, marks, lines, within):
            key.append(f"{number}: {label}")
    _key(chart, key)


def _key(chart: Chart, lines: list[str]) -> None:
    """What the numbers of points stand for, below the chart: in two columns if every line fits into one."""
    half = (WIDTH - 2 * _KEY_LEFT) / 2
    columns = 2 if all(text_width(text) + 8 <= half for text in lines) else 1
    top = chart.height + 10
    for place, text in enumerate(lines):
        x, y = _KEY_LEFT + half * (place % columns), top + LINE * (place // columns)
        chart.text(x, y, text, "t", width=WIDTH - _KEY_LEFT - x)
        chart.height = y + 6


def _label(
    chart: Chart, text: str, at: Point, taken: list[Box], marks: list[Box], lines: list[Box], within: Box,
    reach: float = math.inf,
) -> bool:  # fmt: skip
    """Write a label near its point, at most `reach` away, where it covers nothing; whether there was room for it.

    It avoids `lines` and the `marks` of other points unless that takes it far away. A line connects it to its point if
    it is not beside it.
    """
    width = text_width(text)
    found: list[tuple[float, Box, Point]] = []
    for dx, dy in _PLACES:
        away = math.hypot(dx, dy)
        end = at[0] + dx, at[1] + dy
        left = end[0] - (0 if dx > 0 else width if dx < 0 else width / 2)
        top = end[1] - (0 if dy > 0 else 14 if dy < 0 else 7)
        box = left, top, left + width, top + 14
        inside = box[0] >= within[0] and box[1] >= within[1] and box[2] <= within[2] and box[3] <= within[3]
        if away <= reach and inside and not any(_over(box, other) for other in taken):
            nearest = min((_away(box, mark) for mark in marks if not _over(mark, (*at, *at))), default=math.inf)
            cost = away + _ON_A_LINE * sum(_over(box, line) for line in lines) + _NEARER_ANOTHER * (nearest < away - 7)
            found.append((cost, box, end))
    if not found:
        return False
    _, box, end = min(found, key=lambda one: one[0])
    if end[1] != at[1] or abs(end[0] - at[0]) > _PLACES[0][0]:
        chart.line(*at, *end, "a")
    chart.text(box[0], box[3] - 3, text, "l")
    taken.append(box)
    return True


def _away(a: Box, b: Box) -> float:
    """The distance between two boxes."""
    return math.hypot(max(a[0] - b[2], b[0] - a[2], 0.0), max(a[1] - b[3], b[1] - a[3], 0.0))


def _over(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def sparsity(record: CompressionRecord) -> Chart | None:
    """Accuracy over the share of parameters removed, in float32: what was chosen from, and each kind of control."""
    curves: dict[str, list[tuple[float, float, Candidate]]] = {}
    for row in record.candidates:
        if row.precision == "fp32":
            name = record.label(row) if row.control else "pruned"
            curves.setdefault(name, []).append((1 - row.nonzero / record.baseline.parameters, row.accuracy, row))
    points = [point for curve in curves.values() for point in curve]
    if len(points) < 2:
        return None
    ends = [end for _, value, row in points for end in (value, *(row.accuracy_interval or ()))]
    summary = "; ".join(f"{share(x)} removed: {share(y)}" for x, y, _ in points)
    chart = Chart("sparsity", "Accuracy against parameters removed", summary, 0)
    top = 24.0
    if len(curves) > 1:
        top = legend(chart, 10, 14, [(series("f", k), name) for k, name in enumerate(curves)]) + 10
    most = max(0.1, *(x for x, _, _ in points))
    low, high = min(ends) - 0.005, min(1.0, max(ends) + 0.005)
    plot = frame(chart, top, (0, most), (low, high), tall=190, left=_LEFT, right=20)
    plot.axes("Parameters removed (bars: 95 % intervals)", per_cent, per_cent)
    original = plot.y(record.baseline.accuracy)
    chart.line(_LEFT, original, WIDTH - 20, original, "d")
    for number, curve in enumerate(curves.values()):
        curve.sort(key=lambda point: point[0])
        plot.line([x for x, _, _ in curve], [y for _, y, _ in curve], series("s", number))
        for x, y, row in curve:
            if row.accuracy_interval is not None:
                low, high = row.accuracy_interval
                chart.line(plot.x(x), plot.y(low), plot.x(x), plot.y(high), f"w {series('s', number)}")
            about = f"{share(x)} removed: {share(y, 2)}"
            chart.circle(plot.x(x), plot.y(y), 4, series("f", number), about)
    return chart


def latencies(record: CompressionRecord) -> Chart:
    """The time of one image in each file, the fastest first."""
    candidates = sorted(record.candidates, key=lambda row: row.latency_ms)
    rows = []
    for row in candidates:
        factor = "" if row.name == record.baseline.name else f", {row.speedup:.2f}×"
        look = "s2" if row.name == record.winner.name else "s4" if row.control else "s1"
        bar = partial(_bar, value=row.latency_ms, ends=row.latency_ms_interval, look=look)
        rows.append(Row(record.label(row), milliseconds(row.latency_ms) + factor, bar))
    summary = "; ".join(f"{record.label(row)}: {milliseconds(row.latency_ms)}" for row in candidates)
    most = max(row.latency_ms_interval[1] for row in candidates)
    return rows_chart("latency", "Latency of one image", summary, rows, 0, most * 1.02, "{:g} ms".format)


def _bar(chart: Chart, scale: Scale, y: float, *, value: float, ends: tuple[float, float], look: str) -> None:
    """A bar from 0 to a time in milliseconds, with a dot and an interval at its end."""
    about = f"{milliseconds(value)} {times_between(ends)}"
    chart.rect(scale(0), y - 4, scale(value) - scale(0), 8, f"b{look[1:]}")
    interval_mark(chart, scale, y, value=value, ends=ends, look=look, about=about)
