"""Charts of studies and searches: forest plot, curves, response to a number, arms. Each returns a Chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from kitae.console import plural
from kitae.reporting.charts import per_cent, robust
from kitae.reporting.effects import Analysis, interval, verdict
from kitae.reporting.study_results import StudyRecord
from kitae.reporting.svg import SERIES, WIDTH, Chart, Plot, Row, Scale, frame, interval_mark, legend, rows_chart, series
from kitae.reporting.values import share, significant

_LEFT = 46.0
MOST_EFFECTS = 40


def forest(analysis: Analysis, label: Callable[[str], str], what: str, name: str) -> Chart | None:
    """Every effect with its 95 % interval, the best first, and the noise of one run as a band.

    An effect that is shown after Holm's correction is filled, in one colour where it helps and another where it hurts;
    what is not shown is hollow. Of more effects than `MOST_EFFECTS`, those that are shown come first, then the largest.
    """
    every = [effect for effect in analysis.ranked if effect.known]
    if not every:
        return None
    least = sorted((-effect.shown, -effect.size) for effect in every)[:MOST_EFFECTS][-1]
    known = [effect for effect in every if (-effect.shown, -effect.size) <= least]
    left_out = f"; without {plural(len(every) - len(known), 'smaller one')}" if len(known) < len(every) else ""
    ratio, neutral = known[0].ratio, known[0].neutral
    rows = []
    for effect in known:
        look = "neutral" if not effect.shown or not effect.better else "good" if effect.helps else "bad"
        said, span = verdict(effect), f"({interval(effect)})" if effect.bounded else ""
        mark = partial(interval_mark, value=effect.estimate, ends=(effect.low, effect.high) if span else None,
                       look=look, about=f"{said} {span}".strip(), hollow=not effect.shown)  # fmt: skip
        rows.append(Row(label(effect.name), said, mark, span=span))
    summary = "; ".join(f"{row.label}: {row.value} {row.span}".strip() for row in rows)
    ends = [end for e in known for end in ((e.estimate, e.low, e.high) if e.bounded else (e.estimate,))]
    keep = [end for e in known if e.shown for end in (e.estimate, e.low, e.high)]
    if ratio:
        low, high, cut = max(min(*ends, neutral) * 0.9, 1e-6), max(*ends, neutral) * 1.1, ""
    else:
        low, high, cut = robust([*ends, neutral], keep)
    sd = analysis.noise.sd
    band = None if math.isnan(sd) else (math.exp(-sd), math.exp(sd)) if ratio else (-sd, sd)
    return rows_chart(
        name, f"Effects on {what}", summary, rows, low, high, "x {:g}".format if ratio else _signed,
        label=f"{what}{cut}{left_out}", neutral=neutral, log=ratio, band=band,
    )  # fmt: skip


def _signed(value: float) -> str:
    """A difference as a tick: -1, 0, +1."""
    return f"{value:+g}" if value else "0"


def curves(record: StudyRecord, labels: Mapping[str, str]) -> Chart | None:
    """Validation accuracy and training loss over the epochs: a line per variant, a band from lowest to highest seed."""
    chosen = _chosen(record)
    panels = [("Validation accuracy", "val_accuracy", per_cent), ("Training loss", "train_loss", "{:.3g}".format)]
    panels = [p for p in panels if any(getattr(record.curves[name], p[1]) for name in chosen)]
    if not panels:
        return None
    epochs = [epoch for name in chosen for epoch in record.curves[name].epoch]
    summary = f"{plural(len(chosen), 'variant')} over {plural(int(max(epochs)), 'epoch')}."
    chart = Chart("curves", "Curves, mean and range over seeds", summary, 0)
    top = legend(chart, 10, 14, [(series("f", k), labels.get(name, name)) for k, name in enumerate(chosen)]) + 16
    for name, column, form in panels:
        bands = [getattr(record.curves[one], column) for one in chosen]
        rows = [row for band in bands if band for row in (band.mean, band.low, band.high)]
        values = [value for row in rows for value in row]
        late = [value for row in rows for value in row[len(row) // 4 :]]
        low, high, cut = robust(values, late, share if form is per_cent else form)
        x = Scale(min(epochs), max(epochs), _LEFT, WIDTH - 14)
        plot = Plot(chart, x, Scale(low, min(high, 1.0) if form is per_cent else high, top + 150, top))
        chart.text(_LEFT, top - 8, name + cut, "h")
        last = column == panels[-1][1]
        plot.axes("Epoch" if last else "", "{:g}".format, form, x_ticks=x.whole())
        for place, (one, band) in enumerate(zip(chosen, bands, strict=True)):
            if band is not None:
                epoch = band.epoch or record.curves[one].epoch
                plot.band(epoch, band.low, band.high, series("b", place))
                plot.line(epoch, band.mean, series("s", place))
        top += 150 + 52
    chart.height = top - 8
    return chart


def response(record: StudyRecord) -> Chart | None:
    """The metric over a factor whose levels are three or more numbers; every run is a point, the line is their mean."""
    factor = _numeric(record)
    if factor is None:
        return None
    groups: dict[str, list[tuple[float, tuple[float, ...]]]] = {}
    for variant in record.variants:
        levels, found = record.levels[variant.name], variant.numbers.get(record.metric)
        if found is not None and found.values:
            x = float(record.factors[factor][levels[factor]])
            rest = [f"{name} {record.factors[name][level]}" for name, level in levels.items() if name != factor]
            groups.setdefault(", ".join(rest), []).append((x, found.values))
    every = [value for points in groups.values() for _, values in points for value in values]
    if not every:
        return None
    places = sorted({x for points in groups.values() for x, _ in points})
    log = places[0] > 0 and places[-1] / places[0] >= 8
    unit = f" ({record.main.unit})" if record.main.unit else ""
    summary = "; ".join(
        f"{name + ' ' if name else ''}{x:g}: {significant(sum(v) / len(v), 4)}"
        for name, points in groups.items() for x, v in sorted(points)
    )  # fmt: skip
    chart = Chart("response", f"{record.metric} over {factor}", summary, 0)
    top = 24.0
    if any(groups):
        top = legend(chart, 10, 14, [(series("f", k), name) for k, name in enumerate(groups)]) + 14
    low, high, cut = robust(every)
    chart.text(_LEFT, top - 8, f"{record.metric}{unit}{cut}", "h")
    plot = frame(chart, top, (places[0], places[-1]), (low, high), log=log)
    plot.axes(factor, "{:g}".format, "{:g}".format, x_ticks=places if len(places) <= 8 else None)
    for place, points in enumerate(groups.values()):
        points.sort()
        plot.line([x for x, _ in points], [sum(v) / len(v) for _, v in points], series("s", place))
        for x, values in points:
            for value in values:
                chart.circle(plot.x(x), plot.y(value), 3, series("f", place))
    return chart


def arms_chart(arms: Sequence[Mapping[str, Any]], best: int | None = None) -> Chart:
    """Every arm of a search by its validation score at the last rung that it reached, in the order of trying.

    Args:
        arms: as search.json has them. An arm that was trained to the end is filled; presets are diamonds.
        best: the number of the best one.
    """
    known = [(arm["number"], *arm["rungs"][-1][:2], bool(arm["preset"])) for arm in arms if arm["rungs"]]
    full = max((epochs for _, epochs, _, _ in known), default=0)
    whole = {number: value for number, epochs, value, _ in known if epochs == full}
    low, high, _ = robust([value for _, _, value, _ in known] or [0.0], [*whole.values()])
    summary = f"{plural(len(known), 'arm')}, {len(whole)} of them trained for {plural(full, 'epoch')}."
    if best in whole:
        summary += f" The best of these is arm {best}: {share(whole[best])}."
    chart = Chart("search", "Arms of the search", summary, 0)
    items = [("f2", "preset"), ("f1", f"searched; filled: {plural(full, 'epoch')}, hollow: stopped before")]
    top = legend(chart, 10, 14, items) + 16
    last = max((number for number, *_ in known), default=1)
    plot = frame(chart, top, (-0.5, last + 0.5), (low, min(high, 1.0)))
    plot.axes("Arm", "{:g}".format, per_cent, x_ticks=plot.x.whole())
    for number, epochs, value, preset in known:
        mark = chart.diamond if preset else chart.circle
        look = series("f", preset) if epochs == full else f"e {series('s', preset)}"
        mark(plot.x(number), plot.y(value), 5, look, f"arm {number}: {share(value)} after {plural(epochs, 'epoch')}")
    return chart


def _numeric(record: StudyRecord) -> str | None:
    """The factor whose levels are three or more numbers, if there is one."""
    return next((factor for factor in record.numeric if len(record.factors[factor]) >= 3), None)


def _chosen(record: StudyRecord) -> list[str]:
    """The reference, and of the other variants those with the largest effects, in the study's order."""
    names = [name for name, curve in record.curves.items() if curve.epoch]
    reference, base = record.main.noise.reference, record.main.noise.reference_mean
    means = {variant.name: one.mean for variant in record.variants if (one := variant.numbers.get(record.metric))}

    def size(name: str) -> float:
        mean = means.get(name)
        return 0.0 if mean is None or math.isnan(base) else abs(mean - base)

    others = sorted((name for name in names if name != reference), key=size, reverse=True)
    return [name for name in names if name in (reference, *others[: SERIES - 1])]
