"""When a technique helps: effects in published studies by length of training, and the advice derived from them.

Two studies measure the same effect in two regimes if they compare the same two variants, and differ only in epochs and
width. Advice is only given if every measured effect behind it is shown after Holm's correction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kitae.experiments.result import StudyResult
from kitae.experiments.stats import Effect
from kitae.experiments.wording import amount, interval

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
    "flips and crops": ("basic over none", "jitter over none"),
    "MixUp and CutMix": ("mixup", "cutmix"),
    "the full pipeline": ("full",),
    "AutoAugment and RandAugment": ("auto_augment", "rand_augment"),
    "cutout": ("cutout",),
    "label smoothing": ("smoothing",),
}
_RATES = ("constant rate", "step rate")  # compared with a cosine
_LENGTH = ("train.epochs", "model.width")  # what a regime may change about an effect


@dataclass(frozen=True)
class Point:
    """An effect on accuracy in one regime."""

    study: str
    epochs: int
    width: int | None
    effect: Effect

    @property
    def helps(self) -> bool:
        return self.effect.shown and self.effect.estimate > 0

    @property
    def hurts(self) -> bool:
        return self.effect.shown and self.effect.estimate < 0


@dataclass(frozen=True)
class Curve:
    """The same effect, measured with several lengths of training; points by width, then epochs.

    Its label names the technique, and the number of images if another curve has the same technique.
    """

    name: str
    images: int | None
    points: tuple[Point, ...]
    label: str = ""

    def data(self) -> dict[str, Any]:
        """As `kitae.reporting.figures.draw_lengths` takes it."""
        return {
            "name": self.label,
            "points": [
                {
                    "epochs": p.epochs, "width": p.width, "estimate": p.effect.estimate, "low": p.effect.low,
                    "high": p.effect.high, "shown": p.effect.shown,
                }
                for p in self.points
            ],
        }  # fmt: skip


def curves(results: Sequence[StudyResult]) -> list[Curve]:
    """The effects that were measured with at least two lengths of training, in the order of the studies."""
    found: dict[str, dict[tuple[int | None, int], Point]] = {}
    about: dict[str, tuple[str, int | None]] = {}
    for result in results:
        for name, key, point in _points(result):
            if name not in TECHNIQUES:  # the same difference the other way round, such as `none`
                continue
            about.setdefault(key, (name, result.settings.get("images")))
            regimes = found.setdefault(key, {})
            before = regimes.setdefault((point.width, point.epochs), point)
            if point.effect.pairs > before.effect.pairs:
                regimes[point.width, point.epochs] = point
    kept = [
        Curve(*about[key], tuple(sorted(regimes.values(), key=lambda p: (p.width or 0, p.epochs))))
        for key, regimes in found.items()
        if len({epochs for _, epochs in regimes}) > 1
    ]
    names = [curve.name for curve in kept]
    return [
        replace(curve, label=TECHNIQUES[curve.name] + f", {curve.images:,} images" * (names.count(curve.name) > 1))
        for curve in kept
    ]


def _points(result: StudyResult) -> list[tuple[str, str, Point]]:
    """(name, what is compared, point) of each difference of a study; of no regression, and of no study of lengths."""
    spec, settings = result.spec, result.settings
    overrides = {variant.name: variant.overrides for variant in result.design.variants}
    lengths = any(field in fields for fields in overrides.values() for field in _LENGTH)
    if result.design.regression or lengths or not spec.metric.endswith("accuracy"):
        return []
    found = []
    for contrast in result.design.contrasts:
        effect = result.effect(spec.metric, contrast.name)
        if effect is None or not effect.low <= effect.high:  # NaN: not measured
            continue
        sides = [
            {field: value for field, value in {**spec.set, **overrides[side]}.items() if field not in _LENGTH}
            for side in (contrast.plus, contrast.minus)
        ]
        key = json.dumps([spec.base, spec.metric, spec.after, sides], sort_keys=True)
        found.append((contrast.name, key, Point(spec.name, int(settings["epochs"]), settings.get("width"), effect)))
    return found


def advice(results: Sequence[StudyResult]) -> list[str]:
    """What a reader can act on: at most `MOST_SENTENCES` sentences, each supported by all effects it is about."""
    points: dict[str, list[Point]] = {}
    for result in results:
        for name, _, point in _points(result):
            points.setdefault(name, []).append(point)
    found: list[str] = []
    for words, group in _GROUPS.items():
        measured = {name: points[name] for name in group if name in points}
        if len(measured) == 1:
            words = TECHNIQUES[next(iter(measured))]
        found += _advise(words, measured)
    others = [*_advise_on_rates(points), *_advise_on_precision(results)]
    return found[: MOST_SENTENCES - len(others)] + others


def _advise_on_rates(points: dict[str, list[Point]]) -> list[str]:
    worse = [name for name in _RATES if name in points and all(point.hurts for point in points[name])]
    if not worse:
        return []
    words = " and ".join(TECHNIQUES[name] for name in worse)
    lost = _range([p for name in worse for p in points[name]])
    return [f"Let the learning rate fall along a cosine; {words} changes accuracy by {lost}."]


def _advise_on_precision(results: Sequence[StudyResult]) -> list[str]:
    for result in results:
        effect = result.effect("epoch_seconds", "bf16")
        if effect is not None and effect.shown and effect.estimate < 1:
            return [
                f"Train in bf16 on a processor like ours: an epoch takes {effect.estimate:.2f} times as long as in "
                f"fp32 ({interval(effect)})."
            ]
    return []


def _advise(words: str, measured: dict[str, list[Point]]) -> list[str]:
    """Up to which length of training techniques hurt, and from which on they help; each on its own if they differ."""
    points = sorted((p for of in measured.values() for p in of), key=lambda p: p.epochs)
    hurting, helping = _while(points, "hurts"), _while(points[::-1], "helps")
    if helping and len(helping) == len(points):
        return [f"Use {words}: {_range(helping)} in all measurements ({_lengths(points)})."]
    lines = []
    if hurting:
        lines.append(f"With {hurting[-1].epochs} epochs or fewer, leave {words} off: {_range(hurting)}.")
    if helping:
        lines.append(f"From {helping[-1].epochs} epochs on, use {words}: {_range(helping)}.")
    elif len(measured) > 1:
        own = [line for name, of in measured.items() for line in _advise(TECHNIQUES[name], {name: of})]
        lines += [line for line in own if not (hurting and "leave" in line)]
    return lines


def _while(points: Sequence[Point], what: str) -> list[Point]:
    """The points up to the last length at which, as at all before, every effect does this."""
    bad = next((p.epochs for p in points if not getattr(p, what)), None)
    found: list[Point] = []
    for point in points:
        if point.epochs == bad:
            break
        found.append(point)
    return found


def _range(points: Sequence[Point]) -> str:
    ordered = sorted((p.effect for p in points), key=lambda effect: effect.estimate)
    low, high = ordered[0], ordered[-1]
    if len(points) == 1:
        return f"{amount(low.estimate, low)} ({interval(low)})"
    return f"{amount(low.estimate, low, unit=False)} to {amount(high.estimate, high)}"


def _lengths(points: Sequence[Point]) -> str:
    epochs = sorted({p.epochs for p in points})
    return f"{epochs[0]} epochs" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]} epochs"
