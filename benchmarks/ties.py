"""Which of several equally good epochs to keep: test accuracy of the first, the last, and that of the rule for ties.

    python benchmarks/ties.py --seeds 0 1 2 3 4 5

Trainings of fashion-mini with few validation images, so that several epochs have the same best accuracy. Each epoch's
weights are evaluated on test, which the rule does not see: it takes the lower validation loss, then the later epoch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

from kitae.evaluation.evaluate import predict_logits
from kitae.pipelines.setup import Setup
from kitae.pipelines.train import train
from kitae.recipe import Recipe
from kitae.training import fit
from kitae.training.spec import merit


def epochs(recipe: Recipe, folder: Path) -> list[dict[str, float]]:
    """Validation accuracy and loss, and test accuracy, after each epoch."""
    setup = Setup.without_run(recipe)
    rows = setup.splits.open_test(lambda: None)
    test, found = setup.image_set(rows), []
    judge, (mean, std) = fit._judge, setup.normalization

    def judged(source: Any, model: Any, world: Any, at: Any) -> Any:
        scores, fields = judge(source, model, world, at)
        logits, labels = predict_logits(model, test.gather, test.rows, mean=mean, std=std, device=world.device)
        found.append({
            "val_accuracy": scores["val_accuracy"], "val_loss": scores["val_loss"],
            "test_accuracy": float((logits.argmax(axis=1) == labels).mean()),
        })  # fmt: skip
        return scores, fields

    fit._judge = judged
    try:
        train(recipe, folder, test=False)
    finally:
        fit._judge = judge
    return found


def chosen(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """How many epochs share the best accuracy, and the test accuracy that each rule gets."""
    best = max(row["val_accuracy"] for row in rows)
    tied = [row for row in rows if row["val_accuracy"] == best]
    ruled = max(enumerate(rows), key=lambda item: (merit(item[1], "val_accuracy"), item[0]))[1]
    return {
        "tied": len(tied), "first": tied[0]["test_accuracy"], "last": tied[-1]["test_accuracy"],
        "rule": ruled["test_accuracy"], "best_possible": max(row["test_accuracy"] for row in tied),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    parser.add_argument("--images", type=int, default=2400, help="to train and validate with")
    parser.add_argument("--validation", type=int, default=24, help="of them")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=None, help="results, JSON")
    parser.add_argument("--quick", action="store_true", help="one short training; the numbers mean nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.images, options.epochs = [0], 240, 2
    out = options.out or (common.SCRATCH if options.quick else common.RESULTS) / "ties.json"
    rows = []
    for seed in options.seeds:
        recipe = Recipe.load("fashion-mini").override(
            f"data.limit={options.images}", f"data.val_fraction={options.validation / options.images}",
            f"train.epochs={options.epochs}", f"train.seed={seed}", f"data.split_seed={seed}",
            "train.select=val_accuracy",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            measured = epochs(recipe, Path(folder) / "run")
        rows.append({"seed": seed, **chosen(measured), "epochs": measured})
        print({name: value for name, value in rows[-1].items() if name != "epochs"}, flush=True)
    means = {name: statistics.fmean(row[name] for row in rows) for name in ("first", "last", "rule", "best_possible")}
    print("means", {name: round(value, 4) for name, value in means.items()})
    common.save(out, {
        "what": "test accuracy of the epoch that is kept, where several have the best validation accuracy",
        "machine": common.hardware(common.available_cores()), "images": options.images,
        "validation_images": options.validation, "quick": options.quick, "means": means, "rows": rows,
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
