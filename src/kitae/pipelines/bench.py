"""bench(recipe): where the time of a training step goes on this machine, before training anything."""

from __future__ import annotations

from typing import Any

import torch

from kitae.augment import Augment
from kitae.data.splits import make_splits
from kitae.data.store import open_store
from kitae.errors import TrainingError
from kitae.evaluation import latency
from kitae.pipelines.setup import Progress, Setup, begin
from kitae.recipe import Recipe
from kitae.training.measure import step_seconds


def bench(recipe: Recipe, progress: Progress | None = None, repeats: int = 15) -> dict[str, Any]:
    """Time reading, augmenting and learning from one batch, interleaved, with a plain copy as the limit.

    Returns:
        `batch_size`, `threads`; `milliseconds` a batch of `gather`, `copy` (uint8 to normalised float32, nothing else:
        no augmentation can be faster), `augment`; `control`, the ratio of two identical copies, what noise does to a
        ratio here; `step_milliseconds` of forward and backward in each precision that stays finite; `share`, the part
        of the fastest step that augmentation takes.
    """
    world = begin(recipe.train)
    store = open_store(recipe.data, progress=progress)
    setup = Setup(recipe, store, make_splits(store, recipe.data))
    channels, height, width = store.images.shape[1:]
    mean, std = setup.normalization
    copy = Augment([], mean=mean, std=std, threads=torch.get_num_threads(), channels_last=recipe.train.channels_last)
    augment = setup.augment(recipe.train.seed).prepare(channels, height, width)
    index = setup.images.order(recipe.train.seed, 0)[: recipe.train.batch_size]
    images, labels = map(torch.from_numpy, setup.images.gather(index))

    timed = latency.measure(
        {
            "copy": lambda: copy(images, epoch=0, index=index),
            "gather": lambda: setup.images.gather(index),
            "augment": lambda: augment(images, labels, epoch=0, index=index),
        },
        reference="copy",
        repeats=repeats,
    )
    inputs, targets = augment(images, labels, epoch=0, index=index)
    model = setup.initial_model(world, pretrained=False)
    steps = step_seconds(model, recipe.train, inputs.to(world.device), targets.to(world.device), world, steps=5)
    milliseconds = {name: 1000 * timed.median(name) for name in ("copy", "gather", "augment")}
    if not steps:
        raise TrainingError("no precision gives a finite loss on the first batch: look at data.normalize")
    fastest = min(steps.values())
    return {
        "batch_size": len(index),
        "threads": torch.get_num_threads(),
        "milliseconds": milliseconds,
        "control": timed.control_ratio.value,
        "step_milliseconds": {name: 1000 * seconds for name, seconds in steps.items()},
        "share": milliseconds["augment"] / (milliseconds["augment"] + 1000 * fastest),
    }
