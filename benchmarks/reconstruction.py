"""What a pruned network keeps, with other settings of `kitae compress`. Validation scores; test stays closed.

    python benchmarks/reconstruction.py --sets fashion-mini cifar10:3000 --trainings sgd muon
    python benchmarks/reconstruction.py --sets photos-mini trashnet textile --trainings pretrained --size 96
    python benchmarks/reconstruction.py --sets photos-mini:60 --trainings pretrained --size 64 --seeds 0 --ratios 0.5 \\
        --out runs/tiny.json                                                                        does it run?

A variant is NAME=FIELD:VALUE,FIELD:VALUE, fields of `CompressSpec`. `sgd` and `muon` train a ResNet-9 from scratch, as
`from_scratch.py` does with --passes; `pretrained` is what a plan fine-tunes, in 120 steps. Each network is pruned to
every one of --ratios, each from the one before. Rows have the score in float32 at every ratio, what shares of the
original's bytes and multiply-adds it has, `val_accuracy`, the mean of the scores, and how many seconds the search took
beside its measurements. Sets, splits and lists are those of `quality.py`; rows that are in --out already are not run
again; other fields need another name.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import quality
import yaml
from fine_tuning import VALIDATIONS, parse_all
from from_scratch import TINY, entries
from from_scratch import VALIDATIONS as SCRATCH_VALIDATIONS

import kitae as kt
from kitae.compression.spec import CompressSpec
from kitae.pipelines.train import asked
from kitae.recipe import Recipe

KEYS = ("set", "seed", "training", "variant")
VARIANTS = (
    "norms=importance:group,scope:layer", "global=importance:reconstruction,scope:global",
    "norms-alone=importance:group,scope:layer,finetune_epochs:0",
    "alone=importance:reconstruction,finetune_epochs:0,scope:global",
)  # fmt: skip
TRAININGS = {"sgd": {"sgd": "0.4"}, "muon": {"muon": "0.24"}}
STEPS = 120


def planned(path: Path, seed: int, *, training: str, size: int | None, passes: int) -> Recipe:
    """The recipe of the network that is pruned later."""
    sized = {} if size is None else {"image_size": size}
    if training == "pretrained":
        recipe, _, _ = asked(path, None, {"epochs": VALIDATIONS, "seed": seed, **sized})
        return recipe.override("train.threads=1", f"train.epoch_steps={STEPS // VALIDATIONS}")
    recipe, _, _ = asked(path, None, {"model": "resnet9", "epochs": passes, "seed": seed, **sized})
    each = recipe.train.batch_size * recipe.train.accumulate
    every = f"train.validate_every={-(-passes // SCRATCH_VALIDATIONS)}"
    return recipe.override("train.threads=1", every, *entries(TRAININGS[training], each))


def score(
    path: Path, seed: int, *, training: str, size: int | None, passes: int, ratios: tuple[float, ...],
    variant: str, fields: Mapping[str, str],
    kept: dict[tuple[Any, ...], Any],
) -> dict[str, Any]:  # fmt: skip
    """Validation accuracy and loss of the original and at each ratio. `kept`: runs that another variant has."""
    key = (path, seed, training)
    if key not in kept:
        kept.clear()  # the run of the last split
        folder = tempfile.TemporaryDirectory()
        recipe = planned(path, seed, training=training, size=size, passes=passes)
        kept[key] = folder, kt.train(recipe, Path(folder.name) / "run", test=False, show=False)
    folder, run = kept[key]
    plain: dict[str, Any] = {
        "ratios": ratios, "quantize": ("none",), "max_drop": 100, "sure": False, "abandon": False, "controls": (),
        "sensitivity": False, "threads": 1,
    }  # fmt: skip
    spec = CompressSpec.model_validate({**plain, **{name: yaml.safe_load(value) for name, value in fields.items()}})
    began = time.monotonic()
    found = kt.compress(run.path, Path(folder.name) / f"small-{variant}", spec=spec)
    first, *pruned = [row for row in found.rows if row["precision"] == "fp32"]
    return {
        "fields": dict(fields), "seconds": round(time.monotonic() - began, 1),
        "val_accuracy": statistics.fmean(row["accuracy"] for row in pruned), "original": first["accuracy"],
        "ratios": {str(row["ratio"]): [row["accuracy"], row["loss"]] for row in pruned}, "original_loss": first["loss"],
        "size": {str(row["ratio"]): [row[field] / first[field] for field in ("bytes", "macs")] for row in pruned},
        "optimizer": run.recipe.train.optimizer.name, "learning_rate": run.recipe.train.optimizer.lr,
        "model": run.recipe.model.name, "image_size": run.recipe.data.image_size,
    }  # fmt: skip


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Means over the seeds at each ratio, and what was gained over the first variant with the same seed."""
    for name, training in dict.fromkeys((row["set"], row["training"]) for row in rows):
        here = [row for row in rows if (row["set"], row["training"]) == (name, training)]
        base = {row["seed"]: row for row in here if row["variant"] == here[0]["variant"]}
        original = 100 * statistics.fmean(row["original"] for row in base.values())
        print(f"{name}, {training}: {original:.2f} %")
        for variant in dict.fromkeys(row["variant"] for row in here):
            mine = {row["seed"]: row for row in here if row["variant"] == variant}
            both = [seed for seed in mine if seed in base]
            parts = []
            for ratio in here[0]["ratios"]:
                points = [100 * row["ratios"][ratio][0] for row in mine.values()]
                gains = [100 * (mine[seed]["ratios"][ratio][0] - base[seed]["ratios"][ratio][0]) for seed in both]
                parts.append(f"{ratio}: {statistics.fmean(points):.2f} ({statistics.fmean(gains):+.2f})")
            gains = [100 * (mine[seed]["val_accuracy"] - base[seed]["val_accuracy"]) for seed in both]
            low, high = quality.interval(gains) if len(gains) > 1 else (0, 0)
            print(f"  {variant:<8} {'  '.join(parts)}  mean {statistics.fmean(gains):+.2f} ({low:+.2f} to {high:+.2f})")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = quality.growing_parser(__doc__, "reconstruction")
    parser.add_argument("--trainings", nargs="+", default=["sgd"], choices=[*TRAININGS, "pretrained"])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="NAME=FIELD:VALUE,...")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.5])
    parser.add_argument("--passes", type=int, default=15, help="from scratch, through the training images")
    parser.add_argument("--size", type=int, default=160, help="pixels, of pictures that are not tiny")
    options = parser.parse_args(arguments)
    out = options.out or common.RESULTS / "reconstruction.json"
    head = {"what": "validation accuracy of pruned networks, by settings of the search", "machine": common.hardware(1)}
    variants = parse_all(parser, options.variants, out)
    rows: list[dict[str, Any]] = []
    for name in options.sets:
        size = None if name.partition(":")[0] in TINY else options.size
        kept: dict[tuple[Any, ...], Any] = {}
        settings = {
            (training, variant): functools.partial(
                score, training=training, size=size, passes=options.passes, ratios=tuple(options.ratios),
                variant=variant, fields=fields, kept=kept,
            )
            for training in options.trainings
            for variant, fields in variants.items()
        }  # fmt: skip
        rows = quality.add_rows(out, head, KEYS, [name], options.seeds, settings)
    show(rows)
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
