"""The page of a study: its effects in words, a conclusion of three sentences, and the conditions of the runs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import Any

from kitae.console import data_name, listed, plural
from kitae.data.spec import SPLIT
from kitae.folders import SIGNS
from kitae.recipe import OPS_BY_NAME
from kitae.reporting import effects, study_charts
from kitae.reporting.effects import Analysis, Effect, interval, verdict
from kitae.reporting.study_labels import effect_label, variant_labels
from kitae.reporting.study_results import StudyRecord, Variant, study_of
from kitae.reporting.svg import Chart
from kitae.reporting.values import significant

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
# What `set` says about a study's own images does not hold for others.
_OF_THESE_IMAGES = frozenset({*SPLIT, "data.limit", "data.cache"})


def content(record: StudyRecord | None, folder: Path) -> dict[str, Any]:
    """The variables of study.html; `record` is None where the study has no result yet."""
    common: dict[str, Any] = {
        "over": "Study",
        "study": record,
        "commands": commands(record, folder, study_of(folder)),
        "asked": (folder / SIGNS["study"]).read_text(encoding="utf-8"),
    }
    if record is None:
        waiting = "This study is not finished: its effects have not been computed yet."
        return {**common, "title": folder.resolve().name, "subtitle": "", "warnings": [waiting], "answer": []}
    label, labels = partial(effect_label, record), variant_labels(record)
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
        "label": label,
        "variant_label": labels,
        "metric_label": metric_label,
        "words": effects,
        "compared": distinct(record, record.main.effects),
        "aliases": [
            (label(name), effects.aliased(parts, lambda a, b: label(f"{a} x {b}")))
            for name, parts in record.aliases.items()
        ],
        "sentences": _sentences(record),
        "curves": study_charts.curves(record, labels),
        "response": study_charts.response(record),
    }  # fmt: skip


def _sentences(record: StudyRecord) -> list[str]:
    """The sentences on the effects, with their labels, and the notes that follow them."""
    found, seeds, runs = record.main.effects, len(record.seeds), record.runs.planned
    told = []
    for place, effect in enumerate(found):
        label, recorded = effect_label(record, effect.name), record.sentences[place : place + 1]
        if effect.known or not recorded:
            told.append(effects.sentence(effect.model_copy(update={"name": label}), seeds, runs))
        else:  # only the study knew why there is no number
            told.append(label + recorded[0].removeprefix(effect.name))
    return [*told, *record.sentences[len(found) :]]


def _forest(record: StudyRecord, name: str, analysis: Analysis, place: str) -> Chart | None:
    what = metric_label(name) + ("" if analysis.ratio or not analysis.unit else f", {analysis.unit}")
    return study_charts.forest(analysis, partial(effect_label, record), what, place)


# --------------------------------------------------------------------------------------------------------------- words


def metric_label(name: str) -> str:
    """A metric in words."""
    return _METRICS.get(name) or name.replace("_", " ").replace(".", " ")


def answer(record: StudyRecord) -> list[str]:
    """Three sentences: what is shown, what is not, and where it holds."""
    every = distinct(record, record.main.ranked)
    known = [effect for effect in every if effect.known]
    if not known:
        return [f"Nothing can be said about {metric_label(record.metric)}: too few runs have it."]
    return [text for text in (_shown(record, known), _not_shown(record, every), regime(record)) if text]


def _pair(record: StudyRecord, name: str) -> frozenset[str]:
    """The two variants that an effect compares; of one that is an average over all runs, its name alone."""
    if name in record.contrasts:
        return frozenset(record.contrasts[name])
    words = {"compare": "", "sweep": "", "one_out": "without ", "one_in": "only "}  # as in `experiments.design`
    other = words[record.design] + name if record.design in words else ""
    known = any(variant.name == other for variant in record.variants)
    return frozenset((other, record.main.noise.reference)) if known else frozenset((name,))


def distinct(record: StudyRecord, found: Sequence[Effect]) -> list[Effect]:
    """The effects, in this order, each comparison once: of a pair that has two names, or is compared in both
    directions, the one that the study names first."""
    first: dict[frozenset[str], str] = {}
    for effect in record.main.effects:
        first.setdefault(_pair(record, effect.name), effect.name)
    return [effect for effect in found if first[_pair(record, effect.name)] == effect.name]


def _shown(record: StudyRecord, known: Sequence[Effect]) -> str:
    analysis, metric = record.main, metric_label(record.metric)
    shown = [effect for effect in known if effect.shown]
    tested = sum(effect.bounded for effect in known) or len(known)
    if not shown:
        base = _base(record, [effect for effect in known if _to_reference(record, effect)])
        if len(known) == 1:
            return f"{effect_label(record, known[0].name)}: no difference could be shown on {metric}{base}."
        return f"None of {tested} changes made a difference that could be shown on {metric}{base}."
    sided = [effect for effect in shown if effect.better]
    joint = [effect for effect in shown if effect.kind == "interaction"]
    good = sum(effect.helps for effect in sided)
    bad = len(sided) - good
    largest = max(shown, key=lambda effect: effect.size)
    named = [*sided[: good > 0], *sided[len(sided) - (bad > 0) :]] if analysis.better else [largest]
    base = _base(record, named)
    parts: list[str] = []

    def show(count: int) -> str:
        of_all = "" if parts else f" of {tested} comparisons"
        return f"{count}{of_all} {'shows' if count == 1 else 'show'}"

    def told(effect: Effect) -> str:
        own = "" if base or not _to_reference(record, effect) else _reference(record)
        span = f"{interval(effect)}; {own}" if own else interval(effect)
        return f"{effect_label(record, effect.name)}: {verdict(effect)} ({span})"

    def most(count: int) -> str:
        return "most of all " if count > 1 else ""

    if not analysis.better:
        return f"{show(len(shown))} a difference; the largest is {told(largest)}{base}."
    if good:
        parts.append(f"{show(good)} a gain, {most(good)}{told(sided[0])}")
    if bad:
        loss = "a loss, " if good else "a loss and none a gain; "
        parts.append(f"{show(bad)} {loss}{most(bad)}{told(sided[-1])}")
    if joint:
        one = "an interaction, " if len(joint) == 1 else "interactions, the largest "
        parts.append(f"{show(len(joint))} {one}{told(max(joint, key=lambda effect: effect.size))}")
    return f"{'; '.join(parts)}{base}."


def commands(record: StudyRecord | None, folder: Path, study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to do next: what a command is for, and the command; `study` as in study.yaml."""
    again = f"kitae study {shlex.quote(str(folder / 'study.yaml'))} --out {shlex.quote(str(folder))}"
    if record is None or record.runs.finished < record.runs.planned:
        return [("Resume it", again)]
    found = []
    variants = {variant.name: variant for variant in record.variants}
    best = next((one.name for one in record.main.ranked if one.shown and one.helps and one.name in variants), None)
    if best is not None and (line := _training(variants[best], study)):
        found.append((f"Train on your own images with what helped most: {variant_labels(record)[best]}", line))
    unclear = any(not effect.shown for effect in record.main.effects)
    seeds = [*record.seeds, *(max(record.seeds) + 1 + k for k in range(len(record.seeds)))]
    about = "Add seeds to decide the rest" if unclear else "Add seeds for narrower intervals"
    found.append((about, f"{again} --set {shlex.quote(f'study.seeds={json.dumps(seeds)}')}"))
    return found


def _training(best: Variant, study: Mapping[str, Any]) -> str:
    """The command that trains a variant on other images; empty if only its steps after training differ.

    Empty too if the base is a whole recipe, which has no name that a command could take.
    """
    base = study.get("base")
    own = {field: value for field, value in best.overrides.items() if not field.startswith("after.")}
    if not own or not isinstance(base, str):
        return ""
    shared = (study.get("set") or {}).items()  # `set:` alone is null
    general = {field: v for field, v in shared if not field.startswith("after.") and field not in _OF_THESE_IMAGES}
    # A whole pipeline comes before changes to its ops, as in the study.
    fields = sorted({**general, **own}.items(), key=lambda field: field[0].startswith(OPS_BY_NAME))
    sets = " ".join(shlex.quote(f"{field}={json.dumps(value, ensure_ascii=False)}") for field, value in fields)
    return f"kitae train DATA --recipe {shlex.quote(base)} --set {sets}"


def _base(record: StudyRecord, named: Sequence[Effect]) -> str:
    """The reference in brackets, where all the effects that a sentence names are differences from it."""
    told = _reference(record)
    return f" ({told})" if told and named and all(_to_reference(record, effect) for effect in named) else ""


def _to_reference(record: StudyRecord, effect: Effect) -> bool:
    """Whether an effect is a difference from the reference, not between other variants or on average over them."""
    pair = record.contrasts.get(effect.name)
    return effect.kind == "difference" and (pair is None or record.main.noise.reference in pair)


def _reference(record: StudyRecord) -> str:
    found, unit = record.main.noise, record.main.unit
    if math.isnan(found.reference_mean):
        return ""
    mean = found.reference_mean
    number = f"{mean:.1f} %" if unit == "points" else f"{significant(mean, 4)} {unit}".strip()
    return f"reference: {variant_labels(record).get(found.reference, found.reference)}, {number}"


def _not_shown(record: StudyRecord, every: Sequence[Effect]) -> str:
    unclear = [effect for effect in every if not effect.shown]  # also where too few runs finished
    widths = [(e.high - e.low) / 2 for e in every if e.bounded and not e.ratio]
    blind = ""
    if widths and record.main.unit == "points":
        least, seeds = median_high(widths), plural(len(record.seeds), "seed")
        blind = f" Differences below about {least:.1f} points cannot be seen with {seeds}."
    if not unclear:
        return f"Every comparison gave a clear answer.{blind}"
    if len(every) == 1:
        return blind.strip()
    names = [effect_label(record, effect.name) for effect in unclear]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"Not decided: {', '.join(names[:4])}{more}.{blind}"


def regime(record: StudyRecord) -> str:
    """Under which conditions all this was measured; what the variants differ in is told of all of them."""
    found, parts = record.settings, []
    if images := _values(record, "images", "data.limit"):
        parts.append(f"{_span(images)} training images of {data_name(str(found.get('source')))}")
    if models := _values(record, "model", "model.name"):
        widths = _values(record, "width", "model.width")
        parts.append(listed(models) + (f" of width {_span(widths)}" if widths else ""))
    if epochs := _values(record, "epochs", "train.epochs"):
        parts.append(plural(epochs[0], "epoch") if len(epochs) == 1 else f"{_span(epochs)} epochs")
    if sizes := _values(record, "batch_size", "train.batch_size"):
        parts.append(f"batches of {_span(sizes)}")
    if found.get("precision"):
        parts.append(f"trained in {found['precision']}")  # and evaluated in float32
    parts.append(plural(len(record.seeds), "seed"))
    return f"This holds for {', '.join(parts)}; other data or longer training may give other results."


def _values(record: StudyRecord, setting: str, field: str) -> list[Any]:
    """The values of a condition in the variants, each once; none if they are not known of all variants.

    Args:
        setting: its name in the settings, which are those of the reference.
        field: of the recipe, where a variant changes it.
    """
    common, reference = record.settings.get(setting), record.main.noise.reference
    sections = (field, *(field[:at] for at, letter in enumerate(field) if letter == "."))
    changed = {one.name for one in record.variants if not one.overrides.keys().isdisjoint(sections)}
    own = [one.overrides.get(field) if one.name in changed else common for one in record.variants] or [common]
    # What the base has is known from the reference, unless that changes it.
    known = reference not in changed or len(changed) == len(record.variants)
    kind = str if setting == "model" else int
    return list(dict.fromkeys(own)) if known and all(one and isinstance(one, kind) for one in own) else []


def _span(numbers: Sequence[int]) -> str:
    """`5,000`, `1,000 and 5,000`, or of more the lowest and the highest: `1,000 to 48,000`."""
    texts = [f"{number:,}" for number in sorted(numbers)]
    return listed(texts) if len(texts) < 3 else f"{texts[0]} to {texts[-1]}"
