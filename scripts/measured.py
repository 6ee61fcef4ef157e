"""Write what was measured about each technique into the pages that explain it, from the committed results.

    python scripts/measured.py        # all pages of docs

A page has `<!-- measured: NAME -->` and `<!-- measured: end -->`; what is between them is made here. `NAME in STUDY`
shows the effects of one study, and `NAME in STUDY and STUDY` those of several.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark_pages import SETS, splits_in_words
from compression_claims import CORRECTED, RESULTS, in_words
from kitae import console
from kitae.experiments.result import StudyResult
from ledger import load, measured, setting, table
from means import mean_interval, points

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STUDIES = ROOT / "studies" / "results"
_BLOCK = re.compile(r"<!-- measured: (?P<name>[\w -]+) -->\n.*?<!-- measured: end -->", re.DOTALL)
_REFERENCES = ("none", "flip and crop")
NAMES = {  # of variants in the ledger's studies
    "none": "no technique", "auto_augment": "AutoAugment", "rand_augment": "RandAugment", "mixup": "MixUp",
    "cutmix": "CutMix", "smoothing": "label smoothing", "full": "the full pipeline",
}  # fmt: skip
TRAININGS = {"sgd": "ResNet-9 with SGD", "muon": "ResNet-9 with Muon", "pretrained": "EfficientNet-Lite0 fine-tuned"}
PRUNED = {  # variants of benchmarks/reconstruction.py, and what each is without fine-tuning
    "norms": ("norms-alone", "by norms, in each layer"), "global": ("alone", "by reconstruction, together"),
}  # fmt: skip
MUON_RATES = ("0.12", "0.24", "0.36", "0.48")
_NETWORKS = {"tf_efficientnet_lite0": "efficientnet_lite0"}

# Metric, effect in a study, the technique, and what it is added to or compared with; nothing: only all the others.
Line = tuple[str, str, str, str]
ACCURACY = "test.accuracy"
EFFECTS: dict[str, Sequence[Line]] = {
    "basic augmentation": (
        (ACCURACY, "basic over none", "flip and crop", "over none"),
        (ACCURACY, "jitter over none", "flip, crop and jitter", "over none"),
        (ACCURACY, "strong", "strong distortions", "over flip and crop"),
    ),
    "robustness": tuple(
        (f"robustness.{kind}_accuracy", name, f"{words}, test images {how}", "over none")
        for kind, how in (
            ("viewpoint", "rotated or tilted"),
            ("light", "darker, brighter or with less contrast"),
            ("noise", "with noise or blurred"),
        )
        for name, words in (("flip and crop", "flip and crop"), ("strong", "strong distortions"))
    ),
    "rare classes": (
        ("test.balanced_accuracy", "flip and crop", "flip and crop", "over none"),
        ("test.balanced_accuracy", "sampler", "rare classes drawn more often", "over flip and crop"),
    ),
    "mixing": (
        (ACCURACY, "mixup", "MixUp", "over flip and crop"),
        (ACCURACY, "cutmix", "CutMix", "over flip and crop"),
        (ACCURACY, "cutmix over mixup", "CutMix", "over MixUp"),
    ),
    "mixing ends": (
        (ACCURACY, "ends over mixing", "mixing until 80 %", "over mixing throughout"),
        (ACCURACY, "everything ends over everything", "the same in the full pipeline", "over mixing throughout"),
    ),
    "mixup": ((ACCURACY, "mixup", "MixUp", "over flip and crop"),),
    "cutmix": ((ACCURACY, "cutmix", "CutMix", "over flip and crop"),),
    "cutmix over mixup": ((ACCURACY, "cutmix over mixup", "CutMix", "over MixUp"),),
    "policies": (
        (ACCURACY, "auto_augment", "AutoAugment", "over flip and crop"),
        (ACCURACY, "rand_augment", "RandAugment", "over flip and crop"),
    ),
    "erasing": (
        (ACCURACY, "cutout", "cutout", "over flip and crop"),
        (ACCURACY, "erasing", "random erasing", "over flip and crop"),
    ),
    "smoothing": ((ACCURACY, "smoothing", "label smoothing", "over flip and crop"),),
    "schedule": (
        (ACCURACY, "constant rate", "a constant rate", "over a cosine"),
        (ACCURACY, "step rate", "a stepwise rate", "over a cosine"),
        (ACCURACY, "cosine", "a cosine", "over a constant rate"),
    ),
    "depth": (
        (ACCURACY, "depth=0.2", "stochastic depth of 0.2", "test accuracy"),
        ("gap", "depth=0.2", "stochastic depth of 0.2", "training accuracy minus validation accuracy"),
    ),
    "precision": (
        ("epoch_seconds", "bf16", "bf16 over fp32", "time of an epoch"),
        ("peak_memory_bytes", "bf16", "bf16 over fp32", "peak memory of the process"),
        (ACCURACY, "bf16", "bf16 over fp32", "test accuracy"),
    ),
    "progressive": ((ACCURACY, "small first", "smaller images first", "over the full size"),),
    "full": ((ACCURACY, "full", "the full pipeline", "over flip and crop"),),
    "one out": (
        (ACCURACY, "crop", "crop", ""),
        (ACCURACY, "flip", "flip", ""),
        (ACCURACY, "auto_augment", "AutoAugment", ""),
        (ACCURACY, "erasing", "random erasing", ""),
        (ACCURACY, "mixing", "MixUp and CutMix", ""),
        (ACCURACY, "smoothing", "label smoothing", ""),
        (ACCURACY, "cosine", "a cosine over a constant rate", ""),
    ),
}


def effects(lines: Sequence[Line], results: Sequence[StudyResult]) -> str:
    """A table of the effects in all published studies that have them, the shortest trainings first.

    Screenings are left out: their effects are averages over the presence and absence of the other techniques.
    """
    rows = []
    ordered = sorted(results, key=lambda one: (one.settings["epochs"], one.settings.get("width") or 0))
    for metric, name, technique, over in lines:
        for result in ordered:
            effect = result.effect(metric, name) if metric in result.analyses else None
            design = result.spec.design
            if effect is None or design == "screening" or (design != "one_out" and not over):
                continue
            base = over.removeprefix("over ")
            other = design == "compare" and name not in result.spec.contrasts and result.spec.reference != base
            if base in _REFERENCES and other:
                continue  # the same name, compared with something else
            words = "added to all other techniques" if design == "one_out" else over
            where = setting(result.settings, len(result.spec.seeds))
            rows.append([f"{technique}, {words}", measured(effect), where, f"`{result.spec.name}`"])
    return table(["What", "Change, with its 95 % interval", "Setting", "Study"], rows)


def recalls(page: Path) -> str:
    """A table of the mean recall of the largest and the rarest classes in the study of rare classes."""
    result = StudyResult.open(STUDIES / "ledger-minority")
    runs = result.finished.set_index(["variant", "seed"])
    classes = ("airplane", "automobile", "bird", "horse", "ship", "truck")  # CIFAR-10's first are the largest here
    cells = {name: runs[[f"test.per_class.{one}.accuracy" for one in group]].mean(axis=1) * 100
             for name, group in (("three largest", classes[:3]), ("three rarest", classes[3:]))}  # fmt: skip
    rows = []
    for variant, before in (("flip and crop", "none"), ("flip, crop and sampler", "flip and crop")):
        for name, values in cells.items():
            gains = (values[variant] - values[before]).tolist()
            rows.append([
                f"{variant}, over {before}", name, f"{values[before].mean():.1f} %", f"{values[variant].mean():.1f} %",
                points(gains),
            ])  # fmt: skip
    return table(["What", "Classes", "Mean recall before", "After", "Points, with the 95 % interval"], rows)


def class_weights(page: Path) -> str:
    """A table of what `balance` gains in a plan's training, on validation, from `benchmarks/results/imbalance.json`."""
    found: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for row in json.loads((RESULTS / "imbalance.json").read_text())["rows"]:
        fields = row["fields"]
        key = row["set"], row["steps"], row["size"], fields.get("tail"), fields.get("data.balance", "none")
        found.setdefault(key, {})[row["seed"]] = row
    rows = []
    for (name, steps, size, ratio, balance), splits in found.items():
        pairs = [(one, found[name, steps, size, ratio, "none"][seed]) for seed, one in splits.items()]
        if balance == "none" or len(pairs) < 3:
            continue
        rows.append([
            set_in_words(name) + (f", thinned out to 1 in {ratio}" if ratio else ", as it is"),
            f"the head and {steps} steps" if steps else "the head", f"{size} px", f"`{balance}`", str(len(pairs)),
            *(points([100 * (one[score] - even[score]) for one, even in pairs]) for score in ("balanced", "natural")),
        ])  # fmt: skip
    return table(["Set", "Trained", "Pictures", "Balance", "Splits", "Balanced accuracy", "Accuracy"], rows)


def fine_tunings(variant: str, result: str = "fine_tuning") -> dict[str, list[dict[str, Any]]]:
    """Set in words -> its fine-tunings of a variant, a split each, in a result of `benchmarks/fine_tuning.py`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads((RESULTS / f"{result}.json").read_text())["rows"]:
        if row["variant"] == variant:
            found.setdefault(set_in_words(row["set"]), []).append(row)
    return found


def from_scratch(passes: int) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """Set and variant -> split -> row of `benchmarks/results/from_scratch.json` with so many passes."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in json.loads((RESULTS / "from_scratch.json").read_text())["rows"]:
        if row["passes"] == passes:
            found.setdefault((row["set"], row["variant"]), {})[row["seed"]] = row
    return found


def gains_of(splits: Mapping[int, dict[str, Any]], base: Mapping[int, dict[str, Any]]) -> list[float]:
    """Points of validation accuracy that rows gain over those of the same splits in `base`."""
    return [100 * (row["val_accuracy"] - base[seed]["val_accuracy"]) for seed, row in splits.items()]


def optimizers(page: Path) -> str:
    """A table of validation accuracy from scratch with SGD, and of what Muon gains at several rates."""
    found = from_scratch(20)
    rows = []
    for (name, base), splits in found.items():
        if not base.startswith("sgd"):
            continue
        other = base.removeprefix("sgd")  # of another network
        tried = [found.get((name, f"muon-{rate}{other}")) for rate in MUON_RATES]
        accuracy = statistics.fmean(100 * row["val_accuracy"] for row in splits.values())
        steps = next(iter(splits.values()))["steps"]
        what = f"{set_in_words(name)}, {steps} steps" + (", ResNet-18 of width 16" if other else "")
        cells = [points(gains_of(one, splits)) if one else "" for one in tried]
        rows.append([what, str(len(splits)), f"{accuracy:.1f} %", *cells])
    return table(["Set", "Splits", "SGD", *(f"Muon, {rate}, points" for rate in MUON_RATES)], rows)


def long_trainings(page: Path) -> str:
    """A table of validation accuracy after 80 passes, with CutMix on half of the batches and without."""
    words = {"sgd-mixed": "SGD, CutMix", "muon-mixed": "Muon, CutMix", "muon": "Muon",
             "muon-ends": "Muon, CutMix until 80 %"}  # fmt: skip
    found = from_scratch(80)
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        reached = [found.get((name, variant), {}).values() for variant in words]
        cells = [splits_in_words(splits) if splits else "" for splits in reached]
        steps = next(iter(found[name, "sgd-mixed"].values()))["steps"]
        rows.append([f"{set_in_words(name)}, {steps} steps", *cells])
    return table(["Set", *words.values()], rows)


def set_in_words(name: str) -> str:
    """Of a row of a benchmark, without the number of images."""
    return SETS[name.partition(":")[0]].partition(" (")[0]


def probes(page: Path) -> str:
    """A table of validation accuracy: of a probe, and of a fine-tuning of today's plan that starts from it.

    With all of train, and with few images.
    """
    rows = []
    for variant in ("stages", "few"):
        for name, splits in fine_tunings(variant).items():
            for row in splits:
                images = f", {row['fields']['images']} images" if variant == "few" else ""
                cells = [f"{100 * row[field]:.1f} %" for field in ("probe", "last", "val_accuracy")]
                epoch = str(row["best_epoch"]) if row["best_epoch"] else "the probe"
                rows.append([f"{name}{images}, {row['seed']}", f"{row['steps']} at {row['size']} px", *cells, epoch])
    return table(["Set, split", "Steps", "Probe", "Last epoch", "Kept", "Epoch that is kept"], rows)


def without_a_probe(page: Path) -> str:
    """A table of validation accuracy of fine-tunings that start from a probe, and from a classifier of zeros."""
    probed, zeros = (fine_tunings(variant, "fine_tuning_augment") for variant in ("all-planned", "all-zeros"))
    rows = []
    for name, splits in zeros.items():
        cells = [splits_in_words(found[name]) for found in (probed, zeros)]
        ours, base = ({row["seed"]: row for row in one} for one in (probed[name], splits))
        rows.append([name, *cells, points(gains_of(ours, base))])
    return table(["Set", "From the probe (each split)", "From zeros", "Gained, points"], rows)


def reconstructions(page: Path) -> str:
    """A table of validation accuracy of pruned networks, by how channels were chosen, fine-tuned and not."""
    found: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for row in json.loads((RESULTS / "reconstruction.json").read_text())["rows"]:
        found.setdefault((row["set"], row["training"]), {}).setdefault(row["variant"], {})[row["seed"]] = row
    rows = []
    for (name, training), variants in found.items():
        runs = variants["norms"]
        some = next(iter(runs.values()))
        network = f"{set_in_words(name)}, {some['image_size']} px, {TRAININGS[training]}"
        original = statistics.fmean(row["original"] for row in runs.values())
        rows.append(
            [f"{network}, {console.plural(len(runs), 'seed')}", "0 %", "", "", "", f"{100 * original:.1f} %", ""]
        )
        for ratio in some["ratios"]:
            for variant, (untrained, words) in PRUNED.items():
                mine, alone = variants[variant], variants[untrained]
                sizes = [statistics.fmean(row["size"][ratio][i] for row in mine.values()) for i in range(2)]
                reached = {seed: 100 * row["ratios"][ratio][0] for seed, row in mine.items()}
                solved = statistics.fmean(100 * row["ratios"][ratio][0] for row in alone.values())
                gained = [value - 100 * runs[seed]["ratios"][ratio][0] for seed, value in reached.items()]
                rows.append([
                    "", f"{100 * float(ratio):.0f} %", words, ", ".join(f"{100 * size:.0f} %" for size in sizes),
                    f"{solved:.1f} %", f"{statistics.fmean(reached.values()):.1f} %",
                    "" if variant == "norms" else points(gained),
                ])  # fmt: skip
    head = ["Network", "Channels removed", "Chosen", "Bytes, multiply-adds", "Solved", "and fine-tuned"]
    return table([*head, "Gained over norms, points"], rows)


def kept_tunings(page: Path) -> str:
    """A table of how often `kitae train FOLDER --minutes M` fine-tuned, and kept it, from `benchmarks/quality.py`."""
    found: dict[float, list[dict[str, Any]]] = {}
    for row in json.loads((RESULTS / "quality.json").read_text())["rows"]:
        if row["contestant"] == "kitae" and row["set"] != "fashion-mini":  # grey and tiny, so there is no probe
            found.setdefault(row["budget"], []).append(row)
    rows = []
    for minutes, runs in sorted(found.items()):
        tuned, kept = (sum(run[field] > 0 for run in runs) for field in ("epochs", "best_epoch"))
        sets = ", ".join(dict.fromkeys(set_in_words(run["set"]) for run in runs))
        rows.append([f"{minutes:g}", sets, str(len(runs)), str(tuned), str(kept)])
    return table(["Minutes", "Sets", "Runs", "that had time to fine-tune", "that kept the fine-tuning"], rows)


def calibrations(study: str) -> pd.DataFrame:
    """A row for each run of a study.

    Columns: `variant`, the `temperature`, the validation loss of the kept epoch `before` and `after` it, and `ece`, the
    calibration error on test after it.
    """
    runs = StudyResult.open(STUDIES / study).finished
    curves = [json.loads(text) for text in runs["epochs"]]
    before = [
        next(row["val_loss"] for row in curve if row["epoch"] == best)
        for curve, best in zip(curves, runs["best_epoch"], strict=True)
    ]
    return pd.DataFrame(
        {
            "variant": runs["variant"],
            "temperature": runs["temperature"],
            "before": before,
            "after": runs["val.loss"],
            "ece": runs["test.ece"],
        }
    )


def temperatures(page: Path) -> str:
    """A table of the temperature, and what it did, for the variants of two studies; the second's test is balanced."""
    rows = []
    for study in ("ledger-trained", "ledger-minority"):
        for variant, runs in calibrations(study).groupby("variant", sort=False):
            ends = runs["temperature"].min(), runs["temperature"].max()
            rows.append([
                f"`{study}`: {NAMES.get(str(variant), str(variant))}",
                f"{runs['temperature'].mean():.2f} ({ends[0]:.2f} to {ends[1]:.2f})",
                f"{runs['before'].mean():.3f}", f"{runs['after'].mean():.3f}",
                f"{100 * runs['ece'].mean():.1f} % ({100 * runs['ece'].min():.1f} to {100 * runs['ece'].max():.1f})",
            ])  # fmt: skip
    head = ["Trained with", "Temperature (lowest to highest seed)", "Validation loss before", "after"]
    return table([*head, "Calibration error on test, after"], rows)


def views(page: Path) -> str:
    """A table of validation accuracy with one view and with several, of the runs that recorded both."""
    rows = []
    for path in sorted((RESULTS / "speed").glob("*-metrics.jsonl"), key=lambda path: len(path.name)):
        name = path.name.removesuffix("-metrics.jsonl")
        run = json.loads(path.with_name(f"{name}.json").read_text())
        last = json.loads(path.read_text().splitlines()[-1])
        judged = run["validation"]
        low, high = judged["accuracy_interval"]
        rows.append([
            f"`{name}`", f"{judged['count']:,}", f"{100 * last['val_accuracy']:.1f} %",
            f"{100 * judged['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})",
        ])  # fmt: skip
    return table(["Run of `cifar10-speed`", "Validation images", "One view", "`full` (95 % interval)"], rows)


def network_in_words(row: Mapping[str, Any]) -> str:
    """Of a row of precision.json."""
    width = f" of width {row['width']}" if row["width"] else ""
    return f"{_NETWORKS.get(row['model'], row['model'])}{width}, {row['image_size']} px, batch {row['batch_size']}"


def step_times(page: Path) -> str:
    """A table of the time of a training step in bf16, from `benchmarks/precision.py`."""
    found = json.loads((RESULTS / "precision.json").read_text())
    rows = []
    for row in found["rows"].values():
        bf16 = row["precisions"]["bf16"]
        low, high = bf16["interval"]
        rows.append(
            [
                network_in_words(row),
                f"x {bf16['ratio']:.2f} ({low:.2f} to {high:.2f})",
                row["chosen"],
                f"{row['behind']:.2f}",
            ]
        )
    machine = found["machine"]
    head = ["Network", "Time of a step, bf16 / fp32", "`auto` takes", "Its time / the fastest"]
    return f"{table(head, rows)}\n\n{machine['processor']}, {machine['cores']} cores, {found['steps']} steps each."


def _published(page: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each published compression: a link to it from a page, and its numbers."""
    where = os.path.relpath(DOCS / "benchmarks" / "compression.md", page.parent)
    for path in sorted((RESULTS / "compression").glob("*.json")):
        yield f"[{path.stem}]({where}#{path.stem})", json.loads(path.read_text())


def compressions(page: Path, *, pruned: bool) -> str:
    """A table of the published compressions, or of those that only quantized: the chosen file, and its cost on test."""
    rows = []
    for link, facts in _published(page):
        test = facts["test"]
        if test is None or (facts["spec"]["prune"] != "none") is not pruned:
            continue
        low, high = test["drop_interval"]
        note = "" if facts["machine"]["when"] >= CORRECTED else " (earlier loop)"
        rows.append([
            f"{link}{note}",
            f"{facts['recipe']}: {in_words(facts, facts['winner'])}",
            f"{facts['smaller']:.1f} x", f"{facts['faster']:.1f} x",
            f"{test['drop']:+.2f} ({low:+.2f} to {high:+.2f}) of {facts['spec']['max_drop']:g}",
        ])  # fmt: skip
    head = ["Compression", "Chosen by validation", "Smaller", "Faster", "Points lost on test, of the budget"]
    return table(head, rows)


def controls(page: Path) -> str:
    """A table of the published compressions with controls: points lost on validation, by the winner and by each."""
    rows = []
    for link, facts in _published(page):
        shown = [one for one in facts["candidates"] if one["winner"] or one["control"]]
        for one in shown if any(one["control"] for one in shown) else ():
            low, high = one["drop_interval"]
            name = f"{in_words(facts, one)}{'' if one['control'] else ' (the winner)'}"
            rows.append([link, name, f"{one['drop']:+.2f} ({low:+.2f} to {high:+.2f})"])
    return table(["Compression", "File", "Points lost on validation"], rows)


def ratios(page: Path) -> str:
    """A table of what each share of weights set to zero lost, in `few-unstructured`."""
    facts = json.loads((RESULTS / "compression" / "few-unstructured.json").read_text())
    rows = []
    for one in facts["candidates"]:
        if one["precision"] == "fp32":
            low, high = one["drop_interval"]
            interval = f" ({low:+.2f} to {high:+.2f})" if one["ratio"] or one["drop"] else ""
            rows.append([
                in_words(facts, one), f"{one['nonzero']:,}", f"{one['packed_bytes'] / 1e6:.2f} MB",
                f"{100 * one['accuracy']:.2f} %", f"{one['drop']:+.2f}{interval}",
            ])  # fmt: skip
    head = ["File", "Weights that are not zero", "Size, packed", "Validation accuracy", "Points lost"]
    return table(head, rows)


def beyond_the_winner() -> dict[tuple[str, str], list[float]]:
    """(compression, file) -> points that the file loses on validation beyond the pruned winner, for each seed.

    Of the compressions of several seeds (NAME-0, NAME-1, ...): the controls, and the unpruned file in the winner's
    precision.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for path in sorted((RESULTS / "compression").glob("*-[0-9].json")):
        facts = json.loads(path.read_text())
        winner = facts["winner"]
        for one in facts["candidates"]:
            kept = one["ratio"] == 0 and one["precision"] == winner["precision"] and winner["ratio"] > 0
            if one["control"] or kept:
                key = path.stem.rpartition("-")[0], in_words(facts, one)
                found.setdefault(key, []).append(one["drop"] - winner["drop"])
    return {key: lost for key, lost in found.items() if len(lost) > 1}


def seeds_of_controls(page: Path) -> str:
    """A table of `beyond_the_winner`; each interval is a t interval over the seeds."""
    where = os.path.relpath(DOCS / "benchmarks" / "compression.md", page.parent)
    rows = []
    for (name, words), lost in beyond_the_winner().items():
        mean, low, high = mean_interval(lost)
        each = ", ".join(f"{value:+.2f}" for value in lost)
        rows.append([f"[{name}]({where}#{name}-0)", words, f"{mean:+.2f} ({low:+.2f} to {high:+.2f})", each])
    return table(["Compression", "File", "Points lost on validation, minus the pruned winner's", "Each seed"], rows)


def report_pages(page: Path) -> str:
    """A table of the sample pages: their bytes, and what axe-core found, from `scripts/check_pages.py`."""
    found = json.loads((RESULTS / "pages.json").read_text())
    rows = []
    for name, one in sorted(found["pages"].items()):
        views = one["views"]
        broken = [f"{row['rule']} ({view})" for view, seen in views.items() for row in seen["violations"]]
        wider = [view for view, seen in views.items() if seen["overflow"] > 0]
        rules = min(seen["rules"] for seen in views.values())
        rows.append([
            name, f"{one['bytes'] / 1e6:.2f} MB", str(len(one["from_elsewhere"])), str(rules),
            ", ".join(broken) or "none", ", ".join(wider) or "none",
        ])  # fmt: skip
    head = ["Page", "Size", "Requests", "Rules that apply", "Violations", "Windows it is too wide for"]
    views = "At 390 and 1280 px, light and dark, details folded and unfolded"
    return f"{table(head, rows)}\n\n{views}; axe-core {found['axe']}, {found['browser']}."


def processes(page: Path) -> str:
    """A table of trainings with several processes, and a paragraph on lost workers and machines of a Ray cluster."""
    found = json.loads((RESULTS / "processes.json").read_text())
    rows, alone = [], found["processes"]["1"]["losses"]
    for size, row in found["processes"].items():
        pairs = zip(row["losses"], alone, strict=True)
        apart = [max(abs(mine[name] - one[name]) for name in one) for mine, one in pairs]
        rows.append([
            size, _spread(row["images_per_second"], ",.0f"),
            *([f"{apart[0]:.0e}", f"{max(apart):.0e}"] if any(apart) else ["", ""]),
            f"{_spread(found['killed'][size]['seconds'], '.1f')} s" if size in found["killed"] else "",
        ])  # fmt: skip
    head = ["Processes", "Images/s", "Losses differ by, in the first epoch", f"in {len(alone)} epochs"]
    head += ["From SIGKILL of one to the end of all"]
    fed, ray, machine = found["batches"], found["ray"], found["machine"]
    assert fed["equal"]
    assert ray["same_as_one_process"]
    again = {what: f"{_spread(seconds, '.1f')} s" for what, seconds in ray["seconds_until_run_again"].items()}
    text = (
        f"The {fed['batches']} batches of two epochs have the same SHA-256 with 1, 2 and 3 processes. In studies of "
        f"{ray['tasks']} runs on a Ray cluster of {ray['machines']} machines, all processes of this one, the run of a "
        f"killed worker began again after {again['worker']}, that of a lost machine after {again['machine']}. Median, "
        f"lowest and highest of {ray['seconds_until_run_again']['worker']['n']} measurements (images/s: of "
        f"{found['processes']['1']['images_per_second']['n']} epochs), beside other programs (load average "
        f"{machine['load_average'][0]:.0f}); {machine['processor']}, {machine['cores']} cores, torch "
        f"{machine['versions']['torch']}, {machine['when'][:10]}."
    )
    return f"{table(head, rows)}\n\n{textwrap.fill(text, 120)}"


def _spread(values: Mapping[str, Any], digits: str) -> str:
    """The median of a spread, and its extremes where there are several."""
    span = f" ({values['min']:{digits}} to {values['max']:{digits}})" if values["n"] > 1 else ""
    return f"{values['median']:{digits}}{span}"


MADE: dict[str, Callable[[Path], str]] = {  # given the page that shows it
    "recalls": recalls,
    "muon": optimizers,
    "muon for long": long_trainings,
    "class weights": class_weights,
    "probes": probes,
    "without a probe": without_a_probe,
    "kept fine-tunings": kept_tunings,
    "solved weights": reconstructions,
    "temperatures": temperatures,
    "views": views,
    "ratios": ratios,
    "step times": step_times,
    "controls": controls,
    "controls of seeds": seeds_of_controls,
    "pages": report_pages,
    "processes": processes,
    "pruned": partial(compressions, pruned=True),
    "quantized": partial(compressions, pruned=False),
}


def chosen(results: Sequence[StudyResult], names: Sequence[str]) -> list[StudyResult]:
    """The results with these names. Raises KeyError where there is none: its table would be empty."""
    found = {result.spec.name: result for result in results}
    return [found[name] for name in names]


def pages() -> dict[Path, str]:
    """Each page that shows measurements, and its text."""
    results = load(STUDIES)
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
    found = {}
    for page, text in texts.items():

        def block(match: re.Match[str], page: Path = page) -> str:
            name = match["name"]
            what, _, studies = name.partition(" in ")
            some = chosen(results, studies.split(" and ")) if studies else results
            made = MADE[name](page) if name in MADE else effects(EFFECTS[what], some)
            return f"<!-- measured: {name} -->\n\n{made}\n\n<!-- measured: end -->"

        if _BLOCK.search(text):
            found[page] = _BLOCK.sub(block, text)
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
