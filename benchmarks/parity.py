"""Does accuracy change when a user moves over from torchvision? The standard pipeline, ours against theirs.

    python benchmarks/parity.py parquet:cifar10.parquet [--limit 10000] [--epochs 10] [--seeds 3]

Crop with padding 4, flip, jitter .2/.2/.2/.1, normalise, erasing .5. Runs of a seed share split, initial weights and
order of images; only who augments differs. Test is opened once, for all runs together, after the last one was trained.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from kitae import keyed
from kitae.experiments.stats import half_interval
from kitae.files import write_json
from kitae.machine import machine
from kitae.pipelines.setup import Setup, begin
from kitae.recipe import Recipe
from kitae.run import Run
from kitae.training.fit import Source, fit

JITTER = (0.2, 0.2, 0.2, 0.1)


class Torchvision:
    """torchvision's v2 transforms, image by image, as a loop would call them."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], classes: int, seed: int) -> None:
        self.classes, self.seed = classes, seed
        self.transform = v2.Compose([
            v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ColorJitter(*JITTER),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), v2.RandomErasing(p=0.5),
        ])  # fmt: skip

    def __call__(
        self, images: Tensor, targets: Tensor, *, epoch: int, index: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed.derive_seed(self.seed, epoch, int(index[0]), keyed.SLOT_OPS))
            batch = torch.stack([self.transform(image) for image in images])
        batch = batch.contiguous(memory_format=torch.channels_last)
        return batch, torch.nn.functional.one_hot(targets, self.classes).float()


def recipe(source: str, limit: int | None, epochs: int, seed: int) -> Recipe:
    jitter = dict(zip(("brightness", "contrast", "saturation", "hue"), JITTER, strict=True))
    ops = [{"random_crop": {"padding": 4}}, {"horizontal_flip": {}}, {"color_jitter": jitter}, {"random_erasing": {}}]
    return Recipe.model_validate({
        "name": "parity",
        "data": {"source": source, "limit": limit, "val_fraction": 0.1},
        "augment": {"train": ops},
        "model": {"name": "resnet9", "width": 16},
        "train": {
            "epochs": epochs, "batch_size": 128, "precision": "bf16", "seed": seed,
            "optimizer": {"lr": 0.2}, "schedule": {"name": "one_cycle"},
        },
    })  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--limit", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "parity.json")
    given = parser.parse_args(arguments)
    if given.seeds < 2:
        parser.error("--seeds: at least 2, or there is no interval")
    trained: list[tuple[int, str, Any, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            chosen = recipe(given.source, given.limit, given.epochs, seed)
            world = begin(chosen.train)
            run = Run.create(Path(folder) / str(seed), chosen)
            setup = Setup.of(run)
            mean, std = setup.normalization
            for arm in ("kitae", "torchvision") if seed % 2 == 0 else ("torchvision", "kitae"):
                model = setup.initial_model(world)
                ours = setup.augment(seed).prepare(*setup.store.images.shape[1:])
                augment = ours if arm == "kitae" else Torchvision(mean, std, len(setup.store.classes), seed)
                start = time.perf_counter()
                fit(model, chosen.train, Source(setup.images, augment, setup.validator(world)), world, "bf16")
                trained.append((seed, arm, model, time.perf_counter() - start))
                print(f"seed {seed}  {arm:12}  {trained[-1][3]:.0f} s", flush=True)
        run.write_facts(setup.facts(trained[0][2]))
        images = setup.image_set(setup.splits.open_test(lambda: run.count_test_opening("parity, all runs")))
        rows = []
        for seed, arm, model, seconds in trained:
            logits, labels = run.logits(images, model)
            rows.append({"seed": seed, "arm": arm, "accuracy": float((logits.argmax(1) == labels).mean()),
                         "seconds": seconds})  # fmt: skip
    by = {(row["seed"], row["arm"]): row["accuracy"] for row in rows}
    pairs = [100 * (by[seed, "kitae"] - by[seed, "torchvision"]) for seed in range(given.seeds)]
    mean_difference = statistics.mean(pairs)
    half = half_interval(statistics.stdev(pairs) / len(pairs) ** 0.5, len(pairs) - 1)
    alone = [100 * by[seed, "torchvision"] for seed in range(given.seeds)]
    result = {
        "question": "test accuracy with our standard pipeline minus torchvision's, in points",
        "recipe": recipe("SOURCE", given.limit, given.epochs, 0).model_dump(mode="json"),
        "test_images": len(labels),
        "runs": rows,
        "difference": mean_difference,
        "interval": [mean_difference - half, mean_difference + half],
        "interval_covers": "seeds, 95 %, Student's t over paired seeds",
        "seed_noise": {"arm": "torchvision", "sd": statistics.stdev(alone), "n": len(alone)},
        "machine": machine(),
    }
    write_json(given.out, result)
    print(f"difference {mean_difference:+.2f} points (95 % interval {mean_difference - half:+.2f} to "
          f"{mean_difference + half:+.2f}); seed noise {statistics.stdev(alone):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
