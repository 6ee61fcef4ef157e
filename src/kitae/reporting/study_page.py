"""The page of a study: its effects in words, a conclusion of three sentences, and the conditions of the runs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import Any

import yaml

from kitae.augment.spec import MixSpec
from kitae.console import plural
from kitae.data.spec import SPLIT
from kitae.errors import KitaeError
from kitae.folders import SIGNS
from kitae.recipe import OPS_BY_NAME
from kitae.reporting import effects, study_charts
from kitae.reporting.effects import Analysis, Effect, measured
from kitae.reporting.study_results import StudyRecord, Variant
from kitae.reporting.svg import Chart
from kitae.reporting.values import finite, words

_METRICS = {
    "test.accuracy": "accuracy on test",
    "val.accuracy": "accuracy on validation",
    "test.balanced_accuracy": "balanced accuracy on test",
    "test.loss": "loss on test",
    "test.ece": "calibration error on test",
    "gap": "gap between train and validation",
    "epoch_seconds": "time of an epoch",
    "training_seconds": "time of training",
    "peak_memory_bytes": "peak memory",
}
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
# What `set` says about a study's own images does not hold for others.
_OF_THESE_IMAGES = frozenset({*SPLIT, "data.limit", "data.cache"})


def content(record: StudyRecord | None, folder: Path) -> dict[str, Any]:
    """The variables of study.html.

    Args:
        record: None where the study has no result yet.
    """
    try:
        asked = (folder / SIGNS["study"]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KitaeError(f"{folder / 'study.yaml'}: cannot be read ({error})") from error
    common: dict[str, Any] = {"over": "Study", "study": record, "asked": asked,
                              "commands": commands(record, folder, _study(asked))}  # fmt: skip
    if record is None:
        waiting = "This study is not finished: its effects have not been computed yet."
        return {**common, "title": folder.resolve().name, "subtitle": "", "warnings": [waiting], "answer": []}
    labels = variant_labels(record)
    failed, planned = len(record.runs.failed), record.runs.planned
    return {
        **common,
        "title": record.name,
        "subtitle": record.about,
        "warnings": [f"{failed} of {planned} runs did not finish and are not included below."] if failed else [],
        "answer": answer(record),
        "forest": _forest(record, record.metric, record.main, "effects-chart"),
        "forests": [
            (metric_label(name), _forest(record, name, one, f"effects-chart-{place}"), one)
            for place, (name, one) in enumerate(record.analyses.items()) if name != record.metric
        ],
        "label": partial(effect_label, record),
        "variant_label": labels,
        "metric_label": metric_label,
        "words": effects,
        "curves": study_charts.curves(record, labels),
        "response": study_charts.response(record),
    }  # fmt: skip


def _study(asked: str) -> Mapping[str, Any]:
    """The study in the text of study.yaml; empty if it is damaged."""
    try:
        study = yaml.safe_load(asked)["study"]
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        return {}
    return study if isinstance(study, Mapping) else {}


def _forest(record: StudyRecord, name: str, analysis: Analysis, place: str) -> Chart | None:
    what = metric_label(name) + ("" if analysis.ratio or not analysis.unit else f", {analysis.unit}")
    return study_charts.forest(analysis, partial(effect_label, record), what, place)


# --------------------------------------------------------------------------------------------------------------- words


def metric_label(name: str) -> str:
    """A metric in words."""
    return _METRICS.get(name) or name.replace("_", " ").replace(".", " ")


def effect_label(record: StudyRecord, effect: Effect) -> str:
    """What was changed: of a variant by its overrides, of a factor or contrast by its name."""
    if record.design in ("compare", "sweep"):
        return variant_labels(record).get(effect.name) or effect.name.replace("_", " ")
    return _factor_label(record, effect.name)


def _factor_label(record: StudyRecord, name: str) -> str:
    """A factor in words, by the one field in which the variants with it differ from those without; else its name."""
    on: list[Mapping[str, Any]] = []
    off: list[Mapping[str, Any]] = []
    for variant in record.variants:
        without = variant.name == f"without {name}"
        has = not without if record.design == "one_out" else name in variant.name.split(" + ")
        (on if has else off).append(variant.overrides)
    changed = {
        field: value
        for field, value in (on[0] if on and off else {}).items()
        if all(one.get(field) == value for one in on) and all(one.get(field) != value for one in off)
    }
    return variant_label(name, changed)


def variant_labels(record: StudyRecord) -> dict[str, str]:
    """Every variant in words, by its name.

    Words tell what a variant changes in the base recipe, so they are used only if that is also how it differs from the
    reference: if the reference changes nothing, or the same fields.
    """
    reference = record.main.noise.reference
    fields: set[str] = next((set(one.overrides) for one in record.variants if one.name == reference), set())
    return {
        variant.name: variant_label(variant.name, variant.overrides)
        if not fields or fields == set(variant.overrides)
        else variant.name.replace("_", " ")
        for variant in record.variants
    }


def variant_label(name: str, overrides: Mapping[str, Any]) -> str:
    """A variant in words: `without augmentation`, `with MixUp`; its own name where its changes are many.

    >>> variant_label("none", {"augment.train": []})
    'without augmentation'
    """
    if len(overrides) != 1:
        return name.replace("_", " ")
    ((field, value),) = overrides.items()
    last = field.rpartition(".")[2]
    if field == "augment.train":
        return _pipeline(name, value) if value else "without augmentation"
    if field == "augment.mix":
        return _mixing(value)
    if field.startswith("augment.train."):
        part = _PARTS.get(last, last.replace("_", " "))
        return f"without {part}" if value is None else f"with {part}"
    known: dict[str, Callable[[Any], str]] = {
        "train.label_smoothing": lambda v: f"with label smoothing {v:g}" if v else "without label smoothing",
        "train.schedule.name": lambda v: "with a constant learning rate" if v == "constant"
        else f"with a {str(v).replace('_', ' ')} schedule",
        "train.ema": lambda v: "without averaged weights" if v is None else f"with averaged weights ({v:g})",
        "train.precision": lambda v: f"in {v}",
        "model.stochastic_depth": lambda v: f"with stochastic depth {v:g}" if v else "without stochastic depth",
        "data.limit": lambda v: f"with {v:,} images",
        "train.epochs": lambda v: f"with {plural(v, 'epoch')}",
    }  # fmt: skip
    try:
        if field in known:
            return known[field](value)
    except (TypeError, ValueError):
        return name
    return name.replace("_", " ") if isinstance(value, Mapping | list) else f"with {field} {words(value)}"


def _pipeline(name: str, ops: Any) -> str:
    """A pipeline of up to three ops in words; a longer one by its name."""
    if not isinstance(ops, list) or len(ops) > 3 or not all(isinstance(op, Mapping) and len(op) == 1 for op in ops):
        return name.replace("_", " ")
    *parts, last = (_PARTS.get(op_name, op_name.replace("_", " ")) for op in ops for op_name in op)
    return f"with {', '.join(parts)} and {last}" if parts else f"with {last}"


def _mixing(value: Any) -> str:
    if not isinstance(value, Mapping) or finite(value.get("prob", 1.0)) == 0:
        return "without mixing"
    mix = {**MixSpec().model_dump(), **value}
    alphas = (("MixUp", mix["mixup_alpha"]), ("CutMix", mix["cutmix_alpha"]))
    parts = [part for part, alpha in alphas if finite(alpha)]
    return f"with {' and '.join(parts)}" if parts else "without mixing"


def answer(record: StudyRecord) -> list[str]:
    """Three sentences: what is shown, what is not, and where it holds."""
    analysis = record.main
    known = [effect for effect in analysis.ranked if effect.known]
    if not known:
        return [f"Nothing can be said about {metric_label(record.metric)}: too few runs have it."]
    return [text for text in (_shown(record, known), _not_shown(record, known), regime(record)) if text]


def _shown(record: StudyRecord, known: Sequence[Effect]) -> str:
    analysis, metric, base = record.main, metric_label(record.metric), _base(record)
    shown = [effect for effect in known if effect.shown]
    tested = sum(effect.bounded for effect in known) or len(known)
    if not shown and len(known) == 1:
        return f"{effect_label(record, known[0])}: no difference could be shown on {metric}{base}."
    if not shown:
        return f"None of {tested} changes made a difference that could be shown on {metric}{base}."
    good = sum(effect.helps for effect in shown)
    bad = len(shown) - good

    def show(count: int) -> str:
        return f"{count} of {tested} comparisons {'shows' if count == 1 else 'show'}"

    def told(effect: Effect) -> str:
        return f"{effect_label(record, effect)}: {measured(effect)}"

    def most(count: int) -> str:
        return "most of all " if count > 1 else ""

    best, worst = f"{most(good)}{told(shown[0])}", f"{most(bad)}{told(shown[-1])}"
    if not analysis.better:
        largest = max(shown, key=lambda effect: effect.size)
        text = f"{show(len(shown))} a difference; the largest is {told(largest)}"
    elif not bad:
        text = f"{show(good)} a gain, {best}"
    elif not good:
        text = f"{show(bad)} a loss and none a gain; {worst}"
    else:
        loss = f"{bad} {'shows' if bad == 1 else 'show'} a loss, {worst}"
        text = f"{show(good)} a gain, {best}; {loss}"
    return f"{text}{base}."


def commands(record: StudyRecord | None, folder: Path, study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to do next: what a command is for, and the command; `study` as in study.yaml."""
    again = f"kitae study {shlex.quote(str(folder / 'study.yaml'))} --out {shlex.quote(str(folder))}"
    if record is None or record.runs.finished < record.runs.planned:
        return [("Resume it", again)]
    found = []
    best = _most_helpful(record)
    if best is not None and (line := _training(best, study)):
        found.append((f"Train on your own images with what helped most: {variant_labels(record)[best.name]}", line))
    if record.seeds:
        unclear = any(not effect.shown for effect in record.main.effects)
        seeds = [*record.seeds, *(max(record.seeds) + 1 + k for k in range(len(record.seeds)))]
        about = "Add seeds to decide the rest" if unclear else "Add seeds for narrower intervals"
        found.append((about, f"{again} --set {shlex.quote(f'study.seeds={json.dumps(seeds)}')}"))
    return found


def _training(best: Variant, study: Mapping[str, Any]) -> str:
    """The command that trains a variant on other images; empty if only its steps after training differ.

    Empty too if the base is a whole recipe, which has no name that a command could take.
    """
    base, shared = study.get("base"), study.get("set")
    own = {field: value for field, value in best.overrides.items() if not field.startswith("after.")}
    if not own or not isinstance(base, str) or not isinstance(shared, Mapping):
        return ""
    general = {f: v for f, v in shared.items() if not f.startswith("after.") and f not in _OF_THESE_IMAGES}
    # A whole pipeline comes before changes to its ops, as in the study.
    fields = sorted({**general, **own}.items(), key=lambda field: field[0].startswith(OPS_BY_NAME))
    sets = " ".join(shlex.quote(f"{field}={json.dumps(value, ensure_ascii=False)}") for field, value in fields)
    return f"kitae train DATA --recipe {shlex.quote(base)} --set {sets}"


def _most_helpful(record: StudyRecord) -> Variant | None:
    """The variant with the largest gain over the reference that is shown."""
    variants = {variant.name: variant for variant in record.variants}
    helps = [one.name for one in record.main.ranked if one.shown and one.helps and one.name in variants]
    return variants[helps[0]] if helps else None


def _base(record: StudyRecord) -> str:
    found, unit = record.main.noise, record.main.unit
    if math.isnan(found.reference_mean):
        return ""
    number = f"{found.reference_mean:.1f} %" if unit == "points" else f"{found.reference_mean:.4g} {unit}".strip()
    return f" (reference: {variant_labels(record).get(found.reference, found.reference)}, {number})"


def _not_shown(record: StudyRecord, known: Sequence[Effect]) -> str:
    unclear = [effect for effect in known if not effect.shown]
    widths = [(e.high - e.low) / 2 for e in known if e.bounded and not e.ratio]
    blind = ""
    if widths and record.main.unit == "points":
        least, seeds = median_high(widths), plural(len(record.seeds), "seed")
        blind = f" Differences below about {least:.1f} points cannot be seen with {seeds}."
    if not unclear:
        return f"Every comparison gave a clear answer.{blind}"
    if len(known) == 1:
        return blind.strip()
    names = [effect_label(record, effect) for effect in unclear]
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"Not decided: {listed}.{blind}"


def regime(record: StudyRecord) -> str:
    """Under which conditions all this was measured."""
    found, parts = record.settings, []
    if isinstance(found.get("images"), int):
        parts.append(f"{found['images']:,} training images of {found.get('source')}")
    if found.get("model"):
        width = f" of width {found['width']}" if found.get("width") else ""
        parts.append(f"{found['model']}{width}")
    if isinstance(found.get("epochs"), int):
        parts.append(plural(found["epochs"], "epoch"))
    if found.get("batch_size"):
        parts.append(f"batches of {found['batch_size']}")
    if found.get("precision"):
        parts.append(f"trained in {found['precision']}")  # and evaluated in float32
    if record.seeds:
        parts.append(plural(len(record.seeds), "seed"))
    return f"This holds for {', '.join(parts)}; other data or longer training may give other results." if parts else ""
