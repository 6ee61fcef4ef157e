"""What a recipe costs on this machine, measured on a few discarded steps."""

from __future__ import annotations

import os
from timeit import timeit
from typing import Any

import numpy as np
import torch

from kitae.augment import Augment
from kitae.evaluation import intervals, latency
from kitae.modes import threads_restored, torch_defaults
from kitae.pipelines.notes import notes_of
from kitae.pipelines.setup import FirstBatch, Progress, Setup, begin, resolved
from kitae.recipe import Recipe
from kitae.training import distributed, precision
from kitae.training.batches import epoch_shape
from kitae.training.distributed import World
from kitae.training.guards import memory_named
from kitae.training.measure import PARTS, step_times
from kitae.training.optim import build_optimizer
from kitae.training.schedule import progressive_share
from kitae.training.spec import ProbeSpec

_REPEATS = 10  # of the parts of a training step


@threads_restored()
@torch_defaults()
def estimate(recipe: Recipe, progress: Progress | None = None) -> dict[str, Any]:
    """What `train` would do, measured on a few discarded steps; writes only the decoded store.

    Returns:
        `recipe` (precision resolved), `parameters`, `macs`, `train`, `val`, `test` (images), `classes`,
        `image` (C, H, W), `steps_per_epoch`, `seconds_per_epoch`, `seconds` (estimates), `notes` (settings
        without effect, and others worth knowing), `load` (how many programs were running on this machine before:
        threads that wait for a core make an estimate many times too long).
    """
    load = os.getloadavg()[0]
    world = begin(recipe.train)
    recipe = distributed.from_main(recipe, world)  # each process may have made a plan from its own measurements
    folds = recipe.data.folds if recipe.data.whole else None
    setup = Setup.without_run(recipe.override("data.fold=1") if folds else recipe, progress)
    model = setup.initial_model(world, pretrained=False)
    facts, notes = setup.facts(model), notes_of(setup, model)
    shape = epoch_shape(len(setup.images), recipe.train, world.size)
    build_optimizer(model, recipe.train.optimizer)  # says what is wrong with its name
    recipe = resolved(recipe, setup, world, model)
    images, spec = setup.images, recipe.train
    share = shape.batch_size // world.size
    batch = FirstBatch(setup, share, world)
    inputs, targets = batch.make()
    seconds = timeit(batch.make, number=1)
    chosen = spec.resolved_precision
    with memory_named(spec):
        step = float(np.median(step_times(model, spec, inputs, targets, world, precisions=(chosen,), steps=6)[chosen]))
    full = progressive_share((inputs.shape[2], inputs.shape[3]), spec.progressive)
    epoch = (seconds + full * step) * shape.steps
    # A step is about three forward passes; those of the probe are the main process's.
    passes = 0.0
    if isinstance(spec.probe, ProbeSpec):
        passes = (spec.probe.views + 1) * min(len(images), spec.probe.limit) / share
    if folds:
        notes.append(f"data.folds: {folds} runs with these images, and one on everything")
    return {
        "recipe": recipe,
        "parameters": facts["parameters"],
        "macs": facts["macs"],
        "train": len(images),
        "val": len(setup.splits.val),
        "test": setup.splits.test_count,
        "classes": len(setup.store.classes),
        "image": setup.store.rules.shape,
        "steps_per_epoch": shape.steps,
        "seconds_per_epoch": epoch,
        "seconds": ((folds or 0) + 1) * (epoch * spec.last_epoch + passes * step / 3),
        "load": load,
        "notes": notes,
    }


@threads_restored()
@torch_defaults()
def bench(recipe: Recipe, progress: Progress | None = None, repeats: int = 15) -> dict[str, Any]:
    """Time reading, augmenting and training on one batch, interleaved, with a plain copy as the limit.

    Returns:
        `batch_size`, `threads`, `device`; `milliseconds` per batch of `gather`, `copy` (uint8 to normalised float32,
        nothing else: no augmentation can be faster), `augment`; `control`, the ratio of two identical copies: how far
        noise alone moves a ratio; `step_milliseconds` of forward and backward in each precision that stays finite;
        `share`, the part of the fastest step that augmentation takes.
    """
    setup, world, batch, facts = _begun(recipe, progress)
    images, labels = batch.read()
    mean, std = setup.normalization
    copy = Augment([], mean=mean, std=std, threads=torch.get_num_threads(), channels_last=recipe.train.channels_last)
    timed = latency.measure(
        {
            "copy": lambda: copy(images, epoch=0, index=batch.index),
            "gather": batch.read,
            "augment": lambda: batch.augment(images, labels),
        },
        repeats=repeats,
    )
    times = step_times(setup.initial_model(world, pretrained=False), recipe.train, *batch.make(), world, steps=5)
    steps = {name: 1000 * float(np.median(taken)) for name, taken in times.items()}
    milliseconds = {name: 1000 * timed.median(name) for name in timed.seconds}
    return {
        **facts,
        "milliseconds": milliseconds,
        "control": timed.control_ratio,
        "step_milliseconds": steps,
        "share": milliseconds["augment"] / (milliseconds["augment"] + min(steps.values())),
    }


@threads_restored()
@torch_defaults()
def bench_train(recipe: Recipe, progress: Progress | None = None) -> dict[str, Any]:
    """Time the parts of a training step of a recipe, in its own precision and at full size.

    Returns:
        `batch_size`, `threads`, `device`, `precision`, and `milliseconds`, medians per batch of `data` (reading it),
        `augment`, `forward`, `backward`, `optimizer` and `other`.

    Raises:
        RecipeError: a precision that the device cannot train in.
        TrainingError: no step gives a finite loss.
    """
    setup, world, batch, facts = _begun(recipe, progress)
    model = setup.initial_model(world, pretrained=False)
    kind = resolved(recipe, setup, world, model).train.resolved_precision
    images, labels = batch.read()
    timed = latency.measure({"data": batch.read, "augment": lambda: batch.augment(images, labels)}, repeats=_REPEATS)
    times = step_times(model, recipe.train, *batch.make(), world, precisions=(kind,), steps=_REPEATS, parts=True)[kind]
    seconds = {name: timed.median(name) for name in timed.seconds}
    seconds |= dict(zip(PARTS, np.median(times, axis=0).tolist(), strict=True))
    return {**facts, "precision": kind, "milliseconds": {name: 1000 * taken for name, taken in seconds.items()}}


@threads_restored()
@torch_defaults()
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
    setup, world, batch, facts = _begun(recipe, progress)
    times = step_times(setup.initial_model(world, pretrained=False), recipe.train, *batch.make(), world, steps=steps)
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    ratios = {name: taken / times.get("fp32", next(iter(times.values()))) for name, taken in times.items()}
    chosen = precision.choose(world.device)
    return {
        **facts,
        "chosen": chosen,
        "fastest": min(medians, key=lambda name: medians[name]),
        "behind": medians[chosen] / min(medians.values()) if chosen in medians else None,
        "precisions": {
            name: {"seconds": medians[name], "ratio": float(np.median(ratio)), "interval": intervals.median(ratio)}
            for name, ratio in ratios.items()
        },
    }


def _begun(recipe: Recipe, progress: Progress | None) -> tuple[Setup, World, FirstBatch, dict[str, Any]]:
    """What is timed, and what every benchmark says of it."""
    world = begin(recipe.train)
    setup = Setup.without_run(recipe, progress)
    batch = FirstBatch(setup, recipe.train.batch_size, world)
    facts = {"batch_size": len(batch.index), "threads": torch.get_num_threads(), "device": str(world.device)}
    return setup, world, batch, facts
