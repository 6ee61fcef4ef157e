"""The report: one HTML file of a run, a study or a compression.

Everything is inside the file (style, pictures as data URIs), so it works offline, can be mailed, and asks nothing of
anybody. Every string that came from data is escaped by the template, which runs no script; a Content-Security-Policy
forbids what should have slipped through. Pages are built from a few plain blocks that one template lays out.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from kitae import __version__
from kitae.console import change, duration, lost
from kitae.errors import KitaeError, require
from kitae.files import write_atomically
from kitae.reporting.figures import draw_compression, draw_run, predictions
from kitae.reporting.style import size_text
from kitae.run import Run

_MAX_ROWS = 2000  # of one table; a page must stay a page
_MAX_PICTURES, _MAX_PICTURE_BYTES = 60, 20_000_000
_MAX_JSON_BYTES = 100_000_000


# -------------------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Text:
    """A paragraph; tone is a class of the style sheet: muted or warn."""

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""


Cell = str | tuple[str, str]


@dataclass(frozen=True)
class Table:
    """Cells of text, or of text and a quieter note; columns from number `right` on are aligned right."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    right: int = 1


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Figure:
    """A PNG inside the page; a wide one scrolls sideways on a phone."""

    kind: ClassVar[str] = "figure"
    source: str
    width: int
    height: int
    alt: str
    caption: str = ""

    @property
    def wide(self) -> bool:
        return self.width > 1200


@dataclass(frozen=True)
class Details:
    """Blocks behind a line that opens."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence[Block]


Block = Text | Table | Code | Figure | Details


@dataclass(frozen=True)
class Card:
    """One headline number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass
class Page:
    """What the template is given."""

    over: str
    title: str
    subtitle: str = ""
    warnings: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def add(self, title: str, *blocks: Block | None) -> None:
        """Append a section, unless all its blocks are None."""
        there = [block for block in blocks if block is not None]
        if there:
            self.sections.append(Section(title, there))


# -------------------------------------------------------------------------------------------------------------- report


def report(target: Run | str | Path) -> Path:
    """Write report.html into the folder of a run, a study or a compression, and draw its figures.

    A run that is still training gives a page of what is known by now, which says so.

    Args:
        target: a Run, or a folder; what it is, is told from its files.

    Returns:
        The path of the page.

    Raises:
        KitaeError: nothing of ours there, a damaged file, or no permission to write.
    """
    if isinstance(target, Run):
        return _write(run_page(target), target.report)
    folder = Path(target)
    if not folder.is_dir():
        raise KitaeError(f"{folder}: no such folder; give the folder of a run, a study or a compression")
    if (folder / "compression.json").is_file():
        return _write(compression_page(folder), folder / "report.html")
    if (folder / "study.yaml").is_file():
        return _write(study_page(folder), folder / "report.html")
    if (folder / "recipe.yaml").is_file():
        return report(Run.open(folder))
    raise KitaeError(
        f"{folder}: neither a run, a study nor a compression (it has no recipe.yaml, study.yaml or compression.json)"
    )


def _write(page: Page, path: Path) -> Path:
    write_atomically(path, render(page).encode())
    return path


def render(page: Page) -> str:
    """The HTML of a page."""
    jinja2 = require("jinja2", "train")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kitae.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text: str = environment.get_template("report.html.j2").render(page=page, version=__version__, when=when)
    return text


# --------------------------------------------------------------------------------------------------------------- a run


def run_page(run: Run) -> Page:
    """The page of a run, finished or not; draws the run's figures."""
    rows = run.metrics()
    evaluation = run.evaluation() if run.finished else {}
    recipe = run.recipe
    pictures = {name: picture(path) for name, path in draw_run(run, evaluation).items()}
    page = Page("Training run", recipe.name, f"{recipe.model.name} on {recipe.data.source}")
    best = run.best_epoch()
    if not run.finished:
        done = f"{len(rows)} of {recipe.train.epochs} epochs are done"
        page.warnings.append(f"This run is not finished: {done}. It was not tested; numbers below are from validation.")
    page.cards = _run_cards(run, rows, evaluation, best)

    page.add("Results", _headline(evaluation), _openings(run))
    page.add(
        "Training",
        _figure(pictures, "curves", "Loss, accuracy and learning rate over the epochs", _curve_caption(rows, recipe)),
        Details("Every epoch", [_epochs(rows)]) if rows else Text("No epoch has ended yet.", "muted"),
    )
    split = "test" if "test" in evaluation else "val"
    measured = evaluation.get(split, {})
    page.add(
        "Confusion",
        _figure(pictures, "confusion", "Confusion matrix, true classes in rows, predicted in columns"),
        _confused(measured),
    )
    per_class = _per_class(measured)
    page.add(
        "Classes",
        _figure(pictures, "per_class", "Accuracy of each class with its 95 % interval"),
        None if per_class is None else Details(f"All {len(per_class.rows)} classes as a table", [per_class]),
    )
    page.add(
        "Calibration",
        _figure(
            pictures, "calibration", "Accuracy against confidence",
            "Bars below the diagonal: the model is surer than it is right. The temperature was fitted on validation.",
        ),
    )  # fmt: skip
    page.add(
        "Mistakes",
        _figure(pictures, "mistakes", "The images the model was surest about and got wrong"),
        _worst(run, evaluation),
    )
    page.add("Label smoothing", _figure(pictures, "smoothing", "Hard and smoothed targets, and their losses"))
    page.add("Recipe and machine", Details("Recipe (YAML)", [Code(recipe.to_yaml())]), _environment(run))
    return page


def _run_cards(
    run: Run, rows: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any], best: int | None
) -> list[Card]:
    cards = []
    if "test" in evaluation:
        test, val = evaluation["test"], evaluation.get("val", {})
        cards.append(Card("Test accuracy", share(test.get("accuracy")), between(test.get("accuracy_interval"), 100)))
        cards.append(
            Card("Validation accuracy", share(val.get("accuracy")), between(val.get("accuracy_interval"), 100))
        )
        cards.append(Card("Calibration error", share(test.get("ece"), 2), between(test.get("ece_interval"), 100, 2)))
    elif best is not None:
        row = next((row for row in rows if row.get("epoch") == best), {})
        cards.append(Card("Validation accuracy, best so far", share(row.get("val_accuracy")), f"epoch {best}"))
    facts = _or_empty(run.facts)
    if "parameters" in facts:
        macs = facts.get("macs")
        note = f"{count(macs)} multiply-adds an image" if macs else ""
        cards.append(Card("Parameters", count(facts["parameters"]), note))
    if rows:
        seconds = sum(_number(row.get("seconds")) or 0.0 for row in rows)
        speeds = sorted(v for v in (_number(row.get("images_per_second")) for row in rows) if v is not None)
        note = f"{speeds[len(speeds) // 2]:,.0f} images/s" if speeds else ""
        cards.append(Card("Training time", duration(seconds), note))
        of = f"of {len(rows)}" if run.finished else f"of {run.recipe.train.epochs} planned"
        cards.append(
            Card("Best epoch" if run.finished else "Epochs done", str(best if run.finished else len(rows)), of)
        )
    times = run.test_openings
    cards.append(Card("Test set opened", f"{times} time{'' if times == 1 else 's'}", _opening_note(times)))
    return cards


def _opening_note(times: int) -> str:
    return {0: "nothing was chosen on it", 1: "once, at the end"}.get(times, "each is counted")


_HEADLINES = (
    ("accuracy", "Accuracy", 100, " %"),
    ("top5", "Top-5 accuracy", 100, " %"),
    ("balanced_accuracy", "Balanced accuracy", 100, " %"),
    ("loss", "Loss (negative log-likelihood)", 1, ""),
    ("brier", "Brier score", 1, ""),
    ("ece", "Expected calibration error", 100, " %"),
)


def _headline(evaluation: Mapping[str, Any]) -> Table | None:
    """Every headline metric of every split that was measured, with its interval."""
    splits = [(name, evaluation[key]) for key, name in (("test", "Test"), ("val", "Validation")) if key in evaluation]
    if not splits:
        return None
    rows: list[list[Cell]] = []
    for key, label, scale, unit in _HEADLINES:
        cells: list[Cell] = []
        for _, measured in splits:
            value, digits = _number(measured.get(key)), 2 if scale == 100 else 4
            interval = between(measured.get(f"{key}_interval"), scale, digits)
            cells.append("–" if value is None else (f"{value * scale:.{digits}f}{unit}", interval))
        if any(cell != "–" for cell in cells):
            rows.append([label, *cells])
    rows.append(["Images", *(count(measured.get("count"), exact=True) for _, measured in splits)])
    settings = []
    if _number(evaluation.get("temperature")) is not None:
        settings.append(f"temperature {evaluation['temperature']:.3f}")
    settings += [
        f"{name} {evaluation[name]}" for name in ("precision", "tta") if evaluation.get(name, "none") != "none"
    ]
    covers = splits[0][1].get("intervals", {}).get("covers")
    caption = (
        "95 % intervals" + (f" cover {covers}" if covers else "") + (f"; {', '.join(settings)}." if settings else ".")
    )
    return Table(["", *(name for name, _ in splits)], rows, caption)


def _openings(run: Run) -> Text:
    times = run.test_openings
    if times == 0:
        return Text("The test set has not been opened: no choice and no number here comes from it.", "muted")
    if times == 1:
        return Text("The test set was opened once, after all choices were made on validation.", "muted")
    return Text(
        f"The test set was opened {times} times. Choosing between models by these numbers would make them too good.",
        "muted",
    )


def _curve_caption(rows: Sequence[Mapping[str, Any]], recipe: Any) -> str:
    parts = []
    if recipe.augment.train or recipe.augment.mix:
        parts.append("Training accuracy is on augmented images, so it may lie below validation.")
    last = rows[-1] if rows else {}
    clean, val = _number(last.get("train_clean_accuracy")), _number(last.get("val_accuracy"))
    if clean is not None and val is not None:
        parts.append(f"Train-validation gap at the end: {100 * (clean - val):+.1f} points.")
    return " ".join(parts)


def _epochs(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = []
    for i, row in enumerate(rows):
        table.append(
            [
                str(row.get("epoch", i + 1)),
                *(decimal(row.get(key), 4) for key in ("train_loss", "val_loss")),
                *(share(row.get(key)) for key in ("train_accuracy", "train_clean_accuracy", "val_accuracy")),
                decimal(row.get("learning_rate"), 3, significant=True),
                decimal(row.get("images_per_second"), 0),
                decimal(row.get("seconds"), 1),
                share(row.get("data_share")),
                size_text(memory) if (memory := _number(row.get("peak_memory_bytes"))) else "–",
            ]
        )
    columns = ["Epoch", "Train loss", "Val loss", "Train accuracy", "Clean train accuracy", "Val accuracy",
               "Learning rate", "Images/s", "Seconds", "Waiting for data", "Peak memory"]  # fmt: skip
    return Table(columns, table[-_MAX_ROWS:])


def _confused(measured: Mapping[str, Any], most: int = 10) -> Table | None:
    """The pairs of classes that are mistaken most often."""
    confusion, names = measured.get("confusion"), list(measured.get("per_class", {}))
    if not confusion or len(names) != len(confusion):
        return None
    pairs = [
        (value, i, j) for i, row in enumerate(confusion) for j, value in enumerate(row) if i != j and value > 0
    ]  # fmt: skip
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    rows: list[list[Cell]] = [
        [names[i], names[j], (str(value), f"{share(value / sum(confusion[i]))} of the class")]
        for value, i, j in pairs[:most]
    ]
    return Table(["True", "Predicted", "Images"], rows, "Most frequent mistakes", right=2) if rows else None


def _per_class(measured: Mapping[str, Any]) -> Table | None:
    rows: list[list[Cell]] = [
        [
            str(name),
            (share(row.get("accuracy")), between(row.get("accuracy_interval"), 100)),
            count(row.get("count"), exact=True),
        ]
        for name, row in measured.get("per_class", {}).items()
    ]
    return Table(["Class", "Accuracy", "Images"], rows[:_MAX_ROWS]) if rows else None


def _worst(run: Run, evaluation: Mapping[str, Any], most: int = 20) -> Details | None:
    """Names of the images the model was surest about and got wrong."""
    known = predictions(run) if "test" in evaluation else None
    if known is None:
        return None
    table = known.select(["name", "label", "predicted", "confidence"]).to_pylist()
    wrong = [row for row in table if row["label"] is not None and row["label"] != row["predicted"]]
    wrong.sort(key=lambda row: -row["confidence"])
    rows: list[list[Cell]] = [
        [row["name"], row["label"], (row["predicted"], share(row["confidence"]))] for row in wrong[:most]
    ]
    if not rows:
        return None
    block = Table(["Image", "True", "Predicted"], rows, f"{len(wrong)} mistakes in {len(table)} images", 3)
    return Details(f"The {len(rows)} most confident mistakes by name", [block])


def _environment(run: Run) -> Details | None:
    facts = _or_empty(run.environment)
    if not facts:
        return None
    return Details("Machine and versions", [Table(["", ""], _pairs(facts), right=2)])


# ------------------------------------------------------------------------------------------------------------- a study


def study_page(folder: Path) -> Page:
    """The page of a study folder: what was asked before the first run, what it shows, its pictures."""
    text = _text(folder / "study.yaml")
    results = folder / "effects.json"
    study = _mapping(results) if results.is_file() else {}
    page = Page("Study", str(study.get("name") or folder.resolve().name), str(study.get("about") or ""))
    asked = Details("study.yaml, written down before the first run", [Code(text)])
    if not study:
        page.warnings.append("This study is not finished: its effects have not been worked out yet.")
        page.add("Pictures", *_pictures(folder))
        page.add("What was asked", asked)
        return page

    main, analyses = str(study.get("metric")), _inner(study, "analyses")
    runs, failed = _inner(study, "runs"), _inner(study, "runs").get("failed") or []
    if failed:
        planned = runs.get("planned")
        page.warnings.append(f"{len(failed)} of {planned} runs did not finish; they are in no number below.")
    page.cards = _study_cards(study, main)
    page.add("What it shows", *(Text(str(line)) for line in study.get("sentences") or []), _claims(study))
    if main in analyses:
        page.add("Effects", _effects(main, analyses[main]), Text(_noise(analyses[main]), "muted"))
    page.add("Pictures", *_pictures(folder))
    page.add(
        "Other numbers",
        *(
            Details(name, [_effects(name, one), Text(_noise(one), "muted")])
            for name, one in analyses.items()
            if name != main
        ),
    )
    page.add("Variants", _variants(study, main), _aliases(study))
    if failed:
        page.add("Runs that did not finish", _rows_table(failed))
    page.add(
        "What was asked", asked, Details("Machine and settings", [Table(["", ""], _pairs(_inner(study, "settings")))])
    )
    return page


def _study_cards(study: Mapping[str, Any], main: str) -> list[Card]:
    one, runs = _inner(study, "analyses").get(main, {}), _inner(study, "runs")
    noise, seeds = _inner(one, "noise"), study.get("seeds") or []
    effects = one.get("effects") or []
    shown = sum(bool(effect.get("shown")) for effect in effects)
    cards = [Card("Effects shown", f"{shown} of {len(effects)}", f"on {main}, after Holm's correction")]
    if _number(noise.get("reference_mean")) is not None:
        spread = _number(noise.get("reference_sd"))
        note = str(noise.get("reference")) + (f", ± {spread:.2f} over seeds" if spread is not None else "")
        cards.append(Card("Reference", f"{noise['reference_mean']:.4g} {one.get('unit') or ''}".strip(), note))
    cards.append(
        Card("Runs", f"{runs.get('finished')} of {runs.get('planned')}", f"{len(seeds)} seeds, {study.get('design')}")
    )
    hours = _number(_inner(study, "settings").get("training_hours"))
    if hours is not None:
        cards.append(Card("Training time", duration(hours * 3600), "all runs together"))
    return cards


def _effects(name: str, analysis: Mapping[str, Any]) -> Table:
    """Each effect with its interval, its p after Holm, and on how many pairs it stands."""
    unit = str(analysis.get("unit") or "")
    rows: list[list[Cell]] = []
    covers = "seeds"
    for effect in analysis.get("effects") or []:
        ratio = bool(effect.get("ratio"))
        covers = effect.get("covers") or covers
        ends = [_amount(effect.get(end), ratio) for end in ("low", "high")]
        interval = "no interval" if "–" in ends else " to ".join(ends)
        p = _number(effect.get("p_holm"))
        told = "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
        rows.append(
            [
                f"{effect.get('name')}{'*' if effect.get('uneven') else ''}",
                (_amount(effect.get("estimate"), ratio), interval),
                (told, f"n = {effect.get('pairs')}"),
                "yes" if effect.get("shown") else "no",
            ]
        )
    caption = f"{name}{f', in {unit}' if unit else ''}; 95 % intervals covering {covers}, p after Holm's correction."
    if any(str(row[0]).endswith("*") for row in rows):
        caption += " * scatters more than the other variants, so its interval is from its own pairs."
    return Table(["Effect", "Estimate", "p", "Shown"], rows, caption)


def _amount(value: Any, ratio: bool) -> str:
    known = _number(value)
    return (
        "–"
        if known is None
        else f"× {known:.2f}"
        if ratio
        else f"{known:+.2f}"
        if abs(known) >= 0.1
        else f"{known:+.3f}"
    )


def _noise(analysis: Mapping[str, Any]) -> str:
    noise = _inner(analysis, "noise")
    ratio = any(effect.get("ratio") for effect in analysis.get("effects") or [])
    unit, scale = ("%", 100.0) if ratio else (str(analysis.get("unit") or ""), 1.0)
    sd = _number(noise.get("sd"))
    if sd is None or not noise.get("df"):
        return "Noise between runs: not known; more seeds are needed."
    interval = between([noise.get("low"), noise.get("high")], scale, 2)
    return (
        f"Noise: runs that differ in nothing but the seed scatter by {sd * scale:.2f} {unit} (standard deviation, "
        f"{interval}, {noise['df']} degrees of freedom)."
    )


def _claims(study: Mapping[str, Any]) -> Table | None:
    rows: list[list[Cell]] = []
    for claim in study.get("claims") or []:
        ratio = bool(claim.get("ratio"))
        ends = [_amount(claim.get(end), ratio) for end in ("low", "high")]
        measured = (_amount(claim.get("estimate"), ratio), "" if "–" in ends else " to ".join(ends))
        rows.append([str(claim.get("says")), measured, (str(claim.get("verdict")), str(claim.get("remark") or ""))])
    return (
        Table(["Claim", "Measured", "Verdict"], rows, "Claims written down before the first run", 3) if rows else None
    )


def _variants(study: Mapping[str, Any], main: str) -> Table | None:
    variants = study.get("variants") or []
    if not variants:
        return None
    names = [main, *(name for name in _inner(study, "analyses") if name != main)]
    rows: list[list[Cell]] = []
    for variant in variants:
        row: list[Cell] = [str(variant.get("name")), str(variant.get("runs"))]
        for name in names:
            number = _inner(_inner(variant, "numbers"), name)
            sd = _number(number.get("sd"))
            row.append((decimal(number.get("mean"), 4, significant=True), f"± {sd:.2g}" if sd is not None else ""))
        rows.append(row)
    units = {name: str(_inner(_inner(study, "analyses"), name).get("unit") or "") for name in names}
    heads = [f"{name} ({units[name]})" if units[name] else name for name in names]
    return Table(["Variant", "n", *heads], rows, "Means over seeds and their standard deviation")


def _aliases(study: Mapping[str, Any]) -> Details | None:
    """What the effects of a screening design are mixed with."""
    rows = []
    for name, parts in _inner(study, "aliases").items():
        mixed = [f"{'−' if c < 0 else '+'}{abs(c):.2g} {a} × {b}" for a, b, c in parts]
        rows.append([str(name), ", ".join(mixed) or "clear"])
    if not rows:
        return None
    caption = "Each effect also holds these parts of two-factor interactions, if there are any."
    return Details("Aliases", [Table(["Effect", "Mixed with"], rows, caption, right=2)])


# ------------------------------------------------------------------------------------------------------- a compression


_COMPRESSION_FACTS = {
    "format", "kitae", "run", "recipe", "spec", "machine", "images", "within_budget", "why_not", "stopped", "left_out",
    "baseline", "winner", "size", "smaller", "faster", "test", "latency", "candidates", "sensitivity",
}  # fmt: skip
_COMPRESSION_PICTURES = {
    "pareto": ("Every candidate by size and accuracy", "Accuracy is on validation, on which the choice was made."),
    "sparsity": ("Accuracy against the share of weights removed", "On validation, before any rounding to 8 bits."),
    "latency": ("Time of one image, of every candidate", ""),
    "filters": ("The first layer's filters, and which of them were kept", ""),
}
_CLOSEST = {"pareto": (_COMPRESSION_PICTURES["pareto"][0], "On validation. Nothing was within the budget: the star is "
                       "the closest.")}  # fmt: skip


def compression_page(folder: Path) -> Page:
    """The page of a compression folder: what was won and lost, every candidate, and how it was measured.

    compression.json is read as `kitae.pipelines.compress` writes it. What a later version adds to it is shown under
    its own name; a file without the parts that every compression has is refused, for a page without numbers would
    look like a result.

    Raises:
        KitaeError: the file is damaged, or was not written by `kitae compress`.
    """
    path = folder / "compression.json"
    facts = _mapping(path)
    for name in ("spec", "baseline", "winner"):
        if not _inner(facts, name):
            raise KitaeError(f"{path}: has no `{name}`, so it was not written by kitae compress")
    if not _records(facts.get("candidates")):
        raise KitaeError(f"{path}: has no `candidates`, so it was not written by kitae compress")
    winner, rows = _inner(facts, "winner"), facts["candidates"]
    page = Page("Compression", str(facts.get("run") or folder.resolve().name))
    page.subtitle = f"{winner.get('name')}{'' if _within(facts) else ', the closest to the budget'}"
    if facts.get("recipe"):
        page.subtitle += f", from a run of {facts['recipe']}"
    page.warnings = _compression_warnings(facts)
    page.cards = _compression_cards(facts)
    page.add("Result", Text(_budget(facts)), _side_by_side(facts), Text(_judged_on(facts), "muted"))
    _draw_missing_front(folder, facts)
    page.add("Pictures", *_pictures(folder, {**_COMPRESSION_PICTURES, **({} if _within(facts) else _CLOSEST)}))
    left_out = [[str(item.get("name")), str(item.get("why"))] for item in _listed(facts, "left_out")]
    page.add(
        "Candidates",
        _candidates(facts),
        Text(_timing(facts), "muted"),
        Text(f"{str(facts['stopped'])[:1].upper()}{str(facts['stopped'])[1:]}.") if facts.get("stopped") else None,
        Table(["Left out", "Why"], left_out, "Could not be had:", right=2) if left_out else None,
        Details("Every number of every candidate", [_rows_table(rows)]),
    )
    page.add("Sensitive layers", _sensitive(facts))
    spec, machine = _inner(facts, "spec"), _inner(facts, "machine")
    page.add(
        "Settings and machine",
        Text(_measured_by(facts)),
        Details("Budget and settings", [Table(["", ""], _pairs(spec))]),
        Details("Machine and versions", [Table(["", ""], _pairs(machine))]) if machine else None,
    )
    others = {key: value for key, value in facts.items() if key not in _COMPRESSION_FACTS}
    flat = {key: value for key, value in others.items() if not _nested(value)}
    page.add("More", Table(["", ""], _pairs(flat)) if flat else None)
    for key, value in others.items():
        if _nested(value):
            page.add(key.replace("_", " ").capitalize(), *_tables(value))
    return page


def _within(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("within_budget"))


def _size_of(facts: Mapping[str, Any]) -> str:
    """The number by which small was judged: packed, where pruning leaves zeros in the file."""
    return str(facts.get("size") or "bytes")


def _points(value: Any) -> str:
    known = _number(value)
    return "–" if known is None else f"{known:.2f} point{'' if f'{abs(known):.2f}' == '1.00' else 's'}"


def _compression_warnings(facts: Mapping[str, Any]) -> list[str]:
    warnings = []
    if not _within(facts):
        why = str(facts.get("why_not") or "exceeds it")
        warnings.append(
            f"No candidate is within the budget. The closest, {_inner(facts, 'winner').get('name')}, {why}; it is kept "
            "as closest.onnx."
        )
    test = _inner(facts, "test")
    if test and not test.get("within_budget"):
        allowed = _number(_inner(facts, "spec").get("max_drop"))
        budget = "the budget" if allowed is None else f"the budget of {allowed:g}"
        warnings.append(
            f"{_inner(facts, 'winner').get('name')} is within the budget on validation, but on test it loses "
            f"{_points(test.get('drop'))}, more than {budget}."
        )
    return warnings


def _compression_cards(facts: Mapping[str, Any]) -> list[Card]:
    before, after, test = _inner(facts, "baseline"), _inner(facts, "winner"), _inner(facts, "test")
    size = _size_of(facts)
    cards = []
    if _number(facts.get("smaller")) is not None:
        packed = " when packed" if size == "packed_bytes" else ""
        note = f"{_text_of(_named(after, size))}{packed}, from {_text_of(_named(before, size))}"
        cards.append(Card(*_times(facts["smaller"], "Smaller", "Larger"), note))
    if _number(facts.get("faster")) is not None:
        note = f"{_text_of(_named(after, 'latency_ms'))} an image, from {_text_of(_named(before, 'latency_ms'))}"
        cards.append(Card(*_times(facts["faster"], "Faster", "Slower"), note))
    where, measured, original, drop = (
        ("test", _inner(test, "winner"), _inner(test, "baseline"), test)
        if test
        else ("validation", after, before, after)
    )
    interval = between(measured.get("accuracy_interval"), 100, 2)
    note = f"{f'{interval}, ' if interval else ''}original {share(original.get('accuracy'), 2)}"
    cards.append(Card(f"{where.capitalize()} accuracy", share(measured.get("accuracy"), 2), note))
    lost = _number(drop.get("drop"))
    interval = between(drop.get("drop_interval"), 1, 2)
    note = interval and f"{interval}{', below 0 is a gain' if str(interval).startswith('-') else ''}"
    cards.append(Card(f"Points lost on {where}", "–" if lost is None else f"{lost:z.2f}", note))
    return cards


def _times(ratio: Any, more: str, less: str) -> tuple[str, str]:
    """A factor above 1, and the word for which way it goes: (`Faster`, `2.1×`)."""
    known = _number(ratio)
    if known is None or known <= 0:
        return more, "–"
    factor, word = change(known, more, less)
    return word, f"{factor:.2f}×" if factor < 10 else f"{factor:.1f}×"


def _budget(facts: Mapping[str, Any]) -> str:
    """What was asked for, in one sentence, and what came of it."""
    spec = _inner(facts, "spec")
    asked = []
    if (drop := _number(spec.get("max_drop"))) is not None:
        asked.append(f"at most {drop:g} point{'' if drop == 1 else 's'} of accuracy lost")
    if (size := _number(spec.get("max_bytes"))) is not None:
        asked.append(f"at most {size:,.0f} bytes")
    if (limit := _number(spec.get("max_latency_ms"))) is not None:
        asked.append(f"at most {limit:g} ms an image")
    found = "The smallest file within it" if _within(facts) else "Nothing was within it; the closest"
    return f"The budget: {', '.join(asked) or 'none'}. {found}: {_inner(facts, 'winner').get('name')}."


_COMPARED = (
    ("bytes", "File", "smaller", "larger"),
    ("packed_bytes", "File, packed", "smaller", "larger"),
    ("latency_ms", "Latency of one image", "faster", "slower"),
    ("parameters", "Parameters", "fewer", "more"),
    ("nonzero", "Parameters that are not 0", "fewer", "more"),
    ("macs", "Multiply-adds", "fewer", "more"),
)


def _side_by_side(facts: Mapping[str, Any]) -> Table:
    """The original against the winner, a row a number."""
    before, after, test = _inner(facts, "baseline"), _inner(facts, "winner"), _inner(facts, "test")
    rows: list[list[Cell]] = [["Name", str(before.get("name")), str(after.get("name")), ""]]
    if test:
        sides = (_named(_inner(test, side), "accuracy") for side in ("baseline", "winner"))
        rows.append(["Accuracy on test", *sides, _lost(test)])
    rows.append(["Accuracy on validation", _named(before, "accuracy"), _named(after, "accuracy"), _lost(after)])
    if _number(after.get("flips")) is not None:
        rows.append(["Answers changed on validation", "", share(after["flips"], 2), ""])
    for key, label, less, more in _COMPARED:
        old, new = _number(before.get(key)), _number(after.get(key))
        if new is None or (key == "nonzero" and new == after.get("parameters")):
            continue
        ratio = old / new if old and new > 0 else None
        if key == "latency_ms":  # the ratio of the medians is not the median of the ratios
            ratio = _number(after.get("speedup")) or ratio
        word, factor = _times(ratio, less, more)
        changed: Cell = "" if ratio is None else f"{factor} {word}"
        if key == "latency_ms" and ratio is not None and ratio >= 1:
            changed = (str(changed), between(after.get("speedup_interval"), 1, 2))
        rows.append([label, _exactly(before, key), _exactly(after, key), changed])
    return Table(["", "Original", "Winner" if _within(facts) else "Closest", "Change"], rows)


def _exactly(row: Mapping[str, Any], key: str) -> Cell:
    """To the last byte and the last parameter, for two columns are compared."""
    if key == "latency_ms":
        return _named(row, key)
    whole = count(row.get(key), exact=True)
    return (_text_of(_named(row, key)), f"{whole} bytes") if key.endswith("bytes") else whole


def _lost(row: Mapping[str, Any]) -> Cell:
    """`1.10 points lost`, or gained, with its interval the same way round."""
    drop, interval = _number(row.get("drop")), row.get("drop_interval")
    if drop is None:
        return ""
    points, word, turned = lost(drop, interval if between(interval) else None)
    return f"{_points(points)} {word}", between(turned, 1, 2)


def _judged_on(facts: Mapping[str, Any]) -> str:
    images, test = _inner(facts, "images"), _inner(facts, "test")
    val = _number(images.get("val"))
    validation = f"validation{'' if val is None else f' ({val:,.0f} images)'}"
    if test:
        told = _number(test.get("count"))
        opened = f"Test{'' if told is None else f' ({told:,.0f} images)'} was opened once, for these two,"
        return f"{opened} after everything was chosen on {validation}. Intervals are 95 %; of points lost, paired."
    why = "" if _within(facts) else ", for nothing was within the budget"
    return (
        f"Test was not opened{why}. These numbers are from {validation}, on which the choice was made too. Intervals "
        "are 95 %; of points lost, paired."
    )


def _candidates(facts: Mapping[str, Any]) -> Table:
    """A line a candidate; the winner, the front and the controls are marked."""
    size = _size_of(facts)
    rows: list[list[Cell]] = []
    for row in facts["candidates"][:_MAX_ROWS]:
        marks = [("winner" if _within(facts) else "closest") if row.get("winner") else "",
                 "control" if row.get("control") else "", "front" if row.get("front") else ""]  # fmt: skip
        speedup, drop = _number(row.get("speedup")), _number(row.get("drop"))
        rows.append(
            [
                (str(row.get("name")), ", ".join(mark for mark in marks if mark)),
                _named(row, "accuracy"),
                ("–" if drop is None else f"{drop:z.2f}", between(row.get("drop_interval"), 1, 2)),
                _named(row, size),
                _named(row, "latency_ms"),
                ("–" if speedup is None else f"{speedup:.2f}×", between(row.get("speedup_interval"), 1, 2)),
            ]
        )
    caption = "Accuracy on validation, and points of it lost (below 0 is a gain), with 95 % intervals."
    if any(row.get("front") for row in facts["candidates"]):
        caption += " Front: no other is at once as accurate, as small and as fast."
    if any(row.get("control") for row in facts["candidates"]):
        caption += " Controls are measured for comparison and cannot win."
    heads = ["Candidate", "Accuracy", "Points lost", "Packed" if size == "packed_bytes" else "Size", "Latency", "Speed"]
    return Table(heads, rows, caption)


def _timing(facts: Mapping[str, Any]) -> str:
    latency, control = _inner(facts, "latency"), _inner(_inner(facts, "latency"), "control")
    threads = _number(_inner(facts, "spec").get("threads"))
    parts = ["Latency is of one image in ONNX Runtime"]
    parts.append(f"on {threads:.0f} thread{'' if threads == 1 else 's'}" if threads else "on threads of its own choice")
    if (rounds := _number(latency.get("rounds"))) is not None:
        parts.append(f"all candidates in turn in each of {rounds:.0f} rounds")
    if any(row.get("control") for row in facts["candidates"]):
        parts.append("the controls afterwards, beside the original again, whose time then sets the clock")
    text = ", ".join(parts)
    text += f"; its intervals cover {latency['covers']}." if latency.get("covers") else "."
    if (ratio := _number(control.get("ratio"))) is not None:
        interval = between(control.get("ratio_interval"), 1, 3)
        text += f" The original timed against itself gives {ratio:.3f}×{f' ({interval})' if interval else ''}"
        noise = _number(latency.get("noise"))
        text += "." if noise is None else f": differences below {100 * noise:.1f} % are not to be believed."
    return text


def _sensitive(facts: Mapping[str, Any]) -> Table | None:
    rows: list[list[Cell]] = [
        [
            str(item.get("layer")),
            decimal(item.get("divergence"), 2, significant=True),
            share(item.get("flips"), 2),
            share(item.get("accuracy"), 2),
        ]
        for item in _listed(facts, "sensitivity")
    ]
    caption = (
        "Each layer of the original alone in 8 bits, the one that changes the answers most first: divergence of the "
        "probabilities in nats, answers that change, and accuracy, on the first validation images."
    )
    return Table(["Layer", "Divergence", "Answers changed", "Accuracy"], rows[:_MAX_ROWS], caption) if rows else None


def _measured_by(facts: Mapping[str, Any]) -> str:
    machine = _inner(facts, "machine")
    parts = [str(machine.get("processor") or "unknown processor")]
    if (cores := _number(machine.get("cores"))) is not None:
        parts.append(f"{cores:.0f} core{'' if cores == 1 else 's'}")
    if "vnni" in machine:
        parts.append("with VNNI" if machine["vnni"] else "without VNNI")
    when = str(machine.get("when") or "")[:10]
    version = f", by Kitae {facts['kitae']}" if facts.get("kitae") else ""
    return f"Measured on {', '.join(parts)}{f', on {when}' if when else ''}{version}."


def _draw_missing_front(folder: Path, facts: Mapping[str, Any]) -> None:
    """The picture of the front, where somebody deleted it."""
    size = _size_of(facts)
    rows = [row for row in facts["candidates"] if _drawable(row, size)]
    if not rows or list((folder / "figures").glob("*pareto*.png")):
        return
    draw_compression(
        rows,
        folder / "figures" / "pareto.png",
        baseline=_inner(facts, "baseline"),
        winner=_inner(facts, "winner"),
        max_drop=_number(_inner(facts, "spec").get("max_drop")),
        size=size,
        within_budget=_within(facts),
    )


def _drawable(row: Mapping[str, Any], column: str) -> bool:
    size, accuracy = _number(row.get(column)), _number(row.get("accuracy"))
    return size is not None and size > 0 and accuracy is not None


def _listed(facts: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """Records under a key; none where there are none, or a file is older than the key."""
    found = facts.get(key)
    return found if isinstance(found, list) and _records(found) else []


def _text_of(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) or _records(value)


# --------------------------------------------------------------------------------------------------- pictures and files


def picture(path: Path) -> tuple[str, int, int]:
    """A PNG as data URI, with its width and height in pixels.

    Raises:
        KitaeError: not a PNG, or too large for a page.
    """
    try:
        if path.stat().st_size > _MAX_PICTURE_BYTES:
            raise KitaeError(f"{path}: larger than {_MAX_PICTURE_BYTES} bytes, too large for a page")
        content = path.read_bytes()
    except OSError as error:
        raise KitaeError(f"{path}: cannot read ({error.strerror})") from error
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 33:
        raise KitaeError(f"{path}: is not a PNG; delete it and report again")
    width, height = struct.unpack(">II", content[16:24])
    return "data:image/png;base64," + base64.b64encode(content).decode(), width, height


def _figure(pictures: Mapping[str, tuple[str, int, int]], name: str, alt: str, caption: str = "") -> Figure | None:
    return Figure(*pictures[name], alt, caption) if name in pictures else None


def _pictures(folder: Path, known: Mapping[str, tuple[str, str]] | None = None) -> list[Figure]:
    """Every PNG of a folder and of its `figures`; those of a `known` name first, with their (alt, caption)."""
    known = known or {}
    order = list(known)
    files = sorted(folder.glob("*.png")) + sorted((folder / "figures").glob("*.png"))
    files.sort(key=lambda file: order.index(file.stem) if file.stem in known else len(order))
    return [
        Figure(*picture(file), *known.get(file.stem, (file.stem.replace("-", " ").replace("_", " "), "")))
        for file in files[:_MAX_PICTURES]
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KitaeError(f"{path}: cannot read ({error})") from error


def _json(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise KitaeError(f"{path}: larger than {_MAX_JSON_BYTES} bytes, so not ours")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KitaeError(f"{path}: cannot read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise KitaeError(f"{path}: is damaged (not JSON)") from error


def _mapping(path: Path) -> dict[str, Any]:
    value = _json(path)
    if not isinstance(value, dict):
        raise KitaeError(f"{path}: is damaged (not a JSON object)")
    return value


def _inner(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping inside a mapping; empty where there is none."""
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _or_empty(read: Any) -> dict[str, Any]:
    """A file of the run that may not be there yet."""
    try:
        value: dict[str, Any] = read()
    except KitaeError:
        return {}
    return value


# --------------------------------------------------------------------------------------------------------- plain values


def _tables(value: Any, name: str = "") -> list[Block]:
    """Any JSON as tables: records one below the other, the rest by dotted name."""
    blocks: list[Block] = []
    if isinstance(value, Mapping):
        flat = {key: inner for key, inner in value.items() if not _records(inner)}
        if flat:
            blocks.append(Table(["", ""], _pairs(flat), name, right=1))
        for key, inner in value.items():
            if _records(inner):
                blocks += _tables(inner, f"{name}.{key}" if name else str(key))
    elif _records(value):
        blocks.append(_rows_table(value, name))
    else:
        blocks.append(Text(words(value)))
    return blocks


def _records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _rows_table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> Table:
    """Records as a table; NAME_interval stands beside NAME, and empty columns are left out."""
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    columns = [
        column
        for column in columns
        if not (column.endswith("_interval") and column.removesuffix("_interval") in columns)
        and any(row.get(column) not in (None, "", [], {}) for row in rows)
    ]
    cells: list[list[Cell]] = [[_named(row, column) for column in columns] for row in rows[:_MAX_ROWS]]
    return Table([column.replace("_", " ") for column in columns], cells, caption)


def _pairs(value: Mapping[str, Any], prefix: str = "") -> list[list[Cell]]:
    """Leaves of a nested mapping as rows of name and value."""
    rows: list[list[Cell]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            rows += _pairs(inner, f"{name}.")
        elif not (str(key).endswith("_interval") and str(key).removesuffix("_interval") in value):
            rows.append([name, _named(value, str(key))])
    return rows[:_MAX_ROWS]


_PROPORTIONS = ("accuracy", "top5", "ece", "sparsity", "share", "flips")


def _named(row: Mapping[str, Any], name: str) -> Cell:
    """A value in the unit that its name tells, with its interval where there is one."""
    interval = row.get(f"{name}_interval")
    value = _number(row.get(name))
    if value is None:
        return words(row.get(name))
    last = name.rpartition(".")[2]
    if any(word in last for word in _PROPORTIONS) and abs(value) <= 1:
        return share(value, 2), between(interval, 100, 2)
    if last.endswith("bytes"):
        return size_text(value), ""
    if last.endswith("seconds") and not last.endswith("milliseconds"):
        return (
            (f"{three_digits(1e3 * value)} ms", _times_between(interval, 1e3)) if value < 1 else (duration(value), "")
        )
    if last.endswith(("milliseconds", "_ms")):
        return f"{three_digits(value)} ms", _times_between(interval, 1)
    if last in ("parameters", "nonzero", "nonzeros", "zeros", "macs", "count", "images"):
        return count(value, exact=value < 1e7), ""
    return words(row.get(name)), between(interval, 1, 3)


def words(value: Any) -> str:
    """Any value as short text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else "–"
    if isinstance(value, list | tuple) and all(isinstance(item, int | float | str) for item in value):
        return ", ".join(words(item) for item in value[:20]) + (", …" if len(value) > 20 else "")
    if isinstance(value, int | str):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def share(value: Any, digits: int = 1) -> str:
    """A proportion in per cent."""
    known = _number(value)
    return "–" if known is None else f"{100 * known:.{digits}f} %"


def between(interval: Any, scale: float = 1.0, digits: int = 1) -> str:
    """An interval as `90.6 to 92.1`; empty where there is none."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return ""
    ends = [_number(end) for end in interval]
    return "" if None in ends else " to ".join(f"{end * scale:z.{digits}f}" for end in ends if end is not None)


def three_digits(value: float) -> str:
    """0.170, 18.0, 1,234: as many digits as a time is worth."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def _times_between(interval: Any, scale: float) -> str:
    """An interval of times; decimals fixed in number would make `0.08 to 0.08` of a fast one."""
    if not between(interval):
        return ""
    return " to ".join(three_digits(end * scale) for end in interval)


def decimal(value: Any, digits: int, *, significant: bool = False) -> str:
    """A number, or a dash."""
    known = _number(value)
    return "–" if known is None else f"{known:.{digits}g}" if significant else f"{known:,.{digits}f}"


def count(value: Any, *, exact: bool = False) -> str:
    """A whole number, in thousands, millions or billions unless `exact`."""
    known = _number(value)
    if known is None:
        return "–"
    for unit, scale in () if exact else (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if known >= scale:
            return f"{known / (1e3 if unit == 'k' else scale):.3g} {unit}"
    return f"{known:,.0f}"
