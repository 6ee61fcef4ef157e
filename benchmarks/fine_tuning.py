"""How should a fine-tuning go? Validation scores of a plan's recipe with other fields; test stays closed.

    python benchmarks/fine_tuning.py --sets textile trashnet photos-mini --variants short=warmup:0.1 long=warmup:0.4
    python benchmarks/fine_tuning.py --sets textile:560 --variants few=images:150      few images, judged by the others
    python benchmarks/fine_tuning.py --sets trashnet --steps 0 --variants even=tail:10 loss=tail:10,data.balance:loss
    python benchmarks/fine_tuning.py --sets photos-mini:60 --size 64 --steps 8 --seeds 0 --out runs/tiny.json
                                                                                                       does it run?

A variant is NAME=FIELD:VALUE,FIELD:VALUE. A field is one of a recipe, or `warmup` (share of the training), `scale` (the
least area of a crop), `images` (about so many are trained with; the rest of train joins validation) or `tail` (the
classes, in a drawn order, have from all of their training images down to one in so many; so have they in the score
`natural`, an accuracy, while `balanced` is the mean over the classes). The number of steps is fixed, so the scores do
not depend on the machine's speed, and a slow or busy machine can run this; with `--steps 0` the probe alone is
compared. Sets, splits and lists are those of `quality.py`. Each row has the score of the probe, which a training keeps
where fine-tuning is no better, and that of every epoch. Rows that are in --out already are not run again; other fields
need another name.
"""

from __future__ import annotations

import argparse
import collections
import csv
import functools
import math
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import quality

import kitae as kt
from kitae.pipelines.train import asked

KEYS = ("set", "seed", "size", "steps", "variant")
VALIDATIONS = 6


def parse(text: str) -> tuple[str, dict[str, str]]:
    """The name and the fields of a variant."""
    name, _, fields = text.partition("=")
    parts = re.split(r",(?![^\[]*\])", fields)  # a comma in brackets is part of a value
    return name, dict(field.split(":", 1) for field in parts if field)


def parse_all(parser: argparse.ArgumentParser, texts: Sequence[str], out: Path) -> dict[str, dict[str, str]]:
    """The variants by name; a usage error where `out` has one of these names with other fields."""
    variants = dict(map(parse, texts))
    for row in common.load(out)["rows"] if out.is_file() else ():
        if row["variant"] in variants and row["fields"] != variants[row["variant"]]:
            parser.error(f"--variants {row['variant']}: {out} has it with {row['fields']}; give it another name")
    return variants


def rewrite(path: Path, name: str, rows: Sequence[Mapping[str, str]]) -> Path:
    """A list with these rows, beside another one."""
    out = path.with_name(f"{path.stem}-{name}.csv")
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out


def tail(path: Path, seed: int, ratio: float) -> Path:
    """A list whose classes have ever fewer training images; the others are left out. See `studies/longtail.py`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rng = np.random.default_rng([seed, 17])
    left_out: set[int] = set()
    classes = rng.permutation(sorted({row["label"] for row in rows}))
    for place, label in enumerate(classes):
        mine = [number for number, row in enumerate(rows) if row["label"] == label and row["split"] == "train"]
        count = max(2, round(len(mine) * ratio ** (-place / max(1, len(classes) - 1))))
        left_out.update(int(number) for number in rng.permutation(mine)[count:])
    return rewrite(path, f"tail-{ratio:g}", [row for number, row in enumerate(rows) if number not in left_out])


def few(path: Path, seed: int, count: int) -> Path:
    """A list with about `count` training images, whose other ones are validation's."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    pool = [number for number, row in enumerate(rows) if row["split"] != "test"]
    labels = [row["label"] for row in rows]
    chosen = quality.share_of(np.random.default_rng([seed, 16]), labels, pool, count / len(pool))
    for number in pool:
        rows[number]["split"] = "train" if number in chosen else "val"
    return rewrite(path, f"few-{count}", rows)


def natural(path: Path, judged: Mapping[str, Any]) -> float:
    """Accuracy if the validation images of each class were as many as its training images."""
    with path.open(newline="") as file:
        counts = collections.Counter(row["label"] for row in csv.DictReader(file) if row["split"] == "train")
    return sum(judged["per_class"][name]["accuracy"] * count for name, count in counts.items()) / counts.total()


def score(path: Path, seed: int, *, size: int, steps: int, fields: Mapping[str, str]) -> dict[str, Any]:
    """Validation accuracy of the probe and of each epoch of a fine-tuning."""
    if "images" in fields:
        path = few(path, seed, int(fields["images"]))
    if "tail" in fields:
        path = tail(path, seed, float(fields["tail"]))
    recipe, _, _ = asked(path, None, {"image_size": size, "epochs": VALIDATIONS if steps else 0, "seed": seed})
    entries = [f"train.epoch_steps={max(1, steps // VALIDATIONS)}"] if steps else []
    for field, value in fields.items():
        if field == "warmup":
            entries.append(f"train.schedule.warmup_epochs={float(value) * VALIDATIONS:g}")
        elif field == "scale":
            entries.append(f"augment.train.random_resized_crop={{scale: [{value}, 1.0]}}")
        elif field not in ("images", "tail"):
            entries.append(f"{field}={value}")
    recipe = recipe.override(*entries)
    with tempfile.TemporaryDirectory() as folder:
        run = kt.train(recipe, Path(folder) / "run", test=False, show=False)
        rows, best, judged = run.metrics(), run.best_epoch(), run.evaluation()["val"]
    reached = {row["epoch"]: row["val_accuracy"] for row in rows}
    tuned = [value for epoch, value in reached.items() if epoch] or [reached[best]]
    return {
        "fields": dict(fields),
        "val_accuracy": reached[best], "balanced": judged["balanced_accuracy"], "natural": natural(path, judged),
        "probe": reached.get(0), "tuned": max(tuned), "last": tuned[-1],
        "best_epoch": best, "epochs": tuned, "train_loss": [row["train_loss"] for row in rows if row["epoch"]],
        "learning_rate": recipe.train.optimizer.lr, "batch_size": recipe.train.batch_size,
    }  # fmt: skip


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Means over the seeds, and what was gained over the first variant with the same seed."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    for name, size, steps in dict.fromkeys((row["set"], row["size"], row["steps"]) for row in rows):
        here = [row for row in rows if (row["set"], row["size"], row["steps"]) == (name, size, steps)]
        for variant in variants:
            mine = {row["seed"]: row for row in here if row["variant"] == variant}
            if not mine:
                continue
            first = {row["seed"]: row for row in here if row["variant"] == variants[0]}
            gains = [100 * (mine[s]["val_accuracy"] - first[s]["val_accuracy"]) for s in mine if s in first]
            text = ""
            if variant != variants[0] and len(gains) > 1:
                low, high = quality.interval(gains)
                text = f"{statistics.fmean(gains):+.2f} ({low:+.2f} to {high:+.2f})"
            for key in ("balanced", "natural"):
                pairs = [100 * (mine[s][key] - first[s][key]) for s in mine if s in first and key in mine[s]]
                if text and len(pairs) > 1:
                    low, high = quality.interval(pairs)
                    text += f"  {key} {statistics.fmean(pairs):+.2f} ({low:+.2f} to {high:+.2f})"
            scores = [[row[key] for row in mine.values()] for key in ("probe", "tuned", "last")]
            columns = [math.nan if None in each else 100 * statistics.fmean(each) for each in scores]  # without a probe
            kept = 100 * statistics.fmean(row["val_accuracy"] for row in mine.values())
            each = " ".join(f"{100 * row['tuned']:.1f}" for row in mine.values())
            print(
                f"{name:<20} {size} px {steps:>4} steps {variant:<16} kept {kept:.2f}  probe {columns[0]:.2f}  tuned "
                f"{columns[1]:.2f} ({each})  last {columns[2]:.2f}  {text}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = quality.growing_parser(__doc__, "fine_tuning")
    parser.add_argument("--variants", nargs="+", default=["planned="], metavar="NAME=FIELD:VALUE,...")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument(
        "--steps", type=int, default=300, help=f"down to a multiple of {VALIDATIONS}; 0: the probe alone"
    )
    options = parser.parse_args(arguments)
    out = options.out or common.RESULTS / "fine_tuning.json"
    head = {
        "what": "validation accuracy of a plan's fine-tuning with other fields, in the same number of steps",
        "machine": common.hardware(common.available_cores()),
    }
    size, steps, variants = options.size, options.steps, dict(map(parse, options.variants))
    settings = {
        (size, steps, name): functools.partial(score, size=size, steps=steps, fields=fields)
        for name, fields in variants.items()
    }
    for row in common.load(out)["rows"] if out.is_file() else ():
        same = (row["size"], row["steps"]) == (size, steps) and row["set"] in options.sets
        fields = variants.get(row["variant"], row["fields"])
        if same and row["seed"] in options.seeds and fields != row["fields"]:
            parser.error(f"--variants {row['variant']}: {out} has it with {row['fields']}; give it another name")
    rows = quality.add_rows(out, head, KEYS, options.sets, options.seeds, settings)
    show(rows)
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
