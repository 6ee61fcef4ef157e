"""Write docs/benchmarks/photographs.md, training.md and gpu.md, and a part of cifar10.md, from their results.

python scripts/benchmark_pages.py
"""

from __future__ import annotations

import json
import statistics
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import cifar10_steps
import gpu_page
from means import mean_interval, points

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks"

PHOTOGRAPHS = """\
# Photographs: accuracy in the same minutes

{outcome}

Made by `python benchmarks/quality.py`; the figures are those of `benchmarks/results/quality.json`. All contestants
read the same images with the same splits, start with nothing decoded, and plan to end within the minutes. Test is
not used before the end. Differences are paired by seed (a seed draws the splits too); below 0, Kitae is better. An
interval is a 95 % t interval over the seeds, so with two or three of them it is wide. Peak memory is that of a
contestant's largest process.

What else differs:

- The image size: the others choose from 128 to 224 px, for which the weights were published, and Kitae's plan goes up
  to 320 px where the minutes allow it. The rows of the logistic regression with pictures of up to 320 px show what a
  script reaches that has found these sizes too.
- The precision: the others train in float32, as their scripts do by default, and Kitae in bfloat16 where the
  processor has it, which makes a step of EfficientNet-Lite0 about twice as fast ([training speed](training.md)).
- What it was tuned on: Kitae's image sizes and fine-tuning rate were chosen on validation images of TrashNet and the
  textile set, its other settings on more sets, so photos-mini and Imagenette are the more independent rows.

Marks:

{cut}- † The latest rows: Kitae's training steps are today's, and the machine was slower. In five minutes on textile,
  for example, the fine-tuning loop made {slow} steps, where it had made 198 to 219.
{over}
About single rows:

- Kitae's rows of one and five minutes on photographs are of today's plan, whose head sees all stages of the network.
  Those of fifteen minutes are of an earlier plan. TrashNet's classes are uneven, so a plan would now weight them
  ([class imbalance](../techniques/imbalance.md)); its rows are from before that.
- Kitae's five minutes were measured on slow days, when plans for textile chose pictures of {sizes} px; on a faster
  day the earlier plan chose larger ones, which textile needs. The minute of Imagenette was measured on such a day
  too, with 224 to 256 px instead of 288.
- While Kitae's rows with a linear head alone were measured, other work ran on the machine for part of the time, so
  one run on textile took 78 s. At that speed a plan of one minute for 200 images has no time to fine-tune, and ends
  after half a minute.
- For two days the benchmark started the clock of the other contestants some ten seconds before their process. The
  loops of one minute were measured again. The five minutes of the loop on textile lack ten seconds: measured again
  with all of them, but beside other work, it took pictures of 128 to 224 px and had 70.3 to 74.0 %, so its better rows
  are kept. The logistic regressions chose their largest pictures all the same, and on Imagenette 192 px, which one that
  was measured again chose too.

Not measured: five and fifteen minutes for Imagenette, CIFAR-10 and fashion-mini, and fifteen for all other contestants
and sets but TrashNet; CIFAR-10 enlarged to 160 px; 200 images of CIFAR-10, fashion-mini and Imagenette; the other
contestants' fine-tuning on CIFAR-10; timm and fastai where they have no row; pictures that are no photographs but
large, such as X-rays.

Machine: {machine}. Measured from {first} to {last}: {undated} of the {runs} runs note no time of their own;
`LOG.md` dates them.
"""
FIRST = "2026-11-26"  # of the rows without a time of their own, by LOG.md
CUT = """\
- \\* A loop that had planned more steps than it had time for, and was stopped after about nine tenths of its schedule,
  before the learning rate had reached its end. Loops that were measured later fit their schedule to the time.
"""
OVER = """\
- ‡ A run took more than a tenth longer than its minutes (at most {longest:.0f} % longer). Read such a row as what the
  contestant reaches in the seconds that it took.
"""
SCRATCH = """\
## From scratch

Without pretrained weights, plans train a ResNet-9 with [Muon](../techniques/muon.md). Another machine than that of the
tables above, so compare only within a table. The rows are those of `benchmarks/results/quality-scratch.json`.

Machine: {machine}.
"""
MINUTES = """\
## Are the minutes kept?

The share of the minutes that `kitae train FOLDER --minutes M` took, from the start of the process to its end, one run
each with the same splits of {set}. Beside {cores} busy processes, it has half of the
processor or less. Made by `python benchmarks/minutes.py`; the figures are those of `benchmarks/results/minutes.json`.
"""
SIZES = """\
## How large should the pictures be?

Validation accuracy of a linear head on the features of the frozen network, at three sizes: the mean and each of the
splits. Test was not used. Made by `python benchmarks/settings.py`; the figures are those of
`benchmarks/results/settings.json`. Photographs with small details gain from 320 px; photos-mini, whose photographs are
smaller, has its best score at 288 px, and Imagenette does not depend on it.
"""
FINE_TUNING = """\
## How should a fine-tuning start?

Validation accuracy after the last step of a plan's fine-tuning with other settings, in the same number of steps, for
each split. The column *probe* is where those begin whose probe saw no augmented view. Test was not used. Made by
`python benchmarks/fine_tuning.py` (but for the temperature, which was tried by hand); the figures are those of
`benchmarks/results/fine_tuning.json`, which has every epoch. Where every epoch is worse than the probe, the probe is
kept.

A plan uses a rate of 3.5e-4, a warm-up over 0.1 of the steps, and a probe that is fitted on an augmented view too. The
rate is 5e-4 where none is given. With it, five trainings on textile failed: in four no epoch was better than the probe,
one ended a point above it, and four are known to have ended at 75.0 %, with two of the three classes taken for one
(three are below, one is in `benchmarks/results/warmup.json`; the fifth ran for five minutes on a slow machine). Neither
a view of the crops for the probe nor averaging the squares of the gradients over fewer steps (betas) prevents it. With
3.5e-4 none of four failed, with 2.5e-4 none of eight. In so few steps, five splits of photographs end 0.9 points lower
with 3.5e-4 than with 5e-4 (from -4.2 to +0.4), and 1.4 points lower with 2.5e-4 (from -5.8 to +1.0); four of textile
end 0.7 points higher with 3.5e-4 (from -1.5 to +4.7).
"""
TRAINING = """\
# Training speed: the same step in other loops

Made by `python benchmarks/train.py`; the figures are those of `benchmarks/results/train.json`. All loops use the same
network, images, batch and cores; all but the tutorial's loop train in bfloat16 and channels_last. They take turns of a
few steps, so that other load on the machine affects all of them. Ratios are within a round (median, lowest, highest).

Memory is that of all processes of a loop: between steps, when activations are freed, and at its peak. timm's loop is
built from its parts in the order of its train script. Composer is missing: its newest version asks for an older torch.

Kitae can be faster than the bare step. Its process keeps large freed blocks of memory, while the bare loop returns
them to the system at every step; a second bare step keeps them too. And on a CPU Kitae computes those gradients of
depthwise convolutions itself for which PyTorch has slow bfloat16 kernels, so EfficientNet gains most. Whole steps in
turns, two cores (`benchmarks/depthwise.py`):

{depthwise}

Only Kitae writes checkpoints. They are switched off in the turns, which would contain far too many of them, and timed
apart; the default is one a minute within an epoch and one after it.
"""
CONTESTANTS = {
    "kitae": "`kitae train FOLDER --minutes M`",
    "probe": "logistic regression on features of the same weights (scikit-learn)",
    "probe-320": "logistic regression on features of the same weights, pictures of up to 320 px",
    "torchvision": "fine-tuning loop in torchvision's style, same weights",
    "fastai": "fastai's `fine_tune` schedule and head, same weights",
    "timm": "timm's defaults for fine-tuning, same weights",
    "kitae-scratch": "`kitae train FOLDER --minutes M --model resnet9`",
    "kitae-sgd-scratch": "the same plan with SGD instead of Muon",
    "torchvision-scratch": "ResNet-18 from scratch, torchvision's style",
    "timm-scratch": "ResNet-18 from scratch, timm's defaults",
}
SEEN = """\
## What should the head see?

The head sees the last layer's features, or with `model.features: stages` the mean of each stage's channels as well,
which plans with EfficientNet-Lite0 use. Validation accuracy of today's plan with 240 steps at 224 px, for each split:
of the probe, and of what a run keeps. Fine-tuned, all stages are {mean:.1f} points better on average ({low:+.1f} to
{high:+.1f}, a 95 % t interval over the pairs). Test was not used. Made by `python benchmarks/fine_tuning.py --variants
last=model.features:last stages=model.features:stages`.
"""
LONG = """\
## What should be seen of long photographs?

A plan squashes all photographs into the square but those that are nearly square. Validation accuracy of a linear head
on the features of the frozen network, for each split: the upright photographs of TrashNet cut to narrower shapes, and
cropped to their central square or squashed into it, at {size} px.

An input of 256 x 192 px, in which photographs of 3:4 are not squashed at all, gains {mean:+.1f} points over a square of
as many pixels ({low:+.1f} to {high:+.1f}, {pairs} pairs on {sets}). That shows no difference, so
plans keep the square. Test was not used. Made by `python benchmarks/fine_tuning.py --steps 0`, with the fields that
`benchmarks/results/fine_tuning.json` has.
"""
AUGMENTATION = """\
## Which augmentation, for how many images?

Validation accuracy that a plan's run of {steps} steps keeps, and the points that other augmentation gains on the same
splits (mean and 95 % t interval), with {few} images to train with and with all of them. The augmented view that the
probe sees changes with it. Test was not used. Made by `python benchmarks/fine_tuning.py`; the figures are those of
`benchmarks/results/fine_tuning_augment.json`, which has the fields of each variant.

No other augmentation shows a gain. TrivialAugment loses with few images as with all of them, and CutMix loses on
textile, whose classes differ in details. So a plan that fine-tunes crops from 0.35 to 1 of the area and flips, whatever
the number of images. Fine-tunings of more steps were not measured.
"""
AUGMENTATIONS = {
    "gentle": "crops of 0.7 to 1",
    "trivial": "TrivialAugment too",
    "cutmix": "CutMix on half of the batches too",
}
VARIANTS = {
    "short": "warm-up over 0.1 of the steps",
    "long": "over 0.4",
    "half": "over 0.1, 2.5e-4",
    "views": "over 0.1, the probe fitted on an augmented view too",
    "middle": "over 0.25",
    "both": "over 0.1, 2.5e-4, and an augmented view",
    "both35": "over 0.1, 3.5e-4, and an augmented view",
    "beta": "over 0.1, an augmented view, betas of 0.9 and 0.98",
    "decay": "over 0.1, rates that fall by 0.75 a layer group instead of 0.9",
    "mild": "over 0.1, crops of 0.7 to 1 of the area",
    "soft": "over 0.1, the probe's logits divided by a temperature",
    "live": "over 0.1, BatchNorm's statistics trained",
}
_VIEWED = ("views", "both", "both35", "beta")  # have a probe of their own
_OFTEN = 4  # splits on which a variant has a column of its own
_LATE = 1.1  # of its minutes: a row is marked that took longer
_SCHEDULED = ("torchvision", "fastai", "timm")  # loops whose schedule was cut short in rows without planned_steps
SETS = {
    "trashnet": "TrashNet (2,527 photographs, 6 classes)",
    "textile": "Simulated textile (2,000 images, 3 classes)",
    "imagenette-small": "Imagenette (3,200 photographs, 10 classes of ImageNet)",
    "cifar10": "CIFAR-10 (2,500 images to train and validate with, 32 px)",
    "cifar10-160": "CIFAR-10 (2,500 images to train and validate with), enlarged to 160 px",
    "photos-mini": "photos-mini (600 photographs, 6 classes)",
    "fashion-mini": "fashion-mini (28 px, grey)",
}


def outcome(paired: list[dict[str, Any]]) -> str:
    """In how many comparisons with other contestants Kitae is better or worse, in words."""
    others = [line for line in paired if line["difference"] is not None and not line["contestant"].startswith("kitae")]
    better, worse = ([line for line in others if sign * line["interval"][edge] > 0] for sign, edge in ((-1, 1), (1, 0)))
    rest = [line for line in others if line not in better and line not in worse]
    alike = all(line["contestant"].startswith("probe") for line in rest)
    who = ", all with logistic regression on features of the same weights," if alike else ""
    return textwrap.fill(
        f"In {len(better)} of the {len(others)} comparisons below, Kitae's accuracy on test is higher, with an "
        f"interval that excludes 0 (each by itself, not corrected for their number). It is lower in "
        f"{len(worse) or 'none'}. The other {len(rest)}{who} are undecided.",
        120,
    )


def photographs(found: dict[str, Any]) -> str:
    """The page on accuracy in the same minutes."""
    late = {
        (row["set"], row["budget"], row["contestant"])
        for row in found["rows"]
        if row["contestant"].startswith(_SCHEDULED)
        and "planned_steps" not in row
        and row["seconds"] > 0.95 * 60 * row["budget"]
    }
    steps = [
        row["steps"]
        for row in found["rows"]
        if "pace" in row and (row["set"], row["contestant"], row["budget"]) == ("textile", "torchvision", 5)
    ]
    sides = [
        row["size"]
        for row in found["rows"]
        if (row["set"], row["contestant"], row["budget"]) == ("textile", "kitae", 5)
    ]
    slow, taken = (f"{min(values)} to {max(values)}" for values in (steps, sides))
    over = {
        (row["set"], row["budget"], row["contestant"]): row["seconds"] / 60 / row["budget"] - 1
        for row in sorted(found["rows"], key=lambda row: row["seconds"])
        if row["seconds"] > _LATE * 60 * row["budget"]
    }
    dated = [row["when"][:10] for row in found["rows"] if "when" in row]
    lines = [
        PHOTOGRAPHS.format(
            outcome=outcome(found["paired"]),
            machine=_machine(found["machine"]).rpartition(", ")[0],
            cut=CUT if late else "",
            slow=slow,
            sizes=taken,
            over=OVER.format(longest=100 * max(over.values())) if over else "",
            first=FIRST,
            last=max(dated),
            undated=len(found["rows"]) - len(dated),
            runs=len(found["rows"]),
        ),
    ]
    paced: dict[tuple[Any, ...], bool] = {}
    for row in found["rows"]:
        key = row["set"], row["budget"], row["contestant"]
        paced[key] = "pace" in row and paced.get(key, True)
    newest = [key for key, whole in paced.items() if whole]
    return "\n".join([*lines, *accuracies(found, {r"\*": late, "†": newest, "‡": over})])


def accuracies(found: dict[str, Any], marks: Mapping[str, Collection[tuple[Any, ...]]], level: str = "##") -> list[str]:
    """A table for each set. `marks` has the rows with each mark, by set, budget and contestant."""
    lines: list[str] = []
    for name in dict.fromkeys(line["set"] for line in found["paired"]):
        base, _, limit = name.partition(":")
        lines += [
            f"{level} {SETS.get(base, base)}" + (f", {limit} images to train and validate with" if limit else ""), "",
            "| minutes | contestant | test accuracy (lowest to highest seed) | minus Kitae, points | seconds taken | "
            "peak memory | seeds |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        rows = [line for line in found["paired"] if line["set"] == name]
        for line in sorted(rows, key=lambda one: (one["budget"], -one["accuracy"])):
            key = name, line["budget"], line["contestant"]
            runs = [row for row in found["rows"] if (row["set"], row["budget"], row["contestant"]) == key]
            mark = "".join(f" {sign}" for sign, marked in marks.items() if key in marked)
            reached = sorted(100 * row["accuracy"] for row in runs)
            span = f" ({reached[0]:.1f} to {reached[-1]:.1f})" if len(runs) > 1 else ""
            memory = max(row["peak_memory_bytes"] for row in runs) / 2**30
            accuracy = f"{100 * line['accuracy']:.1f} %{span}"
            lines.append(
                f"| {line['budget']:g} | {CONTESTANTS[line['contestant']]}{mark} | {accuracy} | "
                f"{_difference(line)} | {line['seconds']:.0f} | {memory:.1f} GiB | {line['seeds']} |"
            )
        lines.append("")
    return lines


def scratch(found: dict[str, Any]) -> str:
    """The section on training without pretrained weights."""
    return "\n".join([SCRATCH.format(machine=_machine(found["machine"])), *accuracies(found, {}, "###")])


def splits_in_words(rows: Collection[dict[str, Any]]) -> str:
    """The mean validation accuracy of rows, and that of each."""
    values = [100 * row["val_accuracy"] for row in rows]
    return f"{statistics.fmean(values):.1f} % ({', '.join(f'{value:.1f}' for value in values)})"


def sizes(found: dict[str, Any]) -> str:
    """The section on the image sizes that a plan chooses from."""
    rows = [row for row in found["rows"] if row["size"] is not None]
    known = sorted({row["size"] for row in rows})
    lines = [
        SIZES, f"| set | {' | '.join(f'{size} px' for size in known)} |", "|---" * (1 + len(known)) + "|",
    ]  # fmt: skip
    for name in dict.fromkeys(row["set"] for row in rows):
        base, _, limit = name.partition(":")
        cells = [SETS.get(base, base).partition(" (")[0] + (f", {limit} images" if limit else "")]
        cells += [splits_in_words([row for row in rows if (row["set"], row["size"]) == (name, size)]) for size in known]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def fine_tuning(found: dict[str, Any]) -> str:
    """The section on the start of a fine-tuning."""
    rows = [row for row in found["rows"] if row["variant"] in VARIANTS]
    tried = Counter(row["variant"] for row in rows)
    known = [variant for variant in VARIANTS if tried[variant] >= _OFTEN]
    lines = [
        FINE_TUNING, f"| set, split | probe | {' | '.join(VARIANTS[variant] for variant in known)} |",
        "|---" * (2 + len(known)) + "|",
    ]  # fmt: skip
    for name, size, steps, seed in dict.fromkeys((r["set"], r["size"], r["steps"], r["seed"]) for r in rows):
        mine = {
            row["variant"]: row
            for row in rows
            if (row["set"], row["size"], row["steps"], row["seed"]) == (name, size, steps, seed)
        }
        probe = statistics.median(row["probe"] for row in mine.values() if row["variant"] not in _VIEWED)
        what = SETS.get(name, name).partition(" (")[0]
        cells = [f"{what}, {seed}: {size} px, {steps} steps", f"{100 * probe:.1f} %"]
        cells += [f"{100 * mine[variant]['last']:.1f} %" if variant in mine else "" for variant in known]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "On fewer splits:", ""]
    for row in rows:
        if row["variant"] not in known:
            what = SETS.get(row["set"], row["set"]).partition(" (")[0]
            lines.append(
                f"- {VARIANTS[row['variant']]}: {100 * row['last']:.1f} % ({what}, {row['seed']}, {row['size']} px)"
            )
    return "\n".join([*lines, ""])


def seen(found: dict[str, Any]) -> str:
    """The section on what the head sees: pairs of fine-tunings, by split."""
    pairs: dict[tuple[str, int], dict[str, Any]] = {}
    for row in found["rows"]:
        if row["variant"] in ("last", "stages"):
            pairs.setdefault((row["set"], row["seed"]), {})[row["variant"]] = row
    gains = [100 * (pair["stages"]["val_accuracy"] - pair["last"]["val_accuracy"]) for pair in pairs.values()]
    mean, low, high = mean_interval(gains)
    head = "| set, split | probe: last features | all stages | fine-tuned: last features | all stages |"
    lines = [SEEN.format(mean=mean, low=low, high=high), head, "|---" * 5 + "|"]
    for (name, seed), pair in pairs.items():
        scores = [pair[which][score] for score in ("probe", "val_accuracy") for which in ("last", "stages")]
        cells = [f"{100 * score:.1f} %" for score in scores]
        lines.append(f"| {SETS[name].partition(' (')[0]}, {seed} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def augmentation(found: dict[str, Any]) -> str:
    """The section on augmentation by the number of images: pairs of runs, by set and over all sets."""
    rows = {(row["variant"], row["set"], row["seed"]): row for row in found["rows"]}
    few = next(row["fields"]["images"] for row in rows.values() if "images" in row["fields"])
    heads = (f"{words}, points" for words in AUGMENTATIONS.values())
    lines = [
        AUGMENTATION.format(few=few, steps=found["rows"][0]["steps"]),
        f"| images, set | splits | planned | {' | '.join(heads)} |", "|---" * (3 + len(AUGMENTATIONS)) + "|",
    ]  # fmt: skip
    for count, words in (("few", few), ("all", "all")):
        every = [row for row in rows.values() if row["variant"] == f"{count}-planned"]
        names = list(dict.fromkeys(row["set"] for row in every))
        for these in (*([name] for name in names), names):
            planned = [row for row in every if row["set"] in these]
            what = f"{SETS[these[0].partition(':')[0]].partition(' (')[0]}, {planned[0]['size']} px"
            cells = [f"{words}: {what if len(these) == 1 else 'the three sets'}", str(len(planned))]
            cells.append(f"{100 * statistics.fmean(row['val_accuracy'] for row in planned):.1f} %")
            for other in AUGMENTATIONS:
                pairs = [(rows.get((f"{count}-{other}", row["set"], row["seed"])), row) for row in planned]
                gains = [100 * (one["val_accuracy"] - row["val_accuracy"]) for one, row in pairs if one is not None]
                whole = len(gains) == len(planned)
                cells.append(points(gains) if whole else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def long(found: dict[str, Any]) -> str:
    """The section on photographs far from square: pairs of runs, by split."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    rows = {(row["set"], row["variant"], row["seed"]): row for row in found["rows"] if not row["steps"]}
    for kinds in (("crop", "squash"), ("square", "upright")):
        for (name, kind, seed), row in rows.items():
            if kind == kinds[0]:
                other = rows[name, kinds[1], seed]
                pair = (100 * row["val_accuracy"], 100 * other["val_accuracy"])
                pairs.setdefault((kind, name), []).append(pair)
    oblong = {name: scores for (kind, name), scores in pairs.items() if kind == "square"}
    gains = [after - before for scores in oblong.values() for before, after in scores]
    mean, low, high = mean_interval(gains)
    sets = " and ".join(SETS[name].partition(" (")[0] for name in oblong)
    size = next(row["size"] for row in rows.values())
    lines = [
        LONG.format(size=size, mean=mean, low=low, high=high, pairs=len(gains), sets=sets),
        "| shape | crop | squash | squash - crop, points |", "|---" * 4 + "|",
    ]  # fmt: skip
    for (kind, name), scores in pairs.items():
        if kind == "crop":
            gained = points([after - before for before, after in scores])
            across, down = name.rpartition("-")[2].split("x")
            shape = f"{across}:{down}" if int(down) < 20 else f"1:{int(down) / int(across):g}"
            cells = (", ".join(f"{value:.1f}" for value in values) + " %" for values in zip(*scores, strict=True))
            lines.append(f"| {shape} | {' | '.join(cells)} | {gained} |")
    return "\n".join([*lines, ""])


def _difference(line: dict[str, Any]) -> str:
    if line["difference"] is None:
        return ""
    text = f"{100 * line['difference']:+.1f}"
    if line["interval"] is None:
        return text
    low, high = line["interval"]
    return f"{text} ({100 * low:+.1f} to {100 * high:+.1f})"


LOOPS = {
    "kitae": "`kt.train`, run folder included",
    "compiled": "the same with `train.compile`",
    "bare": "the limit: the bare step, one batch of floats in memory",
    "kept": "the bare step in a process that keeps freed memory",
    "tutorial": "tutorial loop: DataLoader, float32",
    "tuned": "tutorial loop with bfloat16, channels_last and workers that stay",
    "lightning": "Lightning's Trainer, bf16-mixed, channels_last",
    "timm": "timm's parts, bfloat16, channels_last",
}
ROWS = {
    "resnet9": "ResNet-9 of width 32, 32 px",
    "resnet18": "ResNet-18, 32 px",
    "strong": "ResNet-18, 32 px: AutoAugment, mixing, erasing, smoothing, stochastic depth, averaged weights",
    "efficientnet": "EfficientNet-B0, 224 px",
    "resnet50": "ResNet-50, 224 px",
}


def training(found: dict[str, Any]) -> str:
    """The page on training speed."""
    depthwise = _depthwise(json.loads((RESULTS / "depthwise.json").read_text()))
    lines = [TRAINING.format(depthwise=depthwise)]
    for name, row in found["rows"].items():
        head = ["loop", "images/s", "Kitae is faster by", "waits for images", "memory between steps"]
        whole = "cpu_seconds_per_1000_images" in row
        head += ["peak memory", "processor seconds for 1,000 images"] if whole else []
        shares = row.get("image_share")  # earlier rows have none
        head += [] if shares is None else ["of these for data and augmentation"]
        lines += [f"## {ROWS.get(name, name)}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        rates = row["images_per_second"]
        for loop, rate in sorted(rates.items(), key=lambda one: -one[1]["median"]):
            over = row["kitae_over"].get(loop)
            waits = row["waiting_share"].get(loop)
            cells = [
                LOOPS[loop],
                f"{rate['median']:,.0f} ({rate['min']:,.0f} to {rate['max']:,.0f})",
                f"{over['median']:.2f} ({over['min']:.2f} to {over['max']:.2f})" if over else "",
                "" if waits is None else f"{100 * waits:.0f} %",
                f"{row['memory_between_steps_bytes'][loop] / 1e9:.1f} GB",
            ]
            if whole:
                seconds = row["cpu_seconds_per_1000_images"][loop]["median"]
                cells += [f"{row['peak_memory_bytes'][loop] / 1e9:.1f} GB", f"{seconds:,.1f}"]
            if shares is not None:
                cells.append(f"{100 * shares[loop]:.1f} %" if loop in shares else "")
            lines.append(f"| {' | '.join(cells)} |")
        rounds = next(iter(rates.values()))["n"]
        lines += ["", f"Batch {row['batch']}, {rounds} rounds of {row['steps']} steps. {_machine(row['machine'])}."]
        if "parts_milliseconds" in row:
            saved = row["checkpoint_seconds"]
            seconds = f"{saved['median']:.2f} s ({saved['min']:.2f} to {saved['max']:.2f})"
            parts = ", ".join(f"{name} {taken:,.2f}" for name, taken in row["parts_milliseconds"].items())
            lines += ["", f"Kitae's step in milliseconds: {parts}. They come one after the other."]
            lines += ["", f"A checkpoint takes {seconds}."]
        lines += [f"Left out: {LOOPS[loop]} ({why})." for loop, why in row["left_out"].items()]
        lines.append("")
    return "\n".join(lines)


def _depthwise(found: dict[str, Any]) -> str:
    """How much faster the steps of networks with depthwise convolutions are than in other ways."""
    ways = list(found["networks"][0]["over_ours"])
    lines = [f"| network, {found['networks'][0]['side']} px | over {' | over '.join(ways)} |", "|---" * 4 + "|"]
    for row in found["networks"]:
        cells = [f"{over['median']:.2f} ({over['min']:.2f} to {over['max']:.2f})" for over in row["over_ours"].values()]
        lines.append(f"| {row['network']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def minutes_kept(found: dict[str, Any]) -> str:
    """Which part of its minutes the command takes, alone and beside busy processes."""
    rows = found["rows"]
    beside = sorted({row["beside"] for row in rows})
    heads = [f"beside {count} busy processes" if count else "alone" for count in beside]
    lines = [
        MINUTES.format(set=SETS[rows[0]["set"]], cores=max(beside)),
        f"| minutes | {' | '.join(f'{head} | test accuracy, size, epochs' for head in heads)} |",
        "|---" * (1 + 2 * len(beside)) + "|",
    ]
    for minutes in sorted({row["minutes"] for row in rows}):
        cells = []
        for count in beside:
            mine = [row for row in rows if (row["minutes"], row["beside"]) == (minutes, count)]
            cells.append(", ".join(f"{100 * row['seconds'] / (60 * minutes):.0f} %" for row in mine))
            cells.append(", ".join(f"{100 * row['accuracy']:.1f} %, {row['size']} px, {row['epochs']}" for row in mine))
        lines.append(f"| {minutes:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nMachine: {_machine(found['machine'])}.\n"


def _machine(machine: dict[str, Any]) -> str:
    versions = machine["versions"]
    return f"{machine['processor']}, {machine['cores_used']} cores, torch {versions['torch']}, {machine['when'][:10]}"


def pages() -> dict[Path, str]:
    """Each page and its text; results that do not exist have none."""
    found = {}
    for result, name, write in (("quality", "photographs", photographs), ("train", "training", training)):
        path = RESULTS / f"{result}.json"
        if path.is_file():
            found[DOCS / f"{name}.md"] = write(json.loads(path.read_text()))
    page = DOCS / "photographs.md"
    sections = (
        ("quality-scratch", scratch), ("minutes", minutes_kept), ("settings", sizes), ("fine_tuning", fine_tuning),
        ("fine_tuning_augment", augmentation), ("fine_tuning", seen), ("fine_tuning", long),
    )  # fmt: skip
    for result, section in sections:
        path = RESULTS / f"{result}.json"
        if path.is_file() and page in found:
            found[page] += "\n" + section(json.loads(path.read_text()))
    found[DOCS / "gpu.md"] = gpu_page.text()
    page = DOCS / "cifar10.md"
    before, _, rest = page.read_text().partition(cifar10_steps.BEGIN)
    _, _, after = rest.partition(cifar10_steps.END)
    found[page] = before + cifar10_steps.BEGIN + "\n" + cifar10_steps.text() + cifar10_steps.END + after
    found[DOCS / "cifar10-steps.svg"] = cifar10_steps.picture().file()
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
