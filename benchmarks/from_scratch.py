"""How should a training from scratch go? Validation scores of a plan's recipe with other fields; test stays closed.

    python benchmarks/from_scratch.py --sets trashnet textile cifar10 --passes 20 --variants sgd=sgd:0.4 muon=muon:0.24
    python benchmarks/from_scratch.py --sets trashnet --passes 80 --variants mixed=muon:0.24,mix:0.5,until:0.8
    python benchmarks/from_scratch.py --sets photos-mini:60 --passes 2 --size 64 --seeds 0 --out runs/tiny.json
                                                                                                       does it run?

A variant is NAME=FIELD:VALUE,FIELD:VALUE. A field is one of a recipe, or `sgd` (rate of SGD at 128 images a step, in
proportion to them), `muon` (rate of Muon at 1,000 images a step, in proportion to their root), `mix` (share of batches
that CutMix mixes) or `until` (share of the training in which it does). Every variant takes the same number of passes
through the training images, so the scores do not depend on the machine's speed; `seconds` holds what the steps took, on
one thread, and is comparable only between rows measured side by side. Sets, splits and lists are those of `quality.py`;
pictures that are not tiny are trained at --size. Rows that are in --out already are not run again; other fields need
another name.
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import quality
from fine_tuning import parse_all

import kitae as kt
from kitae.pipelines.train import asked

KEYS = ("set", "seed", "size", "passes", "variant")
VALIDATIONS = 3
TINY = ("cifar10", "fashion-mini")  # sets that have a size of their own


def entries(fields: Mapping[str, str], each: int) -> list[str]:
    """A variant's fields as `--set` takes them; `each`: images of a step."""
    made, mix = [], {"mixup_alpha": "0.0", "cutmix_alpha": "1.0"}
    for field, value in fields.items():
        if field == "sgd":
            rate = float(value) * each / 128
            made.append(f"train.optimizer={{name: sgd, lr: {rate:.6g}, momentum: 0.9, weight_decay: 5.0e-4}}")
        elif field == "muon":
            rate = float(value) * math.sqrt(each / 1000)
            made.append(f"train.optimizer={{name: muon, lr: {rate:.6g}, momentum: 0.6, norm: true}}")
        elif field in ("mix", "until"):
            mix["prob" if field == "mix" else field] = value
        else:
            made.append(f"{field}={value}")
    whole = ", ".join(f"{name}: {value}" for name, value in mix.items())
    return [*made, f"augment.mix={{{whole}}}" if "prob" in mix else "augment.mix=null"] if fields else []


def score(path: Path, seed: int, *, size: int | None, passes: int, fields: Mapping[str, str]) -> dict[str, Any]:
    """Validation accuracy and loss of a training from scratch; `size` is None for images of a size of their own."""
    sized = {} if size is None else {"image_size": size}
    recipe, _, _ = asked(path, None, {"model": "resnet9", "epochs": passes, "seed": seed, **sized})
    each = recipe.train.batch_size * recipe.train.accumulate
    every = f"train.validate_every={math.ceil(passes / VALIDATIONS)}"
    recipe = recipe.override("train.threads=1", every, *entries(fields, each))
    with tempfile.TemporaryDirectory() as folder:
        run = kt.train(recipe, Path(folder) / "run", test=False, show=False)
        rows = run.metrics()
    judged = [row for row in rows if row.get("val_accuracy") is not None]
    return {
        "fields": dict(fields),
        "val_accuracy": judged[-1]["val_accuracy"], "best": max(row["val_accuracy"] for row in judged),
        "val_loss": judged[-1]["val_loss"], "train_loss": rows[-1]["train_loss"], "steps": rows[-1]["step"],
        "image_size": recipe.data.image_size, "batch_size": each,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }  # fmt: skip


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Means over the seeds, and what was gained over the first variant with the same seed."""
    for name, size, passes in dict.fromkeys((row["set"], row["size"], row["passes"]) for row in rows):
        here = [row for row in rows if (row["set"], row["size"], row["passes"]) == (name, size, passes)]
        first = {row["seed"]: row for row in here if row["variant"] == here[0]["variant"]}
        for variant in dict.fromkeys(row["variant"] for row in here):
            mine = {row["seed"]: row for row in here if row["variant"] == variant}
            both = [seed for seed in mine if seed in first]
            gains = [100 * (mine[seed]["val_accuracy"] - first[seed]["val_accuracy"]) for seed in both]
            text = ""
            if len(both) > 1 and variant != here[0]["variant"]:
                low, high = quality.interval(gains)
                times = statistics.median(mine[seed]["seconds"] / first[seed]["seconds"] for seed in both)
                text = f"{statistics.fmean(gains):+.2f} ({low:+.2f} to {high:+.2f})  time x {times:.2f}"
            values = [100 * row["val_accuracy"] for row in mine.values()]
            print(
                f"{name:<22} {passes:>3} passes {variant:<14} {statistics.fmean(values):.2f} %  loss "
                f"{statistics.fmean(row['val_loss'] for row in mine.values()):.3f}  "
                f"({' '.join(f'{value:.1f}' for value in values)})  {text}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = quality.growing_parser(__doc__, "from_scratch")
    parser.add_argument("--variants", nargs="+", default=["planned="], metavar="NAME=FIELD:VALUE,...")
    parser.add_argument("--passes", type=int, default=20, help="through the training images")
    parser.add_argument("--size", type=int, default=96, help="pixels, of pictures that are not tiny")
    options = parser.parse_args(arguments)
    out = options.out or common.RESULTS / "from_scratch.json"
    head = {
        "what": "validation accuracy of a plan from scratch with other fields, in the same number of passes",
        "machine": common.hardware(1),
    }
    variants = parse_all(parser, options.variants, out)
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        size = None if name.partition(":")[0] in TINY else options.size
        settings = {
            (size, options.passes, variant): functools.partial(score, size=size, passes=options.passes, fields=fields)
            for variant, fields in variants.items()
        }
        rows = quality.add_rows(out, head, KEYS, [name], options.seeds, settings)
    show(rows)
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
