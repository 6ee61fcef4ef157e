"""When a technique helps: effects in published studies by length of training, and the advice derived from them.

Two studies measure the same effect in two regimes if they compare the same two variants, and differ only in epochs and
width. Advice on the length of training comes from such studies alone, and must not be contradicted by any other. Every
measured effect behind it is shown after Holm's correction.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pandas as pd

from axes import SERIES, dress, legend, number
from kitae.experiments.result import StudyResult
from kitae.reporting.effects import Effect, amount, interval
from kitae.reporting.style import INK, LABEL, PAPER, SMALL, new_figure, save

MOST_SENTENCES = 5
# Effects by their names in the ledger's studies, in the order in which advice is given.
TECHNIQUES = {
    "basic over none": "flip and crop",
    "jitter over none": "flip, crop and jitter",
    "mixup": "MixUp",
    "cutmix": "CutMix",
    "full": "the full pipeline",
    "auto_augment": "AutoAugment",
    "rand_augment": "RandAugment",
    "cutout": "cutout",
    "smoothing": "label smoothing",
    "strong": "strong augmentation",
    "constant rate": "a constant learning rate",
    "step rate": "a stepwise learning rate",
}
# Techniques that are advised on together, if the measurements agree.
_GROUPS = {
    "flips and crops rather than no augmentation": ("basic over none", "jitter over none"),
    "MixUp and CutMix": ("mixup", "cutmix"),
    "the full pipeline": ("full",),
    "AutoAugment and RandAugment": ("auto_augment", "rand_augment"),
    "cutout": ("cutout",),
    "label smoothing": ("smoothing",),
}
_RATES = ("constant rate", "step rate")  # compared with a cosine
_MARKERS = ("o", "s", "^", "D", "v", "P")  # a series differs by its marker too
_APART = 1.035  # neighbouring series are drawn side by side, so that their intervals can be told apart
_LENGTH = ("train.epochs", "model.width")  # what a regime may change about an effect


@dataclass(frozen=True)
class Point:
    """An effect on accuracy in one regime.

    Attributes:
        name: of the effect.
        compared: what is compared, whatever the study and the regime.
        setting: all but the variants, the regime and the images: points of one setting can be put beside each other.
        store: the decoded images.
    """

    name: str
    compared: str
    setting: str
    store: str
    study: str
    images: int | None
    epochs: int
    width: int | None
    effect: Effect


def curves(results: Sequence[StudyResult]) -> dict[str, list[Point]]:
    """The effects that were measured with at least two lengths of training, in the order of the studies.

    Returns:
        Technique, with what tells it from another curve of the same technique (the number of images, else the study)
        -> points by width, then epochs.
    """
    found: dict[str, dict[tuple[int, int], Point]] = {}
    for point in _points(results):
        if point.name in TECHNIQUES:  # not the same difference the other way round, such as `none`
            regimes = found.setdefault(point.compared, {})
            before = regimes.setdefault((point.width or 0, point.epochs), point)
            if point.effect.pairs > before.effect.pairs:
                regimes[point.width or 0, point.epochs] = point
    kept = [[of[key] for key in sorted(of)] for of in found.values() if len({epochs for _, epochs in of}) > 1]
    firsts = [points[0] for points in kept]
    names, sizes = Counter(p.name for p in firsts), Counter((p.name, p.images) for p in firsts)
    return {
        TECHNIQUES[first.name]
        + f", {first.images or 0:,} images" * (names[first.name] > 1)
        + f" ({first.study})" * (sizes[first.name, first.images] > 1): points
        for first, points in zip(firsts, kept, strict=True)
    }


def _points(results: Sequence[StudyResult]) -> list[Point]:
    """Every difference that was measured, except of regression designs and of studies that vary the length."""
    found = []
    for result in results:
        spec, settings = result.spec, result.settings
        overrides = {variant.name: variant.overrides for variant in result.design.variants}
        lengths = any(field in fields for fields in overrides.values() for field in _LENGTH)
        if result.design.regression or lengths or not spec.metric.endswith("accuracy"):
            continue
        for contrast in result.design.contrasts:
            effect = result.effect(spec.metric, contrast.name)
            if effect is None or not effect.low <= effect.high:  # NaN: not measured
                continue
            sides = [
                {field: value for field, value in {**spec.set, **overrides[side]}.items() if field not in _LENGTH}
                for side in (contrast.plus, contrast.minus)
            ]
            shared = {field: value for field, value in spec.set.items() if field not in _LENGTH}
            compared = json.dumps([spec.base, spec.metric, spec.after, sides], sort_keys=True)
            setting = json.dumps([spec.base, spec.metric, spec.after, shared], sort_keys=True)
            store = " ".join(sorted(set(result.runs.get("store", pd.Series(dtype=str)).dropna())))
            length = (int(settings["epochs"]), settings.get("width"))
            found.append(
                Point(contrast.name, compared, setting, store, spec.name, settings.get("images"), *length, effect)
            )
    return found


def advice(results: Sequence[StudyResult]) -> list[str]:
    """What a reader can act on: at most `MOST_SENTENCES` sentences, each supported by all effects it is about."""
    points: dict[str, list[Point]] = {}
    for point in _points(results):
        points.setdefault(point.name, []).append(point)
    found: list[str] = []
    for words, group in _GROUPS.items():
        measured = {name: points[name] for name in group if name in points}
        found += _advise(words if len(measured) > 1 else "", measured)
    others = []
    worse = [name for name in _RATES if name in points and all(_does(point, -1) for point in points[name])]
    if worse:
        words, lost = " and ".join(TECHNIQUES[name] for name in worse), [p for name in worse for p in points[name]]
        does = "changes" if len(worse) == 1 else "change"
        others.append(f"Let the learning rate fall along a cosine; {words} {does} accuracy by {_range(lost)}.")
    timed = [effect for result in results if (effect := result.effect("epoch_seconds", "bf16")) is not None]
    faster = next((effect for effect in timed if effect.shown and effect.estimate < 1), None)
    if faster is not None:
        others.append(
            f"Train in bf16 on a processor like ours: an epoch takes {faster.estimate:.2f} times as long as in "
            f"fp32 ({interval(faster)})."
        )
    return found[: MOST_SENTENCES - len(others)] + others


def regime(results: Sequence[StudyResult]) -> str:
    """What the advice rests on, in one sentence."""
    facts = [result.settings for result in results if result.spec.metric.endswith("accuracy")]
    images = sorted({int(one["images"]) for one in facts if one.get("images")})
    nets = Counter(f"{one['model']}" + (f" of width {one['width']}" if one.get("width") else "") for one in facts)
    sources = sorted({str(one["source"]).rpartition(":")[2].removesuffix(".parquet") for one in facts})
    ((most, _),) = nets.most_common(1)
    return (
        f"Measured with {images[0]:,} to {images[-1]:,} images of {' and '.join(sources)}, mostly with {most}. "
        "Other data and networks may differ; `kitae study ablate RECIPE` measures yours."
    )


def _advise(words: str, measured: Mapping[str, list[Point]]) -> list[str]:
    """Up to which length of training techniques hurt, and from which on they help; each on its own if they differ."""
    words = words or " and ".join(TECHNIQUES[name] for name in measured)
    every = sorted((p for of in measured.values() for p in of), key=lambda p: p.epochs)
    if every and all(_does(point, 1) for point in every):
        first, last = every[0].epochs, every[-1].epochs
        lengths = f"{first} epochs" if first == last else f"{first} to {last} epochs"
        where = f" in all {len(every)} comparisons" if len(every) > 1 else ""
        return [f"Use {words}: {_range(every)}{where} ({lengths})."]
    points = _comparable(every)
    hurting, helping = _while(points, -1), _while(points[::-1], 1)
    if hurting and any(_does(point, 1) for point in every if point.epochs <= hurting[-1].epochs):
        hurting = []
    if helping and any(_does(point, -1) for point in every if point.epochs >= helping[-1].epochs):
        helping = []
    off = f"With {hurting[-1].epochs} epochs or fewer, leave {words} off: {_range(hurting)}" if hurting else ""
    if hurting and helping:  # one sentence, since there are few
        them = "them" if " and " in words else "it"
        return [f"{off}; from {helping[-1].epochs} epochs on, use {them}: {_range(helping)}."]
    if helping:
        return [f"From {helping[-1].epochs} epochs on, use {words}: {_range(helping)}."]
    lines = [f"{off}."] if hurting else []
    if len(measured) > 1:
        own = [line for name, of in measured.items() for line in _advise("", {name: of})]
        lines += [line for line in own if not (hurting and "leave" in line)]
    return lines


def _comparable(points: Sequence[Point]) -> list[Point]:
    """The points of the setting that was measured with the most lengths of training; none if each has only one."""
    settings: dict[str, list[Point]] = {}
    for point in points:
        settings.setdefault(point.setting, []).append(point)
    most = max(settings.values(), key=lambda of: len({point.epochs for point in of}), default=[])
    return most if len({point.epochs for point in most}) > 1 else []


def _does(point: Point, sign: int) -> bool:
    """Whether the effect is shown, and helps (1) or hurts (-1)."""
    return point.effect.shown and sign * point.effect.estimate > 0


def _while(points: Sequence[Point], sign: int) -> list[Point]:
    """The points up to the last length at which, as at all before, every effect does this."""
    bad = next((point.epochs for point in points if not _does(point, sign)), None)
    return list(takewhile(lambda point: point.epochs != bad, points))


def _range(points: Sequence[Point]) -> str:
    ordered = sorted((p.effect for p in points), key=lambda effect: effect.estimate)
    low, high = ordered[0], ordered[-1]
    if len(points) == 1:
        return f"{amount(low.estimate, low)} ({interval(low)})"
    return f"{amount(low.estimate, low, unit=False)} to {amount(high.estimate, high)}"


def draw_lengths(of: Mapping[str, Sequence[Point]], path: Path, *, title: str) -> Path:
    """Effects against epochs on a logarithmic axis: a line per technique with 95 % intervals, a panel per width.

    A point is filled if its effect is shown after Holm's correction.

    Args:
        of: as `curves` returns them.
    """
    every = [point for points in of.values() for point in points]
    widths = sorted({point.width for point in every}, key=lambda w: (w is None, w))
    figure = new_figure(width=6.4 + 2.2 * (len(widths) - 1), height=4.4, title=title)
    lengths = [{point.epochs for point in every if point.width == width} for width in widths]
    ratios = [1.0 + 0.5 * (len(found) - 1) for found in lengths]
    axes = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=ratios)[0]
    for ax, width, found in zip(axes, widths, lengths, strict=True):
        dress(ax, xlabel="Epochs" if len(widths) == 1 else f"Epochs, width {width}")
        ax.axhline(0.0, color=INK, linewidth=1.0, zorder=1)
        ax.set_xscale("log")
        for place, (name, points) in enumerate(of.items()):
            known = sorted((point for point in points if point.width == width), key=lambda point: point.epochs)
            if not known:
                continue
            colour, marker = SERIES[place % len(SERIES)], _MARKERS[place % len(_MARKERS)]
            x = [point.epochs * _APART ** (place - (len(of) - 1) / 2) for point in known]
            effects = [point.effect for point in known]
            ax.plot(x, [effect.estimate for effect in effects], color=colour, linewidth=1.6, zorder=2)
            ax.vlines(x, [e.low for e in effects], [e.high for e in effects], color=colour, linewidth=1.4, zorder=2)
            for at, effect in zip(x, effects, strict=True):
                face = colour if effect.shown else PAPER
                ax.plot([at], [effect.estimate], marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)
            ax.plot([], [], marker=marker, color=colour, markersize=6, label=name)
        ticks = sorted(found)
        ax.set_xticks(ticks, [number(tick) for tick in ticks])
        ax.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
        ax.minorticks_off()
    axes[0].set_ylabel("Effect on accuracy (points)", fontsize=LABEL, color=INK)
    legend(axes[0], columns=3, loc="lower left")
    note = "bars: 95 % intervals over seeds; filled: shown after Holm's correction"
    figure.supxlabel(note, x=0.012, ha="left", fontsize=SMALL - 1, color=INK)
    return save(figure, path)
