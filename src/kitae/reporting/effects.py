"""Pictures of a study and of a search, from what effects.json and search.json hold.

All that is drawn comes in as plain values, so a published result can be drawn again without its runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kitae.console import decimals
from kitae.reporting.style import (
    BLUE,
    DPI,
    GRID,
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
    dress,
    finite,
    fit,
    labels,
    legend,
    new_figure,
    number,
    save,
    text_width,
    wrap,
)

_MOST_ROWS = 40
_ROW = 0.34  # inches
_LEFT, _RIGHT = 1.85, 1.75  # inches beside the axes of a forest plot, for names and (at least) numbers


def draw_study(data: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw whatever a study has: effects, curves, and the response to a numeric factor.

    Args:
        data: as effects.json. folder: of the pictures.

    Returns:
        The pictures drawn, by what they show: effects, curves, response.
    """
    main = str(data["metric"])
    there: dict[str, Path] = {}
    if _known(data["analyses"][main]["effects"]):
        there["effects"] = draw_effects(data["analyses"][main], main, folder / "effects.png", title=str(data["name"]))
    if any(curve.get("epoch") for curve in data["curves"].values()):
        there["curves"] = draw_curves(data, folder / "curves.png")
    if numeric_factor(data) is not None:
        there["response"] = draw_response(data, folder / "response.png")
    return there


def draw_effects(analysis: Mapping[str, Any], metric: str, path: str | Path, *, title: str = "Effects") -> Path:
    """A forest plot: every effect with its 95 % interval, and the noise of a run (one standard deviation) as a band.

    An effect that is shown after Holm's correction is filled, blue where it helps, red where it hurts, and black where
    neither more nor less is better; what is not shown is grey and hollow.

    Args:
        analysis: of one metric, as in effects.json: unit, better, noise, effects.
    """
    effects = list(analysis["effects"])[:_MOST_ROWS]
    left_out = len(analysis["effects"]) - len(effects)
    unit = str(analysis.get("unit") or "")
    ratio = any(effect.get("ratio") for effect in effects)
    neutral = 1.0 if ratio else 0.0
    better = int(analysis["better"])
    height = 1.75 + _ROW * max(1, len(effects))
    figure = new_figure(height=height, title=title, layout=None)
    below, above = 0.95, 0.55
    texts = [_numbers(effect, 2 if unit == "points" else _decimals(effect)) for effect in effects]
    right = max(_RIGHT, max((text_width(text, SMALL) for text in texts), default=0.0) / DPI + 0.24)
    ax = figure.add_axes((
        _LEFT / WIDTH, below / height, (WIDTH - _LEFT - right) / WIDTH, (height - below - above) / height,
    ))  # fmt: skip
    what = f"{metric}: ratio to the reference" if ratio else f"Effect on {metric}{f' ({unit})' if unit else ''}"
    dress(ax, grid="x")
    figure.text(_LEFT / WIDTH, 0.42 / height, fit(what, (WIDTH - _LEFT) * DPI, LABEL), fontsize=LABEL, color=INK)
    ax.axvline(neutral, color=INK, linewidth=1.0, zorder=1)
    sd = _finite(analysis["noise"].get("sd"))
    note = "bars: 95 % intervals; filled: shown after Holm's correction"
    if sd is not None:
        low, high = (math.exp(-sd), math.exp(sd)) if ratio else (-sd, sd)
        ax.axvspan(low, high, color=GRID, zorder=0, linewidth=0)
        note = "band: noise of one run (SD); " + note
    if left_out:
        note = f"{left_out} more not drawn; {note}"
    figure.text(0.012, 0.14 / height, fit(note, (WIDTH - 0.1) * DPI, SMALL - 1), fontsize=SMALL - 1, color=MUTED)
    names = ["\n".join(wrap(effect["name"], (_LEFT - 0.2) * DPI, SMALL)) for effect in effects]
    if len(set(names)) < len(names):
        names = labels([effect["name"] for effect in effects], (_LEFT - 0.2) * DPI, SMALL)
    for row, effect in enumerate(effects):
        estimate, least, most = (_finite(effect.get(key)) for key in ("estimate", "low", "high"))
        if estimate is None:
            ax.text(neutral, row, " not known", va="center", fontsize=SMALL, color=MUTED)
            continue
        helps = (estimate > neutral) == (better > 0)
        colour = MUTED if not effect.get("shown") else INK if not better else BLUE if helps else VERMILLION
        if least is not None and most is not None:
            ax.plot([least, most], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
        face = colour if effect.get("shown") else PAPER
        ax.plot([estimate], [row], "o", color=colour, markerfacecolor=face, markersize=7, markeredgewidth=1.6, zorder=3)
        place = height - above - (row + 0.5) * (height - below - above) / len(effects)
        figure.text(1 - (right - 0.12) / WIDTH, place / height, texts[row], va="center", fontsize=SMALL, color=INK)
    ax.set_yticks(range(len(effects)), names, fontsize=SMALL)
    ax.set_ylim(len(effects) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(number)
    ax.margins(x=0.08)
    ax.locator_params(axis="x", nbins=5 if right == _RIGHT else 3)  # long numbers have long ticks
    return save(figure, path)


def draw_curves(data: Mapping[str, Any], path: str | Path) -> Path:
    """Validation accuracy and training loss over epochs: a line a variant, a band from the lowest to the highest seed.

    Of more than six variants, the reference and those with the largest effects are drawn.

    Args:
        data: as effects.json.
    """
    chosen = _chosen(data, len(SERIES))
    columns = [("val_accuracy", "Validation accuracy (%)", 100.0), ("train_loss", "Training loss", 1.0)]
    columns = [c for c in columns if any(c[0] in data["curves"][name] for name in chosen)]
    figure = new_figure(height=1.2 + 2.6 * len(columns), title=f"{data['name']}: curves, mean and range over seeds")
    axes = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    short = labels(chosen, 2.6 * DPI, SMALL)
    for ax, (column, heading, scale) in zip(axes, columns, strict=True):
        dress(ax, ylabel=heading)
        for place, (name, label) in enumerate(zip(chosen, short, strict=True)):
            curve = data["curves"][name]
            if column not in curve:
                continue
            x = finite(curve["epoch"])
            mean, low, high = ([scale * v for v in finite(curve[column][key])] for key in ("mean", "low", "high"))
            marker = MARKERS[place] if len(x) <= 30 else None
            ax.plot(x, mean, color=SERIES[place], linewidth=1.6, label=label, marker=marker, markersize=3.5)
            ax.fill_between(x, low, high, color=SERIES[place], alpha=0.15, linewidth=0)
    axes[-1].set_xlabel("Epoch", fontsize=LABEL, color=INK)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    missing = sum(1 for curve in data["curves"].values() if curve.get("epoch")) - len(chosen)
    if missing > 0:
        axes[-1].annotate(
            f"{missing} more variants are not drawn", (1, 1), xycoords="axes fraction", ha="right", va="bottom",
            fontsize=SMALL, color=MUTED,
        )  # fmt: skip
    legend(axes[0], columns=2 if len(chosen) > 3 else 3, loc="lower left")
    return save(figure, path)


def numeric_factor(data: Mapping[str, Any]) -> str | None:
    """The factor of a study whose levels are three or more different numbers, if there is one."""
    for factor in data["numeric"]:
        values = [_finite(name) for name in data["factors"][factor]]
        if len(values) >= 3 and None not in values and len(set(values)) == len(values):
            return str(factor)
    return None


def draw_response(data: Mapping[str, Any], path: str | Path) -> Path:
    """The metric over a numeric factor (images, smoothing, ratio), a line for each setting of the other factors.

    Every run is a point, the line is their mean.

    Args:
        data: as effects.json, with a `numeric_factor`.
    """
    factor, main = numeric_factor(data), str(data["metric"])
    if factor is None:
        raise ValueError("no factor of this study has three or more numbers for levels")
    unit = str(data["analyses"][main].get("unit") or "")
    figure = new_figure(height=4.0, title=f"{data['name']}: {main}")
    ax = dress(figure.subplots(), xlabel=factor, ylabel=f"{main}{f' ({unit})' if unit else ''}")
    groups: dict[str, list[tuple[float, list[float]]]] = {}
    for variant in data["variants"]:
        levels = data["levels"][variant["name"]]
        x = float(data["factors"][factor][levels[factor]])
        rest = [f"{name} {data['factors'][name][level]}" for name, level in levels.items() if name != factor]
        values = finite(variant["numbers"][main]["values"])
        groups.setdefault(", ".join(rest), []).append((x, values))
    short = labels(list(groups), 2.6 * DPI, SMALL)
    for place, (points, label) in enumerate(zip(groups.values(), short, strict=True)):
        colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
        points = sorted((x, values) for x, values in points if values)
        ax.plot(
            [x for x, _ in points], [sum(v) / len(v) for _, v in points], color=colour, linewidth=1.8, marker=marker,
            markersize=5, label=label,
        )  # fmt: skip
        for x, values in points:
            ax.plot([x] * len(values), values, marker, color=colour, markersize=3.5, alpha=0.45, linestyle="none")
    ticks = sorted(float(name) for name in data["factors"][factor])
    if ticks[0] > 0 and ticks[-1] / ticks[0] >= 8:
        ax.set_xscale("log")
    ax.set_xticks(ticks, [number(tick) for tick in ticks])
    ax.minorticks_off()
    if any(groups):  # a sweep has one line and needs no legend
        legend(ax, columns=2, loc="lower left")
    return save(figure, path)


def draw_search(data: Mapping[str, Any], path: str | Path, *, title: str = "Policy search") -> Path:
    """Every arm of a search at the rung it reached: validation accuracy over the order of trying.

    Args:
        data: as search.json.
    """
    arms: Sequence[Mapping[str, Any]] = [arm for arm in data["arms"] if arm["rungs"]]
    figure = new_figure(height=4.2, title=title)
    ax = dress(figure.subplots(), xlabel="Arm", ylabel="Validation accuracy (%)")
    epochs = sorted({arm["rungs"][-1][0] for arm in arms})
    sizes = {length: 4.0 + 3.0 * place for place, length in enumerate(epochs)}
    for preset, colour, marker, kind in ((True, ORANGE, "s", "preset"), (False, BLUE, "o", "searched")):
        for length in epochs:
            points = [
                (arm["number"], 100 * arm["rungs"][-1][1])
                for arm in arms
                if bool(arm["preset"]) == preset and arm["rungs"][-1][0] == length
            ]
            if points:
                whole = length == epochs[-1]
                ax.plot(
                    *zip(*points, strict=True), marker, color=colour, markersize=sizes[length],
                    markerfacecolor=colour if whole else PAPER, linestyle="none",
                    label=f"{kind}, {length} epoch{'s' * (length != 1)}",
                )  # fmt: skip
    best: list[tuple[float, float]] = []
    for arm in arms:
        if arm["rungs"][-1][0] == epochs[-1]:
            value = 100 * arm["rungs"][-1][1]
            best.append((arm["number"], max(value, best[-1][1]) if best else value))
    if best:
        best.append((max(arm["number"] for arm in arms), best[-1][1]))
        ax.step(*zip(*best, strict=True), where="post", color=MUTED, linewidth=1.2, zorder=0, label="best so far")
    ax.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    legend(ax, columns=3, loc="lower left")
    return save(figure, path)


def _chosen(data: Mapping[str, Any], most: int) -> list[str]:
    """The reference, and of the other variants those with the largest effects, in the study's order."""
    names = [name for name, curve in data["curves"].items() if curve.get("epoch")]
    analysis = data["analyses"][data["metric"]]
    reference = analysis["noise"].get("reference")
    sizes = {}
    for variant in data["variants"]:
        mean = _finite(variant["numbers"][data["metric"]].get("mean"))
        base = _finite(analysis["noise"].get("reference_mean"))
        sizes[variant["name"]] = 0.0 if mean is None or base is None else abs(mean - base)
    others = sorted((name for name in names if name != reference), key=lambda name: -sizes.get(name, 0.0))
    kept = {reference, *others[: most - 1]}
    return [name for name in names if name in kept]


def _known(effects: Sequence[Mapping[str, Any]]) -> bool:
    return any(_finite(effect.get("estimate")) is not None for effect in effects)


def _decimals(effect: Mapping[str, Any]) -> int:
    error = _finite(effect.get("standard_error"))
    return decimals(math.nan if error is None else error)


def _numbers(effect: Mapping[str, Any], digits: int) -> str:
    """An effect's estimate and interval in figures; empty where it is not known."""
    ratio = bool(effect.get("ratio"))
    estimate, low, high = (_finite(effect.get(key)) for key in ("estimate", "low", "high"))

    def text(value: float) -> str:
        if ratio:
            return f"{value:.2f}"
        value = 0.0 if abs(value) < 0.5 * 10**-digits else value  # no -0.00
        return f"{value:+.{digits if abs(value) < 9.995 else min(digits, 1)}f}"

    if estimate is None:
        return ""
    head = f"×{text(estimate)}" if ratio else text(estimate)
    return head if low is None or high is None else f"{head}  ({text(low)} to {text(high)})"


def _finite(value: Any) -> float | None:
    try:
        known = float(value)
    except (TypeError, ValueError):
        return None
    return known if math.isfinite(known) else None
