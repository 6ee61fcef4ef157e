"""What a study changes, in words: its variants, factors, contrasts and effects, from what they set in the recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kitae.augment.spec import MixSpec
from kitae.console import listed, plural
from kitae.reporting.study_results import StudyRecord
from kitae.reporting.values import finite, share, words

_PARTS = {
    "random_crop": "random crops",
    "horizontal_flip": "flips",
    "vertical_flip": "vertical flips",
    "color_jitter": "colour jitter",
    "auto_augment": "AutoAugment",
    "rand_augment": "RandAugment",
    "trivial_augment_wide": "TrivialAugment",
    "augmix": "AugMix",
    "random_resized_crop": "random resized crops",
    "cutout": "Cutout",
}
_BALANCE = {"sampler": "with rare classes drawn more often", "loss": "with rare classes weighted more in the loss"}
_FIELDS: dict[str, Callable[[Any], str]] = {
    "train.label_smoothing": lambda v: f"with label smoothing {v:g}" if v else "without label smoothing",
    "train.optimizer.lr": lambda v: f"with a learning rate of {v:g}",
    "train.optimizer.weight_decay": lambda v: f"with weight decay {v:g}" if v else "without weight decay",
    "train.schedule.warmup_epochs": lambda v: f"with a warm-up of {plural(v, 'epoch')}" if v else "without warm-up",
    "train.schedule.name": lambda v: "with a constant learning rate" if v == "constant"
    else f"with a {str(v).replace('_', ' ')} schedule",
    "train.ema": lambda v: "without averaged weights" if v is None else f"with averaged weights ({v:g})",
    "train.precision": lambda v: f"in {v}",
    "train.progressive": lambda v: "with full-size images throughout" if v is None else "with smaller images first",
    "train.epochs": lambda v: f"with {plural(v, 'epoch')}",
    "model.stochastic_depth": lambda v: f"with stochastic depth {v:g}" if v else "without stochastic depth",
    "data.limit": lambda v: f"with {v:,} images",
    "data.balance": lambda v: _BALANCE.get(v, "without balanced classes"),
    "after.prune.ratio": lambda v: f"with a pruning ratio of {share(v, 0)}" if v else "without pruning",
}  # fmt: skip
_MOST = 4  # changes that are listed; with more, the variant's name is shown
_NAMES = {"full": "with everything", "strong": "with strong augmentation", "weak": "with weak augmentation"}


def effect_label(record: StudyRecord, name: str) -> str:
    """What an effect compares: a variant or factor by what it changes, a contrast by its two variants.

    Its own name where the changes have no words.
    """
    if name in record.contrasts:
        return _contrast(record, *record.contrasts[name])
    if record.design in ("compare", "sweep"):
        return variant_labels(record).get(name) or _named(name)
    levels = _levels(record)
    parts = name.split(" x ")
    if not all(part in levels for part in parts):
        return _named(name)
    labels = [_level(record, *levels[part]) or f"with {_named(part)}" for part in parts]
    return labels[0] if len(labels) == 1 else " × ".join(map(_bare, labels))


def variant_labels(record: StudyRecord) -> dict[str, str]:
    """Every variant in words, by its name.

    Words tell what a variant changes in the base recipe, so they are used only if that is also how it differs from the
    reference: if the reference changes nothing, or the same fields. And only if they tell it from the other variants:
    two magnitudes of RandAugment are both `with RandAugment`.
    """
    if record.design in ("one_out", "one_in", "screening"):
        return {variant.name: _switched(record, variant.name) for variant in record.variants}
    reference = record.main.noise.reference
    fields: set[str] = next((set(one.overrides) for one in record.variants if one.name == reference), set())
    found = {
        variant.name: variant_label(variant.name, variant.overrides)
        if not fields or fields == set(variant.overrides)
        else _named(variant.name, variant.overrides)
        for variant in record.variants
    }
    others = [variant.overrides for variant in record.variants if variant.name != reference]
    if reference == "none" and not fields and others and all("augment.train" in changes for changes in others):
        found["none"] = "without augmentation"
    used = Counter(found.values())
    return {
        one.name: found[one.name] if used[found[one.name]] == 1 else _named(one.name, one.overrides)
        for one in record.variants
    }


def variant_label(name: str, overrides: Mapping[str, Any]) -> str:
    """A variant in words: `without augmentation`, `with MixUp`; its own name where its changes are many.

    >>> variant_label("none", {"augment.train": []})
    'without augmentation'
    >>> variant_label("both", {"augment.mix": {"mixup_alpha": 1.0}, "train.label_smoothing": 0.1})
    'with MixUp, CutMix and label smoothing 0.1'
    """
    parts: list[str] = []
    for field, value in overrides.items():
        found = _changes_of(field, value)
        unknown = field not in (*_FIELDS, "augment.train", "augment.mix") and not isinstance(value, Mapping | list)
        if not found and unknown and len(overrides) == 1:
            found = [f"with {field} {words(value)}"]
        if not found:
            return _named(name, overrides)
        parts += found
    return _together(parts) if 0 < len(parts) <= _MOST else _named(name, overrides)


def _named(name: str, overrides: Mapping[str, Any] | None = None) -> str:
    """A name of a study file in words: of a variant with what it changes, which may be no augmentation."""
    augments = bool(overrides) and all(field.startswith("augment.") for field in overrides or ())
    known = _NAMES.get(name) if augments or (name == "full" and overrides is not None) else None
    return known or name.replace("_", " ")


def _bare(label: str) -> str:
    """A label without its first word: `MixUp`, `no augmentation`."""
    for start, other in (("with ", ""), ("without ", "no "), ("in ", "")):
        if label.startswith(start):
            return other + label.removeprefix(start)
    return label


def _together(parts: Sequence[str]) -> str:
    """Several changes as one: `with A, B and C, without D`."""
    added = [part.removeprefix("with ") for part in parts if part.startswith("with ")]
    rest = [part for part in parts if not part.startswith("with ")]
    return ", ".join([f"with {listed(added)}", *rest] if added else rest)


def _contrast(record: StudyRecord, plus: str, minus: str) -> str:
    """`CutMix against MixUp`; if `plus` changes what `minus` does and more, what it adds to it."""
    labels, changes = variant_labels(record), {one.name: one.overrides for one in record.variants}
    first, second = (_bare(labels.get(name) or _named(name)) for name in (plus, minus))
    less, more = changes.get(minus, {}), changes.get(plus, {})
    added = {field: value for field, value in more.items() if field not in less}
    if less and added and all(more.get(field) == value for field, value in less.items()):
        return f"{_bare(variant_label(plus, added))}, added to {second}"
    return f"{first} against {second}"


def _levels(record: StudyRecord) -> dict[str, tuple[str, int]]:
    """The factor and the level of each effect of one factor: of two levels by its name, else `factor=level`."""
    found = {factor: (factor, 1) for factor in record.factors}
    named = record.factors.items()
    return found | {f"{factor}={label}": (factor, k) for factor, labels in named for k, label in enumerate(labels)}


def _level(record: StudyRecord, factor: str, level: int) -> str:
    """A factor's level in words; empty if there are none, or another level has the same."""
    words = _words_of_level(record, factor, level)
    others = (k for k in range(len(record.factors.get(factor, ()))) if k != level)
    return "" if any(_words_of_level(record, factor, k) == words for k in others) else words


def _words_of_level(record: StudyRecord, factor: str, level: int) -> str:
    """A factor's level in words, by the fields in which the variants with it differ from the others; empty if none."""
    on: list[Mapping[str, Any]] = []
    off: list[Mapping[str, Any]] = []
    for variant in record.variants:
        found = record.levels.get(variant.name, {}).get(factor)
        if found is not None:
            (on if found == level else off).append(variant.overrides)
    changed = {
        field: value
        for field, value in (on[0] if on and off else {}).items()
        if all(one.get(field) == value for one in on) and all(one.get(field) != value for one in off)
    }
    return variant_label("", changed)


def _switched(record: StudyRecord, name: str) -> str:
    """A variant of factors that are on or off: what is on, or what is off if all else is on."""
    levels = record.levels.get(name, {})
    on = [factor for factor, level in levels.items() if level]
    off = [factor for factor, level in levels.items() if not level]
    if not levels:
        return _named(name)
    if not on or not off:
        return "with all of them" if on else "with none of them"
    if len(off) == 1 and record.design == "one_out":
        return _level(record, off[0], 0) or _named(name)
    return f"with {' + '.join(_bare(_level(record, factor, 1) or _named(factor)) for factor in on)}"


def _changes_of(field: str, value: Any) -> list[str]:
    """What a field of a recipe changes, one part for each change; empty if it has no words."""
    last = field.rpartition(".")[2]
    if field == "augment.train":
        return _pipeline(value) if value else ["without augmentation"]
    if field == "augment.mix":
        return _mixing(value)
    if field.startswith("augment.train.") and field.count(".") == 2:
        part = _PARTS.get(last, last.replace("_", " "))
        return [f"without {part}" if value is None else f"with {part}"]
    try:
        return [_FIELDS[field](value)] if field in _FIELDS else []
    except (TypeError, ValueError):
        return []


def _pipeline(ops: Any) -> list[str]:
    if not isinstance(ops, list) or not all(isinstance(op, Mapping) and len(op) == 1 for op in ops):
        return []
    return [f"with {_PARTS.get(name, name.replace('_', ' '))}" for op in ops for name in op]


def _mixing(value: Any) -> list[str]:
    if not isinstance(value, Mapping) or finite(value.get("prob", 1.0)) == 0:
        return ["without mixing"]
    mix = {**MixSpec().model_dump(), **value}
    alphas = (("MixUp", mix["mixup_alpha"]), ("CutMix", mix["cutmix_alpha"]))
    until = finite(value.get("until", 1.0))
    end = [] if until is None or until >= 1 else [f"until {100 * until:g} %"]
    parts = [f"with {part}" for part, alpha in alphas if finite(alpha)]
    return parts + end if parts else ["without mixing"]
