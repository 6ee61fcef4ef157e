"""What a trained run cost and reached, as JSON: python benchmarks/recipe.py RUN [--note TEXT]

FLOPs count a multiply-add as two operations, and forward, gradient of inputs and gradient of weights as three passes:
6 x MACs x images seen, each at the size that the network saw (`train.progressive`). Seconds and memory are with those
of a probe, which is before the first epoch; epochs, images, speed and FLOPs without.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from kitae.data.splits import Splits
from kitae.files import write_json
from kitae.models.structure import count_macs
from kitae.run import Run
from kitae.training.batches import epoch_shape
from kitae.training.schedule import progressive_size

RESULTS = Path(__file__).parent / "results"


def macs_seen(run: Run, updates: int) -> float:
    """Multiply-adds of a forward pass, a mean over the updates."""
    full, growing = run.facts()["macs"], run.recipe.train.progressive
    if growing is None:
        return float(full)
    channels, height, width = run.open_store().rules.shape
    sizes = [progressive_size((height, width), update / updates, growing) for update in range(updates)]
    network = run.load_model()
    at = {size: count_macs(network, channels, size) for size in set(sizes)}
    return statistics.fmean(at[size] for size in sizes)


def facts(run: Run, note: str) -> dict[str, object]:
    model, evaluation, recipe = run.facts(), run.evaluation(), run.recipe
    every = run.metrics()
    rows = [row for row in every if row["epoch"]]
    if not rows:
        raise SystemExit(f"{run.path}: only a probe was fitted, so there is no training to count")
    # Fewer than the recipe says are in a batch, and in an update, where the data have no more.
    count, processes = len(Splits.load(run.path / "splits.npz").train), run.environment().get("processes") or 1
    shape = epoch_shape(count, recipe.train, processes)
    images = shape.batch_size * shape.accumulate * rows[-1]["step"]
    speeds = [row["images_per_second"] for row in rows]
    return {
        "recipe": recipe.model_dump(mode="json"),
        "test": {name: evaluation["test"][name] for name in ("count", "accuracy", "accuracy_interval", "loss", "ece")},
        "validation": {name: evaluation["val"][name] for name in ("count", "accuracy", "accuracy_interval")},
        "test_openings": evaluation["test_openings"],
        "epochs": len(rows),
        "parameters": model["parameters"],
        "macs_an_image": model["macs"],
        "images_seen": images,
        "training_flops": round(6 * macs_seen(run, rows[-1]["step"]) * images),
        "training_seconds": sum(row["seconds"] for row in every),
        "validation_seconds": sum(row.get("validation_seconds", 0.0) for row in every),
        "images_per_second": {
            "n": len(speeds), "median": statistics.median(speeds), "min": min(speeds), "max": max(speeds),
        },
        "data_share": {"median": statistics.median(row["data_share"] for row in rows)},
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in every),
        "machine": run.environment(),
        "note": note,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    run = Run.open(given.run)
    out = given.out or RESULTS / f"{run.recipe.name}.json"
    write_json(out, facts(run, given.note))
    print(out)


if __name__ == "__main__":
    main()
