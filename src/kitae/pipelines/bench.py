"""Benchmarks of a recipe on this machine, without training.

bench(recipe)            where the time of a training step goes
bench_train(recipe)      how long each part of a training step takes, including reading and augmenting the images
bench_precision(recipe)  how long a step takes in each precision, and what `precision: auto` chooses
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kitae.augment import Augment
from kitae.errors import TrainingError
from kitae.evaluation import intervals, latency
from kitae.pipelines.setup import Progress, Setup, begin
from kitae.recipe import Recipe
from kitae.training import precision
from kitae.training.distributed import World
from kitae.training.measure import step_parts, step_times


def bench(recipe: Recipe, progress: Progress | None = None, repeats: int = 15) -> dict[str, Any]:
    """Time reading, augmenting and training on one batch, interleaved, with a plain copy as the limit.

    Returns:
        `batch_size`, `threads`; `milliseconds` a batch of `gather`, `copy` (uint8 to normalised float32, nothing else:
        no augmentation can be faster), `augment`; `control`, the ratio of two identical copies, what noise does to a
        ratio here; `step_milliseconds` of forward and backward in each precision that stays finite; `share`, the part
        of the fastest step that augmentation takes.
    """
    batch = _FirstBatch.of(recipe, progress)
    setup, index, images, labels = batch.setup, batch.index, batch.images, batch.labels
    mean, std = setup.normalization
    copy = Augment([], mean=mean, std=std, threads=torch.get_num_threads(), channels_last=recipe.train.channels_last)
    augment = batch.augment

    timed = latency.measure(
        {
            "copy": lambda: copy(images, epoch=0, index=index),
            "gather": lambda: setup.images.gather(index, seed=recipe.train.seed, epoch=0),
            "augment": lambda: augment(images, labels, epoch=0, index=index),
        },
        reference="copy",
        repeats=repeats,
    )
    model = setup.initial_model(batch.world, pretrained=False)
    times = step_times(model, recipe.train, *batch.augmented(), batch.world, steps=5)
    steps = {name: 1000 * statistics.median(taken) for name, taken in times.items()}
    milliseconds = {name: 1000 * timed.median(name) for name in ("copy", "gather", "augment")}
    if not steps:
        raise TrainingError(_NOT_FINITE)
    return {
        "batch_size": len(index),
        "threads": torch.get_num_threads(),
        "milliseconds": milliseconds,
        "control": timed.control_ratio.value,
        "step_milliseconds": steps,
        "share": milliseconds["augment"] / (milliseconds["augment"] + min(steps.values())),
    }


def bench_train(recipe: Recipe, progress: Progress | None = None, steps: int = 10) -> dict[str, Any]:
    """Time the parts of a training step of a recipe, in its own precision.

    Args:
        steps: timed steps.

    Returns:
        `batch_size`, `threads`, `device`, `precision`, and `milliseconds`, medians a batch of `data` (reading it),
        `augment`, `forward`, `backward`, `optimizer` and `other`.

    Raises:
        TrainingError: no step gives a finite loss.
    """
    batch = _FirstBatch.of(recipe, progress)
    spec, setup, index = recipe.train, batch.setup, batch.index
    kind = precision.choose(batch.world.device) if spec.precision == "auto" else spec.precision
    augment = batch.augment
    taken: dict[str, list[float]] = {"data": [], "augment": []}
    for step in range(steps + 1):
        began = time.perf_counter()
        images, labels = setup.images.gather(index, seed=spec.seed, epoch=0)
        read = time.perf_counter()
        augment(torch.from_numpy(images), torch.from_numpy(labels), epoch=0, index=index)
        if step:  # the first one compiles
            taken["data"].append(read - began)
            taken["augment"].append(time.perf_counter() - read)
    model = setup.initial_model(batch.world, pretrained=False)
    taken |= step_parts(model, spec, *batch.augmented(), batch.world, kind, steps)
    if not taken["forward"]:
        raise TrainingError(_NOT_FINITE)
    return {
        "batch_size": len(index),
        "threads": torch.get_num_threads(),
        "device": str(batch.world.device),
        "precision": kind,
        "milliseconds": {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()},
    }


def bench_precision(recipe: Recipe, progress: Progress | None = None, steps: int = 15) -> dict[str, Any]:
    """Time training steps of one batch in every precision that this machine has, interleaved.

    Args:
        steps: timed steps of each precision; at least 6, or there are no intervals.

    Returns:
        `batch_size`, `threads`, `device`; `chosen`, what `precision: auto` stands for here; `fastest`; `behind`, the
        time of the chosen one over the fastest's (1.0 where it is the fastest); `precisions`: name -> `seconds` (median
        of a step), `ratio` to fp32 within a round (below 1 is faster) and its `interval` (95 %, order statistics).

    Raises:
        TrainingError: no precision gives a finite loss, or memory suffices for none.
    """
    batch = _FirstBatch.of(recipe, progress)
    model = batch.setup.initial_model(batch.world, pretrained=False)
    times = step_times(model, recipe.train, *batch.augmented(), batch.world, steps=steps)
    if not times:
        raise TrainingError(_NOT_FINITE)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    reference = np.array(times.get("fp32") or next(iter(times.values())))
    rows = {}
    for name, taken in times.items():
        ratios = np.array(taken) / reference
        rows[name] = {
            "seconds": medians[name], "ratio": float(np.median(ratios)), "interval": intervals.median(ratios),
        }  # fmt: skip
    chosen = precision.choose(batch.world.device)
    return {
        "batch_size": len(batch.index),
        "threads": torch.get_num_threads(),
        "device": str(batch.world.device),
        "chosen": chosen,
        "fastest": min(medians, key=lambda name: medians[name]),
        "behind": medians[chosen] / min(medians.values()) if chosen in medians else None,
        "precisions": rows,
    }


_NOT_FINITE = "no precision gives a finite loss on the first batch: look at data.normalize"


@dataclass(frozen=True)
class _FirstBatch:
    """The first batch of a recipe's first epoch, and what the loop would do with it."""

    setup: Setup
    world: World
    index: NDArray[np.int64]
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, recipe: Recipe, progress: Progress | None) -> _FirstBatch:
        world = begin(recipe.train)
        setup = Setup.without_run(recipe, progress)
        index = setup.images.order(recipe.train.seed, 0)[: recipe.train.batch_size]
        images, labels = map(torch.from_numpy, setup.images.gather(index, seed=recipe.train.seed, epoch=0))
        return cls(setup, world, index, images, labels)

    @property
    def augment(self) -> Augment:
        return self.setup.augment(self.setup.recipe.train.seed).prepare(*self.setup.drawn)

    def augmented(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the network, on the device."""
        inputs, targets = self.augment(self.images, self.labels, epoch=0, index=self.index)
        return inputs.to(self.world.device), targets.to(self.world.device)
