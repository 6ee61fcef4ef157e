"""The recipe of the CIFAR-10 speed records in a plain loop, on the images and the split of `cifar10-speed`.

    python benchmarks/airbench.py SOURCE [--seeds 0] [--threads 1]

Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024 (arXiv 2404.00498), sections 3 and A: 9.9 epochs of
1,024 images, Nesterov SGD, a rate 64 times as high for the biases of norms, a whitened stem whose bias is frozen after
three epochs, lookahead, alternating flips, crops of images padded by 2, and six views of a test image. The network,
its initial weights, the images to train with and the 1,000 validation images are those of Kitae's recipe. It trains in
bf16.

Seconds hold only beside a run of `cifar10-speed` that shared the machine in the same minutes, with as many threads:

    kitae train cifar10-speed --set train.threads=1 & python benchmarks/airbench.py SOURCE & wait
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kitae.models.structure import count_macs
from kitae.pipelines.setup import Setup, begin
from kitae.recipe import Recipe

EPOCHS, BATCH = 9.9, 1024
LR, MOMENTUM, WEIGHT_DECAY, BIAS_SCALE = 11.5, 0.85, 0.0153, 64.0  # rate and decay for 1,024 images
SMOOTHING, PAD = 0.2, 2
PEAK, START, END = 0.23, 0.2, 0.07  # of the steps; times the rate
STEM_BIAS_EPOCHS = 3
LOOKAHEAD_EVERY, LOOKAHEAD = 5, 0.95**5
VAL_BATCH = 500


class Batches:
    """Shuffled, cropped and alternately flipped batches of normalised images, float32 [N, 3, 32, 32]."""

    def __init__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        self.labels, self.generator, self.epoch = labels, generator, 0
        flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        self.images = F.pad(torch.where(flipped, images.flip(3), images), (PAD,) * 4, mode="reflect")

    def __len__(self) -> int:
        return len(self.labels) // BATCH

    def __iter__(self) -> Any:
        order = torch.randperm(len(self.labels), generator=self.generator)
        for step in range(len(self)):
            rows = order[step * BATCH : (step + 1) * BATCH]
            batch = self._cropped(self.images[rows])
            if self.epoch % 2:
                batch = batch.flip(3)
            yield batch.contiguous(memory_format=torch.channels_last), self.labels[rows]
        self.epoch += 1

    def _cropped(self, padded: Tensor) -> Tensor:
        side = padded.shape[-1] - 2 * PAD
        out = padded.new_empty(*padded.shape[:2], side, side)
        shifts = torch.randint(0, 2 * PAD + 1, (len(padded), 2), generator=self.generator)
        for top in range(2 * PAD + 1):
            for left in range(2 * PAD + 1):
                chosen = (shifts[:, 0] == top) & (shifts[:, 1] == left)
                out[chosen] = padded[chosen, :, top : top + side, left : left + side]
        return out


class Lookahead:
    """A slow copy of all weights and statistics, and the network set to it."""

    def __init__(self, model: nn.Module) -> None:
        self.slow = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def __call__(self, model: nn.Module, decay: float) -> None:
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.slow[name].lerp_(value, 1 - decay)
                value.copy_(self.slow[name])


def optimizer(model: nn.Module) -> torch.optim.SGD:
    scale = 1024 * (1 + 1 / (1 - MOMENTUM))
    lr, decay = LR / scale, WEIGHT_DECAY * BATCH / scale
    norms = [p for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()]
    of_norms = {id(p) for p in norms}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = []
    for scaled, rate in ((True, lr * BIAS_SCALE), (False, lr)):
        params = [p for p in trained if (id(p) in of_norms) is scaled]
        groups.append({"params": params, "lr": rate, "weight_decay": decay / rate})
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


def rate(step: int, total: int) -> float:
    """Times the rate, at a step."""
    return float(np.interp(step, [0, int(PEAK * total), total], [START, 1, END]))


def six_views(model: nn.Module, images: Tensor) -> Tensor:
    """Logits: half are of an image and its mirror image, half of two moved ones and their mirror images."""

    def mirrored(batch: Tensor) -> Tensor:
        batch = batch.contiguous(memory_format=torch.channels_last)
        logits: Tensor = 0.5 * (model(batch) + model(batch.flip(3)))
        return logits

    padded = F.pad(images, (1,) * 4, mode="reflect")
    side = images.shape[-1]
    moved = [mirrored(padded[:, :, shift : shift + side, shift : shift + side]) for shift in (0, 2)]
    return 0.5 * mirrored(images) + 0.25 * (moved[0] + moved[1])


@torch.no_grad()
def accuracy(logits: Any, images: Tensor, labels: Tensor) -> float:
    right = sum(
        int((logits(batch).argmax(1) == told).sum())
        for batch, told in zip(images.split(VAL_BATCH), labels.split(VAL_BATCH), strict=True)
    )
    return right / len(labels)


def train(setup: Setup, model: nn.Module, seed: int, epochs: float) -> dict[str, Any]:
    """One training: its curve over the seconds of training alone, and the accuracy on test."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in setup.normalization)

    def split(rows: Any) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.asarray(setup.store.images[rows])).float().div_(255).sub_(mean).div_(std)
        return images, torch.from_numpy(np.asarray(setup.store.labels[rows])).long()

    val, val_labels = split(setup.splits.val)
    batches = Batches(*split(setup.splits.train), torch.Generator().manual_seed(seed))
    total = math.ceil(epochs * len(batches))
    sgd, slow = optimizer(model), Lookahead(model)
    base = [group["lr"] for group in sgd.param_groups]
    step, seconds, curve, losses = 0, 0.0, [], []
    while step < total:
        model.train()
        began = time.perf_counter()
        model.stem.bias.requires_grad_(step < STEM_BIAS_EPOCHS * len(batches))
        for images, labels in batches:
            for group, lr in zip(sgd.param_groups, base, strict=True):
                group["lr"] = lr * rate(step, total)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING, reduction="sum")
            sgd.zero_grad(set_to_none=True)
            loss.backward()
            sgd.step()
            step += 1
            losses.append(float(loss.detach()) / BATCH)
            if step % LOOKAHEAD_EVERY == 0:
                slow(model, LOOKAHEAD * (step / total) ** 3)
            if step == total:
                break
        if step == total:
            slow(model, 1.0)
        seconds += time.perf_counter() - began
        model.eval()
        curve.append({"step": step, "seconds": seconds, "loss": losses[-1], "val": accuracy(model, val, val_labels)})
        print(curve[-1], flush=True)
    test, labels = split(setup.splits.open_test(lambda: None))
    return {
        "seed": seed,
        "test_images": len(labels),
        "test_accuracy": accuracy(lambda batch: six_views(model, batch), test, labels),
        "training_seconds": seconds,
        "training_flops": 6 * count_macs(model, test.shape[1], test.shape[2:]) * total * BATCH,
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="CIFAR-10, as data.source of a recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "speed" / "airbench.json")
    given = parser.parse_args()
    rows = []
    for seed in given.seeds:
        limit = [] if given.limit is None else [f"data.limit={given.limit}"]
        fields = [f"data.source={given.source}", f"train.seed={seed}", f"train.threads={given.threads}"]
        recipe = Recipe.load("cifar10-speed").override(*fields, *limit)
        world = begin(recipe.train)
        setup = Setup.without_run(recipe)
        rows.append(train(setup, setup.initial_model(world), seed, given.epochs))
        common.save(given.out, {
            "what": "airbench94's published recipe in a plain loop; seconds without validation, which is on one view",
            "threads": given.threads, "epochs": given.epochs, "note": given.note, "rows": rows,
            "machine": common.hardware(given.threads),
        })  # fmt: skip
        print(f"seed {seed}: {rows[-1]['test_accuracy']:.2%} on test, {rows[-1]['training_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
